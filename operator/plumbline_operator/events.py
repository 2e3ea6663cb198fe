"""Kubernetes Events: what changed from one status to the next, for people. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plumbline.api.status import ConditionType, RunStatus, StageStatus
from plumbline_operator.status import Reason, condition

TOLD: tuple[ConditionType, ...] = ("Validated", "GatePassed", "Suspended", "Complete", "Failed")
ORDINARY = {
    Reason.STARTING,
    Reason.RUNNING,
    Reason.DEPLOYING,
    Reason.INPUTS_PENDING,
    Reason.PLANNING,
    Reason.RESULT_PENDING,
    Reason.EARLIER_ATTEMPT_ENDING,
    Reason.SUSPENDED,
    None,
}
MAX_MESSAGE = 1000  # the API server refuses more than 1,024


@dataclass(frozen=True)
class Note:
    """One Event."""

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    message: str


def notes(old: RunStatus, new: RunStatus) -> list[Note]:
    """What is worth telling. Progress is not: nobody reads a thousand Events."""
    before = {stage.name: stage for stage in old.stages or []}
    found = [note for stage in new.stages or [] if (note := _of_stage(before.get(stage.name), stage)) is not None]
    for type in TOLD:
        was, now = condition(old, type), condition(new, type)
        if now is None or (was is not None and (was.status, was.reason) == (now.status, now.reason)):
            continue
        if now.status == "True" and type != "Validated":
            grave = type == "Failed"
            found.append(_note("Warning" if grave else "Normal", type, now.reason, now.message or type))
        elif now.status == "False" and type in ("Validated", "GatePassed"):
            found.append(_note("Warning", now.reason, type, now.message))
        elif type == "Suspended" and was is not None and was.status == "True":
            found.append(_note("Normal", "Resumed", "Resume", "the run goes on"))
    plan = new.plan
    if plan is not None and plan.reason not in ORDINARY and plan.reason != (old.plan.reason if old.plan else None):
        found.append(_note("Warning", plan.reason or "", "Plan", f"planning: {plan.message}"))
    return found


def _of_stage(old: StageStatus | None, new: StageStatus) -> Note | None:
    """One stage's news: it began, ended, failed, or waits for something that a person may have to see to."""
    if old is not None and (old.phase, old.reason, old.attempt, old.failures) == (
        new.phase,
        new.reason,
        new.attempt,
        new.failures,
    ):
        return None
    where = f"stage '{new.name}'"
    if new.phase in ("Succeeded", "Cached") or new.reason == Reason.SERVING:
        word = "Serving" if new.reason == Reason.SERVING else f"Stage{new.phase}"
        return _note("Normal", word, "Stage", f"{where}: {new.message or new.artifact or new.reason}")
    if new.phase == "Failed":
        return _note("Warning", new.reason or Reason.STAGE_FAILED, "Stage", f"{where} failed: {new.message}")
    if new.failures > (old.failures if old else 0):
        return _note("Warning", new.reason or Reason.STAGE_FAILED, "Retry", f"{where}: {new.message}")
    if new.attempt > (old.attempt if old else 0) and new.phase == "Waiting":
        return _note("Normal", "StageStarted", "Stage", f"{where}: attempt {new.attempt}, {new.child}")
    if new.phase == "Waiting" and new.reason not in ORDINARY and (old is None or old.reason != new.reason):
        return _note("Warning", new.reason or "", "Wait", f"{where} waits: {new.message}")
    return None


def _note(type: Literal["Normal", "Warning"], reason: str, action: str, message: str) -> Note:
    cut = message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 1]}…"
    return Note(type, str(reason), str(action), cut)
