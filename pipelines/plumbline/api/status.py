"""`AlignmentRun.status`: what the operator observed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from plumbline.api.base import NonNegativeInt, SpecModel, list_map

Phase = Literal["Pending", "Running", "Suspended", "Succeeded", "Failed"]
StagePhase = Literal["Pending", "Waiting", "Running", "Cached", "Succeeded", "Failed", "Blocked", "Suspended"]
ConditionType = Literal["Validated", "Progressing", "GatePassed", "Ready", "Suspended", "Complete", "Failed"]


class Condition(SpecModel):
    """A `metav1.Condition`."""

    type: ConditionType
    """What the condition speaks of."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: str = Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    """One CamelCase word for programs."""
    message: str = Field(max_length=32768)
    """The reason for people."""
    last_transition_time: str = Field(json_schema_extra={"format": "date-time"})
    """When `status` changed last."""
    observed_generation: NonNegativeInt | None = None
    """The spec generation this was derived from."""


class StageProgress(SpecModel):
    """How far a stage is."""

    step: NonNegativeInt = 0
    """Steps done."""
    total: NonNegativeInt | None = None
    """Steps in all, where known."""
    eta_seconds: NonNegativeInt | None = None
    """Seconds to go, estimated."""


class StageStatus(SpecModel):
    """One stage as it is."""

    name: str
    """Stage name."""
    kind: str
    """Stage kind."""
    phase: StagePhase
    """Where it is in its life."""
    reason: str | None = None
    """One CamelCase word: why it is in this phase."""
    message: str | None = None
    """The same in plain words."""
    attempt: NonNegativeInt = 0
    """Number of the current attempt, from 1. It only grows: a later attempt fences the earlier ones."""
    failures: NonNegativeInt = 0
    """Attempts that failed since the stage was changed or retried, 0 once it is done; `backoffLimit` bounds them."""
    retry_time: str | None = Field(default=None, json_schema_extra={"format": "date-time"})
    """When the next attempt begins."""
    child: str | None = None
    """The object that does the work, `KIND/NAME`."""
    fingerprint: str | None = None
    """Fingerprint of the artifact."""
    cached: bool = False
    """The artifact was there before the run needed it."""
    start_time: str | None = Field(default=None, json_schema_extra={"format": "date-time"})
    """When the first attempt began."""
    end_time: str | None = Field(default=None, json_schema_extra={"format": "date-time"})
    """When the stage ended."""
    progress: StageProgress | None = None
    """How far it is."""
    metrics: dict[str, str] | None = None
    """Key figures, as strings."""
    artifact: str | None = None
    """URI of the artifact."""


class PlanStatus(SpecModel):
    """The job that resolves external inputs and finds what is cached, before anything else starts."""

    generation: NonNegativeInt
    """The spec generation that is planned."""
    attempt: NonNegativeInt = 1
    """Number of the current attempt, from 1."""
    failures: NonNegativeInt = 0
    """Attempts that failed."""
    retry_time: str | None = Field(default=None, json_schema_extra={"format": "date-time"})
    """When the next attempt begins."""
    done: bool = False
    """The stages' fingerprints are those of this generation."""
    reason: str | None = None
    """One CamelCase word: why it waits or failed."""
    message: str | None = None
    """The same in plain words."""


class RunStatus(SpecModel):
    """What the operator observed."""

    observed_generation: NonNegativeInt | None = None
    """The spec generation that this status speaks of."""
    start_time: str | None = Field(default=None, json_schema_extra={"format": "date-time"})
    """When work began; anew after a suspension or an edit. `activeDeadlineSeconds` counts from here."""
    completion_time: str | None = Field(default=None, json_schema_extra={"format": "date-time"})
    """When the run ended. `ttlSecondsAfterFinished` counts from here."""
    plan: PlanStatus | None = None
    """Planning of the current generation."""
    phase: Phase | None = None
    """Derived from the conditions, for people's eyes only."""
    conditions: list[Condition] | None = Field(default=None, json_schema_extra=list_map("type"))
    """The run's conditions; `Complete` and `Failed` are terminal and exclude each other."""
    stages: list[StageStatus] | None = Field(default=None, json_schema_extra=list_map("name"))
    """Each stage."""
    current_stage: str | None = None
    """The stage at work, for the printer column."""
    progress: str | None = None
    """Its progress, for the printer column."""
    gate: Literal["Passed", "Failed", "Inconclusive"] | None = None
    """The last verdict."""
    endpoint: str | None = None
    """Base URL of the served model."""
    report: str | None = None
    """URI of the last report."""
