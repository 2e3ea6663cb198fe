"""What the reconciler reads: Kubernetes objects, projected to the few fields that matter. Pure.

`project` turns an object as the API server gives it into its view, so that the caches stay small.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from plumbline.api import labels
from plumbline.api.report import PlanReport, Rollback, StageReport, plan_key, rollback_key, stage_key
from plumbline.api.run import KIND
from plumbline.api.status import RunStatus

Object = dict[str, Any]
HEALTHY = "plumbline.dev/healthy"
"""Annotation on a RayService: the spec that served before, as JSON, to go back to."""
HEALTHY_FINGERPRINT = "plumbline.dev/healthy-fingerprint"
"""Annotation on a RayService: what that spec served."""
SHAPE = "plumbline.dev/shape"
"""Annotation on a RayService: digest of all that its spec depends on beside the fingerprint."""
REPLACES = "plumbline.dev/replaces"
"""Annotation on a RayService: the Ray cluster that served when this spec was applied; the new one takes its place."""
REFUSED = "plumbline.dev/refused"
"""Annotation on a RayService: fingerprint of what was taken back because it did not become healthy."""


@dataclass(frozen=True)
class Meta:
    """Metadata of any object. Times are Unix seconds; `owner` is the UID of the controlling AlignmentRun."""

    namespace: str
    name: str
    uid: str
    version: int
    generation: int
    created: float
    deleted: float | None
    owner: str | None
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def run_uid(self) -> str | None:
        """The run that this belongs to: by ownership, for Pods and Workloads (which KubeRay and Kueue own) by label."""
        return self.owner or self.labels.get(labels.RUN_UID)

    @property
    def stage(self) -> str | None:
        return self.labels.get(labels.STAGE)

    @property
    def attempt(self) -> int:
        return _int(self.labels.get(labels.ATTEMPT))


@dataclass(frozen=True)
class Condition:
    """Any object's condition. `generation` of the object that it speaks of is 0 where that is not said."""

    status: str
    reason: str
    message: str
    since: float | None
    generation: int = 0


@dataclass(frozen=True)
class RunView:
    """An AlignmentRun. `status` is empty where the stored one, `raw_status`, cannot be read."""

    meta: Meta
    spec: Object
    status: RunStatus
    raw_status: Object


@dataclass(frozen=True)
class PlanJobView:
    """A batch/v1 Job that plans."""

    meta: Meta
    succeeded: bool
    failed: bool
    reason: str
    message: str
    ended_at: float | None


@dataclass(frozen=True)
class RayJobView:
    """A RayJob: one attempt at a stage."""

    meta: Meta
    job: str
    deployment: str
    reason: str
    message: str
    unreachable_since: float | None
    suspended: bool
    ended_at: float | None
    cluster_conditions: dict[str, Condition]

    @property
    def succeeded(self) -> bool:
        """A job that was stopped is `Complete` too."""
        return self.deployment == "Complete" and self.job == "SUCCEEDED"

    @property
    def ended(self) -> bool:
        """KubeRay will do nothing more with it. `ValidationFailed` is left out of KubeRay's own list of terminal states."""
        return self.deployment in ("Complete", "Failed", "ValidationFailed")


@dataclass(frozen=True)
class RayServiceView:
    """A RayService. Applications are those of the cluster that gets the traffic, and of the one that is to get it."""

    meta: Meta
    spec: Object
    conditions: dict[str, Condition]
    observed_generation: int
    active_cluster: str
    active: dict[str, tuple[str, str]]
    pending: dict[str, tuple[str, str]]

    @property
    def fingerprint(self) -> str | None:
        return self.meta.annotations.get(labels.FINGERPRINT)

    @property
    def plan(self) -> int:
        """Generation of the run that its spec was made for; 0 where that is not known."""
        return _int(self.meta.labels.get(labels.PLAN))


@dataclass(frozen=True)
class PodView:
    """A Pod of the run: of the plan Job, or of a Ray cluster.

    Attributes:
        unschedulable: the scheduler's own words, where it finds no node.
        waiting: (container, reason, message) of a container that cannot start.
        terminated: (container, reason, exit code, message) of a container that ended badly, also before its restart.
        disrupted: (reason, message) where the Pod is taken away: preemption, eviction, lost node.
    """

    meta: Meta
    phase: str
    node: str
    ready: bool
    unschedulable: str | None
    waiting: tuple[str, str, str] | None
    terminated: tuple[str, str, int, str] | None
    disrupted: tuple[str, str] | None

    @property
    def ended(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True)
class WorkloadView:
    """A Kueue Workload; `owner_name` is the RayJob or RayService that it stands for."""

    meta: Meta
    owner_name: str
    conditions: dict[str, Condition]


@dataclass(frozen=True)
class StateView:
    """The run's ConfigMap, as far as it can be read. `rubbish` names the keys that cannot."""

    meta: Meta
    plans: dict[int, PlanReport]
    stages: dict[str, StageReport]
    rollbacks: dict[str, Rollback]
    keys: frozenset[str]
    rubbish: tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """A child that could not be made, as the last attempt to make it found.

    Attributes:
        reason: `NameTaken`, `KubeRayMissing`, `ChildRejected`, `QuotaExceeded`, `Forbidden` or `EarlierAttemptEnding`.
    """

    reason: str
    message: str


@dataclass(frozen=True)
class Observed:
    """All that is known of a run and its children.

    Attributes:
        faults: by (kind, name) of the child.
        missing: (kind, name) of objects that the run names and that do not exist.
        default_claim: claim of runs whose workspace is a path and that name none.
        accelerators: types for which the operator knows node labels.
    """

    run: RunView
    plan_jobs: tuple[PlanJobView, ...] = ()
    ray_jobs: tuple[RayJobView, ...] = ()
    services: tuple[RayServiceView, ...] = ()
    pods: tuple[PodView, ...] = ()
    workloads: tuple[WorkloadView, ...] = ()
    state: StateView | None = None
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    missing: tuple[tuple[str, str], ...] = ()
    default_claim: str | None = None
    accelerators: frozenset[str] = frozenset()


View = RunView | PlanJobView | RayJobView | RayServiceView | PodView | WorkloadView | StateView


def project(value: Object) -> View:
    """The view of an object.

    Raises:
        KeyError: the operator does not watch this kind.
    """
    return _PROJECTIONS[value["kind"]](value)


def _meta(value: Object) -> Meta:
    meta = value.get("metadata") or {}
    owner = next((o for o in meta.get("ownerReferences") or () if o.get("controller") and o.get("kind") == KIND), None)
    return Meta(
        namespace=meta.get("namespace", ""),
        name=meta.get("name", ""),
        uid=meta.get("uid", ""),
        version=_int(meta.get("resourceVersion")),
        generation=_int(meta.get("generation")),
        created=unix(meta.get("creationTimestamp")) or 0.0,
        deleted=unix(meta.get("deletionTimestamp")),
        owner=owner["uid"] if owner else None,
        labels=dict(meta.get("labels") or {}),
        annotations={k: v for k, v in (meta.get("annotations") or {}).items() if k.startswith("plumbline.dev/")},
    )


def _run(value: Object) -> RunView:
    raw = value.get("status") or {}
    status = _read(RunStatus, raw) or RunStatus()
    return RunView(_meta(value), value.get("spec") or {}, status, raw)


def _plan_job(value: Object) -> PlanJobView:
    conditions = _conditions(value)
    complete = conditions.get("Complete") or conditions.get("SuccessCriteriaMet")
    failed = conditions.get("Failed") or conditions.get("FailureTarget")
    bad = failed is not None and failed.status == "True"
    return PlanJobView(
        _meta(value),
        succeeded=complete is not None and complete.status == "True",
        failed=bad,
        reason=failed.reason if failed and bad else "",
        message=failed.message if failed and bad else "",
        ended_at=complete.since if complete is not None else None,
    )


def _ray_job(value: Object) -> RayJobView:
    status = value.get("status") or {}
    return RayJobView(
        _meta(value),
        job=status.get("jobStatus") or "",
        deployment=status.get("jobDeploymentStatus") or "",
        reason=status.get("reason") or "",
        message=status.get("message") or "",
        unreachable_since=unix(status.get("jobStatusCheckFailureStartTime")),
        suspended=bool((value.get("spec") or {}).get("suspend")),
        ended_at=unix(status.get("endTime")),
        cluster_conditions=_conditions({"status": status.get("rayClusterStatus")}),
    )


def _ray_service(value: Object) -> RayServiceView:
    status = value.get("status") or {}
    return RayServiceView(
        _meta(value),
        spec=value.get("spec") or {},
        conditions=_conditions(value),
        observed_generation=_int(status.get("observedGeneration")),
        active_cluster=(status.get("activeServiceStatus") or {}).get("rayClusterName", ""),
        active=_applications(status.get("activeServiceStatus")),
        pending=_applications(status.get("pendingServiceStatus")),
    )


def _applications(status: Object | None) -> dict[str, tuple[str, str]]:
    found = (status or {}).get("applicationStatuses") or {}
    return {name: (one.get("status", ""), _application_message(one)) for name, one in found.items()}


def _application_message(one: Object) -> str:
    words = [one.get("message", "")]
    words += [d.get("message", "") for d in (one.get("serveDeploymentStatuses") or {}).values()]
    return "\n".join(dict.fromkeys(word for word in words if word))


def _pod(value: Object) -> PodView:
    status, meta = value.get("status") or {}, _meta(value)
    conditions = _conditions(value)
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    scheduled, disruption = conditions.get("PodScheduled"), conditions.get("DisruptionTarget")
    disrupted = None
    if disruption is not None and disruption.status == "True":
        disrupted = (disruption.reason, disruption.message)
    elif status.get("reason") in ("Evicted", "NodeLost", "Preempting", "Shutdown"):
        disrupted = (status["reason"], status.get("message", ""))
    return PodView(
        meta,
        phase=status.get("phase", "Pending"),
        node=(value.get("spec") or {}).get("nodeName", ""),
        ready=_true(conditions, "Ready"),
        unschedulable=scheduled.message or scheduled.reason
        if scheduled is not None and scheduled.status == "False" and scheduled.reason != "SchedulingGated"
        else None,
        waiting=next((found for one in containers if (found := _waiting(one)) is not None), None),
        terminated=next((ended for one in containers if (ended := _terminated(one)) is not None), None),
        disrupted=disrupted,
    )


def _waiting(container: Object) -> tuple[str, str, str] | None:
    waiting = (container.get("state") or {}).get("waiting")
    if not waiting or waiting.get("reason") in (None, "ContainerCreating", "PodInitializing"):
        return None
    return container.get("name", ""), waiting["reason"], waiting.get("message", "")


def _terminated(container: Object) -> tuple[str, str, int, str] | None:
    for where in ("state", "lastState"):
        ended = (container.get(where) or {}).get("terminated")
        if ended and ended.get("exitCode") != 0:
            code, words = _int(ended.get("exitCode")), ended.get("message", "")
            return container.get("name", ""), ended.get("reason", ""), code, words
    return None


def _workload(value: Object) -> WorkloadView:
    owners = (value.get("metadata") or {}).get("ownerReferences") or ()
    owner = next((o.get("name", "") for o in owners if o.get("kind") in ("RayJob", "RayService")), "")
    return WorkloadView(_meta(value), owner, _conditions(value))


def _state(value: Object) -> StateView:
    data = value.get("data") or {}
    plans: dict[int, PlanReport] = {}
    stages: dict[str, StageReport] = {}
    rollbacks: dict[str, Rollback] = {}
    rubbish = []
    for key, text in data.items():
        kind, _, rest = key.removesuffix(".json").partition("-")
        if kind == "plan" and rest.isdecimal() and key == plan_key(int(rest)):
            plan = _read_json(PlanReport, text)
            if plan is not None:
                plans[int(rest)] = plan
                continue
        elif kind == "stage" and key == stage_key(rest):
            stage = _read_json(StageReport, text)
            if stage is not None:
                stages[rest] = stage
                continue
        elif kind == "rollback" and key == rollback_key(rest):
            rollback = _read_json(Rollback, text)
            if rollback is not None:
                rollbacks[rest] = rollback
                continue
        elif kind == "run" and rest.isdecimal():
            continue
        rubbish.append(key)
    return StateView(_meta(value), plans, stages, rollbacks, frozenset(data), tuple(sorted(rubbish)))


_PROJECTIONS: dict[str, Callable[[Object], View]] = {
    KIND: _run,
    "Job": _plan_job,
    "RayJob": _ray_job,
    "RayService": _ray_service,
    "Pod": _pod,
    "Workload": _workload,
    "ConfigMap": _state,
}
_M = TypeVar("_M", bound=BaseModel)


def _read_json(model: type[_M], text: object) -> _M | None:
    try:
        return _read(model, json.loads(str(text)))
    except (ValueError, RecursionError):
        return None


def _read(model: type[_M], value: object) -> _M | None:
    try:
        return model.model_validate(value, by_name=False, by_alias=True)
    except ValidationError:
        return None


def _conditions(value: Object) -> dict[str, Condition]:
    found = ((value.get("status") or {}).get("conditions")) or ()
    return {
        one.get("type", ""): Condition(
            one.get("status", ""),
            one.get("reason", ""),
            one.get("message", ""),
            unix(one.get("lastTransitionTime")),
            _int(one.get("observedGeneration")),
        )
        for one in found
    }


def _true(conditions: dict[str, Condition], name: str) -> bool:
    return name in conditions and conditions[name].status == "True"


def asked_rollback(run: Meta, stage: str) -> Rollback | None:
    """What an annotation of the run asks of a stage's release."""
    return _read_json(Rollback, run.annotations.get(f"{labels.ROLLBACK}{stage}"))


def _int(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        return 0


def unix(text: str | None) -> float | None:
    """Unix seconds of an RFC 3339 time; None for none and for what is no time."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
