"""The Ray Serve application: a deployment that is ingress and engine in one replica.

One hop less than an ingress in front of engine replicas. `import_path` of a RayService:
`plumbline.serving.application:build`, with the fields of `ServingArguments` as `args`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig

from plumbline.api.stages.autoscaling import AutoscalingSpec
from plumbline.serving import autoscaling
from plumbline.serving.adapters import Adapters, Base, ServedAdapters
from plumbline.serving.admission.gate import Admission, AdmissionSettings
from plumbline.serving.admission.replicas import follow_replicas
from plumbline.serving.chat import ServedModel
from plumbline.serving.http import create_app
from plumbline.serving.models import AnyModel, Models, load
from plumbline.serving.prometheus import ServingMetrics
from plumbline.serving.release.controller import ReleaseArguments, Report, State, connect
from plumbline.serving.release.record import Version
from plumbline.serving.release.replica import Release
from plumbline.serving.tracing import Tracing


class ServingArguments(BaseModel):
    """What `build` takes.

    Attributes:
        models: models of every replica, which never change.
        replicas: copies of all of them.
        max_ongoing_requests: requests that one replica works on at the same time.
        num_cpus, num_gpus: Ray resources of one replica.
        admission: who may ask, and how much; None, for who asks only itself: nothing is checked.
        release: the model that a later one may take the place of.
        adapters: of the released model's base, loaded when they are asked for.
        autoscaling: bounds and targets of the number of replicas; None: it stays.
        drain_seconds: for requests under way when a replica must go.
    """

    model_config = ConfigDict(extra="forbid")

    models: list[ServedModel] = []
    replicas: int = Field(ge=1)
    max_ongoing_requests: int = Field(ge=1)
    num_cpus: float = Field(ge=0)
    num_gpus: float = Field(ge=0)
    admission: AdmissionSettings | None = None
    release: ReleaseArguments | None = None
    adapters: ServedAdapters | None = None
    autoscaling: AutoscalingSpec | None = None
    drain_seconds: float = Field(default=10, ge=0)


BESIDE = 0.5  # of the memory for keys and values goes to a model that another is released beside
TELL_SECONDS = 10.0


@serve.ingress()
class ModelServer:
    """A replica: all models, each with its own engine, behind one web application."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        models: list[dict[str, Any]],
        slots: int,
        admission: dict[str, Any] | None = None,
        release: dict[str, Any] | None = None,
        adapters: dict[str, Any] | None = None,
    ) -> None:
        logging.getLogger("plumbline").setLevel(logging.INFO)
        self._metrics = ServingMetrics()
        settings = AdmissionSettings.model_validate(admission) if admission else None
        self._admission = Admission.of(settings, echoes=False) if settings else None
        if self._admission is not None and settings is not None and settings.elastic:
            self._dividing = asyncio.create_task(follow_replicas(self._admission.callers))
        served = TypeAdapter(list[ServedModel]).validate_python(models)
        loaded = dict(zip([model.name for model in served], load(served, slots), strict=True))
        self._base, self._models = None, Models.of(loaded)
        if adapters:
            beside = TypeAdapter(ServedAdapters).validate_python(adapters)
            self._base = await asyncio.to_thread(Base, beside, slots)
            self._models = Models(loaded, Adapters(beside, self._base))
        self._release = await self._join(ReleaseArguments.model_validate(release), slots) if release else None
        if self._base and beside.base.name:  # after the released model, which is the first that clients are told of
            self._models.put(beside.base.name, self._base.bare())

    async def _join(self, arguments: ReleaseArguments, slots: int) -> Release:
        """Load what the release's controller says is stable, and follow it from now on."""
        share = BESIDE if arguments.rules else 1.0

        def load_version(version: Version) -> AnyModel:
            served = TypeAdapter(ServedModel).validate_python(version.model)
            return self._base.load(served, share)[0] if self._base else load([served], slots, share)[0]

        controller = connect(arguments)

        async def tell(report: Report) -> State:
            nonlocal controller
            try:
                async with asyncio.timeout(TELL_SECONDS):
                    told: State = await controller.report.remote(report)
                    return told
            except ray.exceptions.RayActorError:  # Ray brings it back, unless somebody ended it
                controller = connect(arguments)
                raise

        state: State = await controller.state.remote()
        self._models.put(state.stable.name, await asyncio.to_thread(load_version, state.stable))
        release = Release(state, self._models, load_version, tell)
        following = asyncio.create_task(release.follow())

        def leave() -> None:
            following.cancel()
            controller.left.remote(release.replica)

        self._leave = leave
        return release

    def __serve_build_asgi_app__(self) -> FastAPI:
        watching = [self._metrics, self._release.observe if self._release else None, Tracing.from_environment()]
        observers = [observer for observer in watching if observer is not None]
        return create_app(self._models, observers=observers, admission=self._admission, release=self._release)

    def check_health(self) -> None:
        """Called by Serve every few seconds; a replica whose engine failed is replaced."""
        self._metrics.read(self._models.loaded())
        self._models.check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve every second where replicas follow the load."""
        return {autoscaling.TOKENS: sum(model.engine.tokens_in_flight for model in self._models.loaded())}

    def __del__(self) -> None:
        """Called by Serve when requests under way have ended."""
        if hasattr(self, "_leave"):
            with suppress(Exception):  # Ray may be gone before us
                self._leave()
        if hasattr(self, "_models"):
            self._models.close()


def build(args: ServingArguments | dict[str, Any]) -> serve.Application:
    """The application, for `serve.run` and for a RayService's `import_path`.

    Raises:
        pydantic.ValidationError: the arguments are not those of `ServingArguments`.
    """
    args = ServingArguments.model_validate(args)
    deployment = serve.deployment(
        ModelServer,
        name="ModelServer",
        **autoscaling.number_of_replicas(args.autoscaling, args.replicas, args.max_ongoing_requests),
        # The replica itself sends away what is too much, in OpenAI's form. What is more than it can send away, Serve does.
        max_ongoing_requests=args.admission.places if args.admission else args.max_ongoing_requests,
        max_queued_requests=args.admission.places if args.admission else -1,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=args.drain_seconds,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    plain = args.model_dump(mode="json")
    return deployment.bind(
        plain["models"], args.max_ongoing_requests, plain["admission"], plain["release"], plain["adapters"]
    )
