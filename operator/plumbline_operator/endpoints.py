"""The life of a `serve` stage: one RayService that stays, updated without downtime, taken back when it does not get healthy. Pure.

KubeRay starts a second Ray cluster for a changed spec and moves traffic when that is ready; until then, and if it never is,
the first one serves. So an update is a new spec, and a rollback the old one.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from plumbline.api.status import StageStatus
from plumbline.graph import Node
from plumbline_operator import attempts, diagnosis, names
from plumbline_operator.desired import Endpoint, Restored
from plumbline_operator.diagnosis import Cause
from plumbline_operator.draft import Draft
from plumbline_operator.observed import (
    HEALTHY,
    HEALTHY_FINGERPRINT,
    REFUSED,
    REPLACES,
    SHAPE,
    Observed,
    RayServiceView,
    unix,
)
from plumbline_operator.status import Reason, timestamp

PORT = 8000


def find(observed: Observed, stage: str) -> RayServiceView | None:
    name = names.ray_service(observed.run.meta.name, stage)
    return next((service for service in observed.services if service.meta.name == name), None)


def url(observed: Observed, stage: str) -> str:
    """Base URL inside the cluster: KubeRay's Service in front of the replicas."""
    meta = observed.run.meta
    return f"http://{names.ray_service(meta.name, stage)}-serve-svc.{meta.namespace}.svc:{PORT}/v1"


def serves(service: RayServiceView | None) -> bool:
    """Whether requests are answered, by whatever version. `Ready` alone only means that a replica exists."""
    if service is None or service.meta.deleted is not None:
        return False
    ready = service.conditions.get("Ready")
    running = bool(service.active) and all(status == "RUNNING" for status, _ in service.active.values())
    return ready is not None and ready.status == "True" and running


def healthy(service: RayServiceView) -> bool:
    """Whether what serves is what the spec says."""
    return serves(service) and _took_over(service)


def _took_over(service: RayServiceView) -> bool:
    """Whether the spec is one that got healthy once, and so one to go back to: KubeRay gave its cluster the traffic."""
    if REFUSED in service.meta.annotations:
        return True  # the version before, put back
    upgrade = service.conditions.get("UpgradeInProgress")
    settled = upgrade is None or upgrade.status != "True"
    return settled and _replaced(service) and service.observed_generation >= service.meta.generation


def _replaced(service: RayServiceView) -> bool:
    """Whether another cluster has the traffic than when the spec was applied."""
    return service.active_cluster != service.meta.annotations.get(REPLACES, "")


def advance(draft: Draft, node: Node, stage: StageStatus, may_start: bool) -> StageStatus:
    """One step of a `serve` stage that its gate lets through."""
    service = find(draft.observed, node.name)
    shape = _shape(draft, node)
    if stage.phase == "Failed":
        withdraw(draft, stage)
        return stage
    if attempts.done(stage):
        if service is None and may_start:  # deleted by somebody
            return _deploy(draft, stage, None, shape)
        if service is None:
            return stage.model_copy(update={"message": "its RayService is gone; it comes back once the run is planned"})
        if service.meta.annotations.get(SHAPE) != shape and may_start:
            return _deploy(draft, stage, service, shape)
        words = _release(draft, stage) if serves(service) else _words(service) or "no replica is ready"
        return stage.model_copy(update={"message": words})
    if attempts.current(stage):
        return _attend(draft, stage, service, shape, may_start)
    if not may_start or (stage.retry_time is not None and not draft.due(stage.retry_time, stage.failures)):
        withdraw(draft, stage)
        return stage
    if (lacking := attempts.lacks(draft, stage)) is not None:
        return lacking
    if service is not None and service.meta.deleted is not None:
        return stage.model_copy(update={"reason": Reason.EARLIER_ATTEMPT_ENDING, "message": "its RayService is ending"})
    return _deploy(draft, stage, service, shape)


def _release(draft: Draft, stage: StageStatus) -> str | None:
    """What the application says of its release: it knows which versions it serves."""
    report = draft.observed.state.stages.get(stage.name) if draft.observed.state else None
    return report.message or None if report is not None and report.fingerprint == stage.fingerprint else None


def suspend(draft: Draft, stage: StageStatus) -> StageStatus:
    """Take back what is not serving yet; what serves goes on."""
    if attempts.done(stage):
        return stage
    withdraw(draft, stage)
    return attempts.suspend(draft, stage) if attempts.current(stage) or stage.retry_time is not None else stage


def withdraw(draft: Draft, stage: StageStatus) -> None:
    """See to it, of a stage that is neither at work nor serves, that no version is left which never got healthy.

    The status may have said so long ago, and the operator may have ended before it did anything about it.
    """
    service = find(draft.observed, stage.name)
    if service is None:
        return
    refused = stage.phase == "Failed" and service.fingerprint == stage.fingerprint
    if not _took_over(service) or (refused and REFUSED not in service.meta.annotations):
        _take_back(draft, stage, service)


def _deploy(draft: Draft, stage: StageStatus, service: RayServiceView | None, shape: str) -> StageStatus:
    attempt = stage.attempt + 1
    deploying = stage.model_copy(
        update={
            "phase": "Waiting",
            "reason": Reason.DEPLOYING,
            "message": None,
            "attempt": attempt,
            "retry_time": None,
            "child": f"RayService/{names.ray_service(draft.run_name, stage.name)}",
            "start_time": timestamp(draft.now),
            "end_time": None,
        }
    )
    return _attend(draft, deploying, service, shape, may_start=True)


def _apply(draft: Draft, stage: StageStatus, service: RayServiceView | None, shape: str) -> None:
    assert stage.fingerprint is not None
    keep, keep_fingerprint = _kept(service)
    replaces = service.active_cluster if service is not None else ""
    if service is not None and service.fingerprint == stage.fingerprint and service.plan == draft.generation:
        replaces = service.meta.annotations.get(REPLACES, "")  # its spec stays as it is, and so does its cluster
    wanted = Endpoint(stage.name, stage.fingerprint, draft.generation, shape, replaces, keep, keep_fingerprint)
    draft.create.append(wanted)


def _kept(service: RayServiceView | None) -> tuple[dict[str, Any] | None, str | None]:
    """The spec to go back to: the present one if it got healthy once, else the one before."""
    if service is None:
        return None, None
    if _took_over(service) and service.fingerprint is not None:
        return service.spec, service.fingerprint
    return _before(service)


def _before(service: RayServiceView) -> tuple[dict[str, Any] | None, str | None]:
    """The spec that served before the present one, and its fingerprint; None where there was none."""
    annotations = service.meta.annotations
    try:
        spec, fingerprint = json.loads(annotations[HEALTHY]), annotations[HEALTHY_FINGERPRINT]
    except (KeyError, ValueError, RecursionError):
        return None, None
    return (spec, fingerprint) if isinstance(spec, dict) else (None, None)


def _attend(draft: Draft, stage: StageStatus, service: RayServiceView | None, shape: str, may_start: bool) -> StageStatus:
    name = names.ray_service(draft.run_name, stage.name)
    if service is not None and service.meta.deleted is not None:
        return stage.model_copy(update={"reason": Reason.EARLIER_ATTEMPT_ENDING, "message": "its RayService is ending"})
    applied = (
        service is not None and service.fingerprint == stage.fingerprint and service.meta.annotations.get(SHAPE) == shape
    )
    if service is None or not applied:
        if not may_start:
            return stage.model_copy(update={"reason": Reason.PLANNING, "message": "waits for the plan"})
        _apply(draft, stage, service, shape)
        cause = diagnosis.of_fault(draft.fault("RayService", name)) or Cause(Reason.DEPLOYING, "the RayService is applied")
        return stage.model_copy(update={"reason": cause.reason, "message": cause.message})
    if healthy(service):
        changes = {"phase": "Running", "reason": Reason.SERVING, "message": None, "failures": 0}
        return stage.model_copy(update=changes | {"end_time": timestamp(draft.now), "artifact": None})
    queued = diagnosis.of_queue(name, draft.observed.workloads)
    began = max(unix(stage.start_time) or draft.now, diagnosis.admitted_at(name, draft.observed.workloads))
    deadline = began + draft.patience.healthy if queued is None else float("inf")
    failure = _failure(service)
    if failure is None and draft.now >= deadline:
        words = _words(service) or "no replica got ready"
        failure = f"not healthy after {draft.patience.healthy:g} s: {words}"
    if failure is not None:
        return _failed(draft, stage, service, failure)
    draft.look_again(deadline)
    pods = [pod for pod in draft.observed.pods if pod.meta.stage == stage.name]
    cause = queued or diagnosis.of_pods(pods) or Cause(Reason.DEPLOYING, _words(service) or "the model is being deployed")
    return stage.model_copy(update={"reason": cause.reason, "message": cause.message})


def _failed(draft: Draft, stage: StageStatus, service: RayServiceView, words: str) -> StageStatus:
    if not _take_back(draft, stage, service):
        return attempts.fail(draft, stage, Cause(Reason.UNHEALTHY, words))
    told = f"{words}; the version before it goes on serving"
    changes = {"phase": "Failed", "reason": Reason.ROLLED_BACK, "message": told, "retry_time": None}
    return stage.model_copy(update=changes | {"failures": stage.failures + 1, "end_time": timestamp(draft.now)})


def _take_back(draft: Draft, stage: StageStatus, service: RayServiceView) -> bool:
    """Put the version before back, or delete the RayService where there was none; returns whether there was one."""
    spec, fingerprint = _before(service)
    if spec is None or fingerprint is None or service.meta.deleted is not None:
        draft.remove("RayService", service.meta.name, service.meta.deleted)
        return False
    restored = Restored(stage.name, spec, fingerprint, service.fingerprint or "")
    if restored not in draft.create:
        draft.create.append(restored)
    return True


def _failure(service: RayServiceView) -> str | None:
    """Why the new version will never get healthy, or None."""
    ready = service.conditions.get("Ready")
    about_this = ready is not None and (not ready.generation or ready.generation >= service.meta.generation)
    if ready is not None and about_this and ready.reason in ("InitializingTimeout", "ValidationFailed"):
        return f"KubeRay: {ready.reason}: {ready.message}"
    if service.observed_generation < service.meta.generation:
        return None  # what it says is about the version before
    coming = service.pending or (service.active if _replaced(service) else {})
    for name, (status, words) in coming.items():
        if status == "DEPLOY_FAILED":
            return f"application '{name}': {status}: {diagnosis.last_lines(words)}"
    return None


def _words(service: RayServiceView) -> str | None:
    """What KubeRay and Ray Serve say of a service that is not ready."""
    for name, (status, words) in (service.pending or service.active).items():
        if status != "RUNNING":
            return f"application '{name}': {status}" + (f": {diagnosis.last_lines(words)}" if words else "")
    ready = service.conditions.get("Ready")
    return f"{ready.reason}: {ready.message}" if ready is not None and ready.status != "True" else None


def _shape(draft: Draft, node: Node) -> str:
    """Digest of what the RayService depends on, beside the fingerprint. Without defaults: a new version of the operator, which
    may have more of them, must not deploy anew what nobody edited."""
    spec = draft.spec
    stage = next(stage for stage in spec.stages if stage.name == node.name)
    parts = [
        # The rules of a release are for the next model; they change nothing of what runs.
        node.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"release"}),
        *(
            cluster.model_dump(mode="json", by_alias=True, exclude_defaults=True) if cluster else None
            for cluster in (spec.cluster, stage.cluster)
        ),
        spec.queue_name,
        spec.priority_class_name,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
