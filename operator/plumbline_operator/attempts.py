"""The life of a stage that is a job: attempts one after the other, each a RayJob. Pure.

An attempt is *current* in phases Waiting and Running without a retry time. Its number is in the status before its RayJob
exists, and the RayJob's name follows from the number: so after any crash the same RayJob is created, never a second one.
"""

from __future__ import annotations

from collections.abc import Collection

from plumbline.api.report import PlanReport, Result, StageReport, stage_key
from plumbline.api.status import StageStatus
from plumbline.graph import Node
from plumbline_operator import diagnosis, names
from plumbline_operator.desired import StageJob
from plumbline_operator.diagnosis import Cause
from plumbline_operator.draft import Draft
from plumbline_operator.observed import PodView, RayJobView
from plumbline_operator.status import Reason, timestamp

DONE = ("Succeeded", "Cached")
VERDICTS = {
    "Passed": Reason.GATE_PASSED,
    "Failed": Reason.GATE_FAILED,
    "Inconclusive": Reason.GATE_INCONCLUSIVE,
}


def done(stage: StageStatus) -> bool:
    return stage.phase in DONE or (stage.phase == "Running" and stage.reason == Reason.SERVING)


def current(stage: StageStatus) -> bool:
    """Whether an attempt is under way."""
    return stage.phase in ("Waiting", "Running") and stage.retry_time is None


def believable(report: StageReport | PlanReport | None) -> int:
    """The attempt that wrote a report, 0 where there is none: its program may have written any number."""
    return report.attempt if report is not None and report.attempt < 10**6 else 0


def numbered(draft: Draft, stage: str) -> dict[int, RayJobView]:
    """The stage's RayJobs by attempt. Their names tell, because labels can be edited."""
    found = ((names.number(job.meta.name, draft.run_name, stage), job) for job in draft.observed.ray_jobs)
    return {number: job for number, job in found if number is not None}


def advance(draft: Draft, node: Node, stage: StageStatus, result: Result | None, may_start: bool) -> StageStatus:
    """One step of a stage whose fingerprint is `stage.fingerprint`.

    Args:
        draft: collects what is to be created and deleted.
        node: the stage in the graph.
        stage: the stage as it was.
        result: its artifact, where that is known to be whole.
        may_start: whether a new attempt may begin.
    """
    jobs = numbered(draft, node.name)
    job = jobs.get(stage.attempt) if current(stage) else None
    for number, other in jobs.items():
        if not other.ended and not (current(stage) and number == stage.attempt):
            draft.remove("RayJob", other.meta.name, other.meta.deleted)
    if done(stage) or stage.phase == "Failed":
        return stage
    if result is not None and (job is None or job.ended):
        return _succeeded(draft, node, stage, result)
    if current(stage):
        return _attend(draft, node, stage, job, may_start)
    if not may_start:
        return stage
    if stage.retry_time is not None and not draft.due(stage.retry_time, stage.failures):
        return stage
    return _start(draft, node, stage, jobs.values())


def suspend(draft: Draft, stage: StageStatus) -> StageStatus:
    """End the current attempt; a later one goes on from its checkpoint."""
    for job in numbered(draft, stage.name).values():
        if not job.ended:
            draft.remove("RayJob", job.meta.name, job.meta.deleted)
    if done(stage) or stage.phase in ("Failed", "Blocked") or (stage.phase == "Pending" and not stage.attempt):
        return stage
    changes = {"phase": "Suspended", "reason": Reason.SUSPENDED, "message": None, "retry_time": None, "progress": None}
    return stage.model_copy(update=changes)


def fail(draft: Draft, stage: StageStatus, cause: Cause) -> StageStatus:
    """The current attempt failed: another one follows after a growing delay, or none."""
    failures = stage.failures + 1
    changes: dict[str, object] = {"failures": failures, "reason": cause.reason, "progress": None}
    if cause.permanent or failures > draft.spec.backoff_limit:
        changes |= {"phase": "Failed", "message": cause.message, "end_time": timestamp(draft.now), "retry_time": None}
    else:
        due = draft.now + draft.delay(failures)
        draft.look_again(due)
        words = f"attempt {stage.attempt} failed, attempt {stage.attempt + 1} begins at {timestamp(due)}: {cause.message}"
        changes |= {"phase": "Waiting", "message": words, "retry_time": timestamp(due)}
    return stage.model_copy(update=changes)


def _start(draft: Draft, node: Node, stage: StageStatus, jobs: Collection[RayJobView]) -> StageStatus:
    """Begin the next attempt, once nothing of the earlier ones is left."""
    ending = _ending(draft, node.name, [job for job in jobs if not job.ended])
    if ending is not None:
        return stage.model_copy(update={"reason": ending.reason, "message": ending.message})
    if (lacking := lacks(draft, stage)) is not None:
        return lacking
    attempt = stage.attempt + 1
    started = stage.model_copy(
        update={
            "phase": "Waiting",
            "reason": Reason.STARTING,
            "message": None,
            "attempt": attempt,
            "retry_time": None,
            "child": f"RayJob/{names.ray_job(draft.run_name, node.name, attempt)}",
            "start_time": stage.start_time or timestamp(draft.now),
            "end_time": None,
            "progress": None,
        }
    )
    _create(draft, started, first=stage.attempt == 0)
    return started


def lacks(draft: Draft, stage: StageStatus) -> StageStatus | None:
    """The stage as it waits for what the run names and does not exist; None where all is there."""
    missing = diagnosis.of_missing(draft.observed.missing)
    if missing is None:
        return None
    draft.look_again(draft.now + draft.patience.recheck)
    return stage.model_copy(update={"reason": missing.reason, "message": missing.message})


def _create(draft: Draft, stage: StageStatus, first: bool = False) -> None:
    assert stage.fingerprint is not None
    draft.create.append(StageJob(stage.name, stage.attempt, stage.fingerprint, draft.generation, first))


def _ending(draft: Draft, stage: str, jobs: list[RayJobView]) -> Cause | None:
    """What is left of earlier attempts: KubeRay does not wait for their Pods."""
    pods = draft.living_pods(stage)
    if jobs:
        return Cause(Reason.EARLIER_ATTEMPT_ENDING, f"RayJob '{jobs[0].meta.name}' of an earlier attempt is ending")
    if pods:
        where = f" on node {pods[0].node}" if pods[0].node else ""
        words = f"Pod '{pods[0].meta.name}'{where} of an earlier attempt is ending"
        return Cause(Reason.EARLIER_ATTEMPT_ENDING, words)
    return None


def _attend(draft: Draft, node: Node, stage: StageStatus, job: RayJobView | None, may_start: bool) -> StageStatus:
    """See how the current attempt is doing."""
    pods = [pod for pod in draft.observed.pods if pod.meta.stage == node.name and pod.meta.attempt == stage.attempt]
    if job is None or job.meta.deleted is not None:
        return _recreate(draft, node, stage, job, may_start)
    report = _report(draft, stage)
    if job.succeeded:
        return _await_result(draft, stage, job)
    if job.ended:
        return fail(draft, stage, diagnosis.of_failure(job, pods, report))
    since = diagnosis.unreachable_since(job)
    if since is not None:
        deadline = since + draft.patience.unreachable
        if draft.now >= deadline:
            draft.remove("RayJob", job.meta.name, job.meta.deleted)
            words = f"the Ray cluster's dashboard has not been reachable since {timestamp(since)}"
            unreachable = Cause(Reason.DASHBOARD_UNREACHABLE, words)
            return fail(draft, stage, diagnosis.of_lost(pods) or diagnosis.of_pods(pods) or unreachable)
        draft.look_again(deadline)
    if job.job == "RUNNING" and job.deployment == "Running":
        unreadable = draft.observed.state is not None and stage_key(node.name) in draft.observed.state.rubbish
        return _running(stage, report, pods, unreadable)
    cause = diagnosis.of_waiting(job, pods, draft.observed.workloads)
    return stage.model_copy(update={"phase": "Waiting", "reason": cause.reason, "message": cause.message, "progress": None})


def _recreate(draft: Draft, node: Node, stage: StageStatus, job: RayJobView | None, may_start: bool) -> StageStatus:
    """The RayJob is not there: not created yet, or deleted by somebody. The attempt's Pods must end before it comes back."""
    ending = _ending(draft, node.name, [job] if job is not None else [])
    if ending is not None:
        words = f"the RayJob was deleted; {ending.message}"
        return stage.model_copy(update={"phase": "Waiting", "reason": ending.reason, "message": words, "progress": None})
    name = names.ray_job(draft.run_name, node.name, stage.attempt)
    cause = diagnosis.of_fault(draft.fault("RayJob", name)) or diagnosis.of_missing(draft.observed.missing)
    if not may_start:
        cause = Cause(Reason.PLANNING, "waits for the plan")
    elif draft.observed.missing:
        draft.look_again(draft.now + draft.patience.recheck)
    else:
        _create(draft, stage)
    cause = cause or Cause(Reason.STARTING, "the RayJob is being created")
    return stage.model_copy(update={"phase": "Waiting", "reason": cause.reason, "message": cause.message, "progress": None})


def _await_result(draft: Draft, stage: StageStatus, job: RayJobView) -> StageStatus:
    """The job succeeded; its result is written before it ends, but may be seen after."""
    deadline = max(job.ended_at or 0.0, job.meta.created) + draft.patience.result
    if draft.now < deadline:
        draft.look_again(deadline)
        return stage.model_copy(update={"phase": "Running", "reason": Reason.RESULT_PENDING, "message": None})
    words = "the job succeeded, and its result is not in the run's ConfigMap; planning looks for the artifact"
    failures = stage.failures + 1
    if failures > draft.spec.backoff_limit + 1:
        return fail(draft, stage, Cause(Reason.RESULT_LOST, words))
    draft.look_again(draft.now)  # planning begins in the next step, and no event may come
    changes = {"phase": "Pending", "failures": failures, "reason": Reason.RESULT_LOST, "message": words, "progress": None}
    return stage.model_copy(update=changes)


def _running(stage: StageStatus, report: StageReport | None, pods: list[PodView], unreadable: bool) -> StageStatus:
    # A worker that is gone while the job runs on: the cluster's state `ready` latches and does not tell.
    changes: dict[str, object] = {"phase": "Running", "reason": Reason.RUNNING, "message": None, "retry_time": None}
    if report is not None:
        changes |= {"message": report.message or None, "progress": report.progress}
        changes |= {"metrics": report.metrics} if report.metrics else {}
    elif unreadable:
        changes |= {"message": "its report in the run's ConfigMap cannot be read and is passed over"}
    lost = diagnosis.of_pods(pods)
    if lost is not None:
        changes |= {"reason": lost.reason, "message": lost.message}
    return stage.model_copy(update=changes)


def _report(draft: Draft, stage: StageStatus) -> StageReport | None:
    """The last word of the current attempt."""
    report = draft.observed.state.stages.get(stage.name) if draft.observed.state is not None else None
    return report if report is not None and report.attempt == stage.attempt else None


def _succeeded(draft: Draft, node: Node, stage: StageStatus, result: Result) -> StageStatus:
    ran = current(stage)
    reason = Reason.SUCCEEDED if ran else Reason.CACHED
    if getattr(node.spec, "gates", []):
        reason = VERDICTS[result.verdict or "Inconclusive"]
    return stage.model_copy(
        update={
            "phase": "Succeeded" if ran else "Cached",
            "cached": not ran,
            "reason": reason,
            "message": result.verdict_reason,
            "failures": 0,
            "retry_time": None,
            "end_time": timestamp(draft.now),
            "progress": None,
            "metrics": result.metrics or None,
            "artifact": result.artifact,
        }
    )
