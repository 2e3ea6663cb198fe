"""`serve`: the model behind Ray Serve, for users."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plumbline.api.base import WHOLE, ArtifactType, Input, NonNegativeInt, PositiveInt, StageSpec, validated_by
from plumbline.api.stages.adapters import AdaptersSpec
from plumbline.api.stages.admission import AdmissionSpec
from plumbline.api.stages.autoscaling import AutoscalingSpec
from plumbline.api.stages.release import ReleaseSpec
from plumbline.api.synthesis.teacher import JUDGE_KEY

OWN_ENGINE = "adapters share our own slot engine; set engine: auto, or leave adapters out and serve one merged model"


class ServeSpec(StageSpec):
    """Serve the model behind an OpenAI-compatible endpoint, once its gate has passed."""

    model_config = validated_by(("!has(self.adapters) || self.engine != 'vllm'", OWN_ENGINE))

    inputs: ClassVar = {
        "model": Input(type=ArtifactType.MODEL, default_to_base=True),
        "report": Input(type=ArtifactType.REPORT, required=False),
    }
    output: ClassVar = ArtifactType.ENDPOINT
    program: ClassVar = "plumbline.serving.endpoint"  # a service, not a job: the drivers start it
    unfingerprinted: ClassVar = frozenset(
        {
            "replicas",
            "port",
            "max_ongoing_requests",
            "adapters",
            "admission",
            "release",
            "autoscaling",
            "drain_seconds",
            "engine",
        }
    )

    model_name: str | None = Field(default=None, min_length=1, max_length=200)
    """Name of the model in the API. Default: the name of the run."""
    ungated: bool = False
    """Serve without a passed gate. Off: the stage needs an `evaluate` stage with gates, and they must pass."""
    replicas: PositiveInt = 1
    """Copies of the model; with `autoscaling`: how many to begin with."""
    autoscaling: AutoscalingSpec | None = None
    """Let the number of replicas follow the load. Unset: it stays."""
    drain_seconds: NonNegativeInt = 120
    """Longest time that requests under way have to finish when their replica, Pod, node or local endpoint must go. What takes longer is
    broken off. An answer of `maxTokens` should fit."""
    port: Annotated[int, Field(ge=1, le=65535), WHOLE] | None = None
    """HTTP port of a local endpoint. Unset: 8000, or the next free one. In a cluster the Service decides."""
    max_ongoing_requests: PositiveInt = 64
    """Requests that one replica works on at the same time."""
    max_tokens: PositiveInt = 1024
    """Longest answer that a request may ask for."""
    engine: Literal["auto", "vllm"] = "auto"
    """What computes answers. `auto`: our own slot engine, or what takes its place where it does not know the model. `vllm`: needs that library and,
    unless it is vLLM's CPU build, a GPU for each replica; for models that write text, without `adapters` or virtual tokens."""
    adapters: AdaptersSpec | None = None
    """Adapters of the same base to serve beside the model. Unset: none."""
    admission: AdmissionSpec = AdmissionSpec()
    """Who may ask, and how much."""
    release: ReleaseSpec | None = None
    """How a changed model takes the place of the one that serves. Unset: at once, when it is loaded and answers."""

    def problems(self) -> list[tuple[str, str]]:
        scaling = self.autoscaling.problems() if self.autoscaling else []
        adapters = self.adapters.problems(self.model_name) if self.adapters else []
        found = [(f"autoscaling.{field}", what) for field, what in scaling]
        if self.adapters is not None and self.engine == "vllm":
            found.append(("engine", OWN_ENGINE))
        return super().problems() + found + [(f"adapters.{field}", what) for field, what in adapters]

    def libraries(self) -> dict[str, tuple[str, str]]:
        return super().libraries() | ({"engine": ("vllm", "vllm")} if self.engine == "vllm" else {})

    def secrets(self) -> dict[str, tuple[str, str]]:
        judge = self.release.judge if self.release else None
        return {JUDGE_KEY: (judge.key_secret, "apiKey")} if judge and judge.key_secret else {}

    def secret_files(self) -> dict[str, tuple[str, str]]:
        return self.admission.secret_files()
