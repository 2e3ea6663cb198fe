"""`synthesize`: new data from a stronger teacher or from the model itself."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from plumbline.api.base import ArtifactType, Input, NonNegativeInt, ObjectName, PositiveInt, SpecModel, StageSpec, Uri


class TeacherSpec(SpecModel):
    """Who answers: an OpenAI-compatible endpoint. Unset fields mean the stage's model input."""

    endpoint: Uri | None = None
    """Base URL of an OpenAI-compatible API."""
    model: str | None = Field(default=None, max_length=200)
    """Model name at the endpoint."""
    key_secret: ObjectName | None = None
    """Name of the Secret whose `apiKey` is the endpoint's key."""


class SynthesizeSpec(StageSpec):
    """Write instructions, answers or pairs with a teacher model."""

    inputs: ClassVar = {
        "model": Input(type=ArtifactType.MODEL, default_to_base=True),
        "dataset": Input(type=ArtifactType.DATASET, required=False),
    }
    output: ClassVar = None

    method: Literal["selfInstruct", "evolInstruct", "distill", "selfImprove"] = "distill"
    """Self-Instruct (arXiv 2212.10560), Evol-Instruct (2304.12244), answers by a teacher, or the best of own samples."""
    produces: Literal["Dataset", "PreferenceDataset"] = "Dataset"
    """`Dataset`: chats. `PreferenceDataset`: best and worst answer as pairs."""
    teacher: TeacherSpec = TeacherSpec()
    """Who writes."""
    rows: PositiveInt = 1000
    """How many rows to produce."""
    token_budget: PositiveInt | None = None
    """Stop after this many generated tokens."""
    seed: NonNegativeInt = 0
    """Seed of sampling."""
