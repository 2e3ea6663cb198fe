"""Conditions, phases and reasons of an AlignmentRun. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

from plumbline.api.status import Condition, ConditionType, Phase, RunStatus, StageStatus

ORDER: tuple[ConditionType, ...] = ("Validated", "Progressing", "GatePassed", "Ready", "Suspended", "Complete", "Failed")


class Reason(StrEnum):
    """Why a stage, a plan or a run is as it is. Stable words: people write alerts on them."""

    # The way of all stages
    INPUTS_PENDING = "InputsPending"
    STARTING = "Starting"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    CACHED = "Cached"
    SERVING = "Serving"
    DEPLOYING = "Deploying"
    # Why a stage waits
    PLANNING = "Planning"
    EARLIER_ATTEMPT_ENDING = "EarlierAttemptEnding"
    RESULT_PENDING = "ResultPending"
    QUOTA_PENDING = "QuotaPending"
    QUOTA_EXCEEDED = "QuotaExceeded"
    PREEMPTED = "Preempted"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL = "ImagePull"
    CONTAINER_CONFIG = "ContainerConfig"
    SUSPENDED_BY_OTHERS = "SuspendedByOthers"
    SUSPENDED = "Suspended"
    SUSPENDING = "Suspending"
    MISSING = "ResourceMissing"
    NAME_TAKEN = "NameTaken"
    KUBERAY_MISSING = "KubeRayMissing"
    CHILD_REJECTED = "ChildRejected"
    FORBIDDEN = "Forbidden"
    # Why an attempt failed
    PROGRAM_FAILED = "ProgramFailed"
    INVALID_INPUT = "InvalidInput"
    OUT_OF_MEMORY = "OutOfMemory"
    POD_LOST = "PodLost"
    DASHBOARD_UNREACHABLE = "DashboardUnreachable"
    SUBMISSION_FAILED = "SubmissionFailed"
    STOPPED = "Stopped"
    CLUSTER_FAILED = "ClusterFailed"
    RESULT_LOST = "ResultLost"
    UNHEALTHY = "Unhealthy"
    ROLLED_BACK = "RolledBack"
    # Why a run or a stage goes no further
    PLAN_FAILED = "PlanFailed"
    INVALID_SPEC = "InvalidSpec"
    STAGE_FAILED = "StageFailed"
    UPSTREAM_FAILED = "UpstreamFailed"
    GATE_FAILED = "GateFailed"
    GATE_INCONCLUSIVE = "GateInconclusive"
    GATE_PASSED = "GatePassed"
    GATE_PENDING = "GatePending"
    NO_GATE = "NoGate"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    # The run as a whole
    VALID = "Valid"
    WORKING = "Working"
    COMPLETE = "Complete"
    NOT_SUSPENDED = "NotSuspended"
    NO_ENDPOINT = "NoEndpoint"
    NOT_FINISHED = "NotFinished"
    NOT_FAILED = "NotFailed"


def timestamp(now: float) -> str:
    """RFC 3339 in UTC, whole seconds, as `metav1.Time` has it."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Conditions:
    """The conditions of a run in the making: `set` keeps the transition time where the status stays."""

    def __init__(self, old: list[Condition] | None, generation: int, now: float) -> None:
        self._found: dict[str, Condition] = {one.type: one for one in old or []}
        self._generation, self._now = generation, timestamp(now)

    def set(self, type: ConditionType, status: bool | None, reason: str, message: str = "") -> None:
        """Set one; None means unknown."""
        word = {True: "True", False: "False", None: "Unknown"}[status]
        old = self._found.get(type)
        since = old.last_transition_time if old is not None and old.status == word else self._now
        self._found[type] = Condition.model_validate(
            {
                "type": type,
                "status": word,
                "reason": reason,
                "message": message[:32768],
                "last_transition_time": since,
                "observed_generation": self._generation,
            }
        )

    def list(self) -> list[Condition]:
        return [self._found[name] for name in ORDER if name in self._found]


def condition(status: RunStatus, type: ConditionType) -> Condition | None:
    return next((one for one in status.conditions or [] if one.type == type), None)


def holds(status: RunStatus, type: ConditionType) -> bool:
    found = condition(status, type)
    return found is not None and found.status == "True"


def finished(status: RunStatus) -> bool:
    """Complete or failed: nothing happens any more until the run is edited or a stage retried."""
    return holds(status, "Complete") or holds(status, "Failed")


def phase(conditions: list[Condition], stages: list[StageStatus]) -> Phase:
    """The word of the printer column."""
    true = {one.type for one in conditions if one.status == "True"}
    if "Complete" in true:
        return "Succeeded"
    if "Failed" in true:
        return "Failed"
    if "Suspended" in true:
        return "Suspended"
    started = any(stage.phase not in ("Pending", "Blocked") for stage in stages)
    return "Running" if started else "Pending"
