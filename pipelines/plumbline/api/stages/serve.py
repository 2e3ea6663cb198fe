"""`serve`: the model behind Ray Serve, for users."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from plumbline.api.base import WHOLE, ArtifactType, Input, PositiveInt, StageSpec


class ServeSpec(StageSpec):
    """Serve the model behind an OpenAI-compatible endpoint, once its gate has passed."""

    inputs: ClassVar = {
        "model": Input(type=ArtifactType.MODEL, default_to_base=True),
        "report": Input(type=ArtifactType.REPORT, required=False),
    }
    output: ClassVar = ArtifactType.ENDPOINT
    program: ClassVar = "plumbline.serving.endpoint"  # a service, not a job: the drivers start it
    unfingerprinted: ClassVar = frozenset({"replicas", "port", "max_ongoing_requests"})

    model_name: str | None = Field(default=None, min_length=1, max_length=200)
    """Name of the model in the API. Default: the name of the run."""
    ungated: bool = False
    """Serve without a passed gate. Off: the stage needs an `evaluate` stage with gates, and they must pass."""
    replicas: PositiveInt = 1
    """Copies of the model."""
    port: Annotated[int, Field(ge=1, le=65535), WHOLE] | None = None
    """HTTP port of a local endpoint. Unset: 8000, or the next free one. In a cluster the Service decides."""
    max_ongoing_requests: PositiveInt = 64
    """Requests that one replica works on at the same time."""
    max_tokens: PositiveInt = 1024
    """Longest answer that a request may ask for."""
