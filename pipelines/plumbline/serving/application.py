"""The Ray Serve application: a deployment that is ingress and engine in one replica.

One hop less than an ingress in front of engine replicas. `import_path` of a RayService:
`plumbline.serving.application:build`, with the fields of `ServingArguments` as `args`.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from ray import serve
from ray.serve.schema import LoggingConfig

from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.http import create_app


class ServingArguments(BaseModel):
    """What `build` takes.

    Attributes:
        models: models of every replica.
        replicas: copies of all of them.
        max_ongoing_requests: requests that one replica works on at the same time.
        num_cpus, num_gpus: Ray resources of one replica.
    """

    model_config = ConfigDict(extra="forbid")

    models: list[ServedModel] = Field(min_length=1)
    replicas: int = Field(ge=1)
    max_ongoing_requests: int = Field(ge=1)
    num_cpus: float = Field(ge=0)
    num_gpus: float = Field(ge=0)


@serve.ingress()
class ModelServer:
    """A replica: all models, each with its own engine thread, behind one web application."""

    def __init__(self, models: list[dict[str, Any]], slots: int) -> None:
        logging.getLogger("plumbline").setLevel(logging.INFO)
        served = TypeAdapter(list[ServedModel]).validate_python(models)
        self._models = {
            model.name: ChatModel.load(model, slots, share=1 / (len(served) - i)) for i, model in enumerate(served)
        }

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._models)

    def check_health(self) -> None:
        """Called by Serve; a replica whose engine failed is replaced."""
        for model in self._models.values():
            model.engine.check()

    def __del__(self) -> None:
        for model in getattr(self, "_models", {}).values():
            model.engine.close()


def build(args: ServingArguments | dict[str, Any]) -> serve.Application:
    """The application, for `serve.run` and for a RayService's `import_path`.

    Raises:
        pydantic.ValidationError: the arguments are not those of `ServingArguments`.
    """
    args = ServingArguments.model_validate(args)
    deployment = serve.deployment(
        ModelServer,
        name="ModelServer",
        num_replicas=args.replicas,
        max_ongoing_requests=args.max_ongoing_requests,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=10,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    return deployment.bind(args.model_dump(mode="json")["models"], args.max_ongoing_requests)
