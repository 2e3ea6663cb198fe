"""What the stage program writes into the run's ConfigMap, and the operator reads. One JSON value under each key:

    run-GENERATION.json     the RUN.json of the stage program
    plan-GENERATION.json    `PlanReport`
    stage-NAME.json         `StageReport`
    rollback-NAME.json      `Rollback`; this one the operator writes, and the serving programs read

The reader trusts nothing in it: a value that does not validate is passed over.
"""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Literal

from pydantic import Field

from plumbline.api.base import Name, NonNegativeInt, SpecModel
from plumbline.api.status import StageProgress

Verdict = Literal["Passed", "Failed", "Inconclusive"]
Figures = Annotated[dict[Annotated[str, Field(max_length=128)], Annotated[str, Field(max_length=256)]], Field(max_length=64)]
"""Metrics by name, as strings."""


def run_key(generation: int) -> str:
    return f"run-{generation}.json"


def plan_key(generation: int) -> str:
    return f"plan-{generation}.json"


def stage_key(stage: str) -> str:
    return f"stage-{stage}.json"


def rollback_key(stage: str) -> str:
    return f"rollback-{stage}.json"


class Rollback(SpecModel):
    """What somebody asks of a serve stage's release."""

    id: str = Field(pattern=r"^[0-9]{10}\.[0-9]{3}-[0-9a-f]{8}$")
    """Unix time, and what tells it from others of the same moment: the later of two is the greater string."""
    to: str | None = Field(default=None, min_length=1, max_length=64)
    """Fingerprint of the stage or of its model; None: what served before."""

    @classmethod
    def make(cls, to: str | None) -> Rollback:
        """A new one."""
        return cls(id=f"{time.time():014.3f}-{secrets.token_hex(4)}", to=to)


class Failure(SpecModel):
    """Why a program ended."""

    message: str = Field(max_length=8192)
    """One or more sentences for people, the last lines of the error among them."""
    permanent: bool = False
    """Trying again cannot help: the input is wrong."""


class Result(SpecModel):
    """A whole artifact, in short."""

    artifact: str = Field(max_length=4096)
    """URI of its folder."""
    metrics: Figures = {}
    """Key figures, as strings."""
    verdict: Verdict | None = None
    """Of the gate, where the artifact is a report with one."""
    verdict_reason: str | None = Field(default=None, max_length=8192)
    """The verdict in words."""


class PlannedStage(SpecModel):
    """One stage of a plan."""

    fingerprint: str = Field(min_length=1, max_length=64)
    """Fingerprint of its artifact."""
    result: Result | None = None
    """The artifact, where it was there already."""


class PlanReport(SpecModel):
    """What planning found: either all stages or an error."""

    attempt: NonNegativeInt
    """Which attempt at planning wrote this."""
    stages: dict[Name, PlannedStage] | None = None
    """Every stage by name."""
    error: Failure | None = None
    """Why there is no plan."""


class StageReport(SpecModel):
    """The last word of a stage."""

    attempt: NonNegativeInt
    """The attempt that wrote this."""
    fingerprint: str = Field(min_length=1, max_length=64)
    """Fingerprint of what it makes."""
    time: float = 0.0
    """Unix time of writing."""
    message: str = Field(default="", max_length=1024)
    """What it does now."""
    progress: StageProgress | None = None
    """How far it is."""
    metrics: Figures = {}
    """Latest figures, as strings."""
    result: Result | None = None
    """The artifact, once it is whole."""
    error: Failure | None = None
    """Why this attempt failed."""
