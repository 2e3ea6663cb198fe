"""The plan of a generation: one small Job that resolves external inputs and finds what is cached. Pure."""

from __future__ import annotations

from plumbline.api.report import PlanReport, run_key
from plumbline.api.status import PlanStatus
from plumbline_operator import attempts, diagnosis, names
from plumbline_operator.desired import PlanJob
from plumbline_operator.diagnosis import Cause
from plumbline_operator.draft import Draft
from plumbline_operator.observed import PlanJobView, PodView
from plumbline_operator.status import Reason, timestamp


def advance(draft: Draft, old: PlanStatus | None, may_start: bool, again: bool) -> tuple[PlanStatus, PlanReport | None]:
    """One step of planning.

    Args:
        draft: collects what is to be created and deleted.
        old: planning as it was.
        may_start: whether a Job may be started.
        again: a result got lost, so that the plan must look for it.

    Returns:
        planning as it is, and the plan once it is done. Planning that goes no further has reason `PlanFailed`.
    """
    plan = old if old is not None and old.generation == draft.generation else _begun(draft)
    plan, report = _advance(draft, plan, may_start, again)
    _clear_away(draft, plan, may_start)
    return plan, report


def _advance(draft: Draft, plan: PlanStatus, may_start: bool, again: bool) -> tuple[PlanStatus, PlanReport | None]:
    if plan.done and not again and (report := _report(draft, plan)) is not None:
        return plan, report
    if plan.done:
        why = "a result is not in the run's ConfigMap" if again else "the plan is not in the run's ConfigMap any more"
        plan = PlanStatus(generation=plan.generation, attempt=plan.attempt + 1, reason=Reason.RESULT_LOST, message=why)
    elif (report := _report(draft, plan)) is not None:
        return plan.model_copy(update=_done()), report
    if plan.reason == Reason.PLAN_FAILED or not may_start:
        return plan, None
    if plan.retry_time is not None:
        if not draft.due(plan.retry_time, plan.failures):
            return plan, None
        plan = plan.model_copy(update={"attempt": plan.attempt + 1, "retry_time": None})
    return _attend(draft, plan), None


def _begun(draft: Draft) -> PlanStatus:
    """Planning of a new generation; where the status got lost, with the attempt that is there."""
    parts = draft.run_name, "plan", str(draft.generation)
    there = [names.number(job.meta.name, *parts) or 1 for job in draft.observed.plan_jobs]
    report = draft.observed.state.plans.get(draft.generation) if draft.observed.state is not None else None
    return PlanStatus(generation=draft.generation, attempt=max([1, attempts.believable(report), *there]))


def _attend(draft: Draft, plan: PlanStatus) -> PlanStatus:
    """Start the attempt's Job, or see how it is doing."""
    name = names.plan_job(draft.run_name, plan.generation, plan.attempt)
    job = next((job for job in draft.observed.plan_jobs if job.meta.name == name), None)
    error = _error(draft, plan)
    if error is not None:
        return _failed(draft, plan, error)
    if job is None:
        waits = diagnosis.of_missing(draft.observed.missing) or diagnosis.of_fault(draft.fault("Job", name))
        if draft.observed.missing:
            draft.look_again(draft.now + draft.patience.recheck)
        else:
            draft.create.append(PlanJob(plan.generation, plan.attempt))
        return _waiting(plan, waits or Cause(Reason.PLANNING, "the plan Job is being created"))
    if job.failed:
        return _failed(draft, plan, _cause(draft, job))
    if job.succeeded:
        deadline = max(job.ended_at or 0.0, job.meta.created) + draft.patience.result
        if draft.now < deadline:
            draft.look_again(deadline)
            return _waiting(plan, Cause(Reason.RESULT_PENDING, "the plan Job succeeded; its plan is awaited"))
        return _failed(
            draft, plan, Cause(Reason.RESULT_LOST, "the plan Job succeeded, and its plan is not in the ConfigMap")
        )
    found = diagnosis.of_pods(_pods(draft, job))
    return _waiting(plan, found or Cause(Reason.PLANNING, "external inputs are being resolved"))


def _report(draft: Draft, plan: PlanStatus) -> PlanReport | None:
    """The plan, if this attempt (or a later one) has written all of it."""
    state = draft.observed.state
    report = state.plans.get(plan.generation) if state is not None else None
    if state is None or report is None or report.stages is None or report.attempt < plan.attempt:
        return None
    whole = run_key(plan.generation) in state.keys and {node.name for node in draft.graph.nodes} <= report.stages.keys()
    return report if whole else None


def _error(draft: Draft, plan: PlanStatus) -> Cause | None:
    """What this attempt's program said last, if that was an error."""
    state = draft.observed.state
    report = state.plans.get(plan.generation) if state is not None else None
    if report is None or report.error is None or report.attempt != plan.attempt:
        return None
    return Cause(Reason.PROGRAM_FAILED, report.error.message, report.error.permanent)


def _pods(draft: Draft, job: PlanJobView) -> list[PodView]:
    """The Job's Pods: an earlier attempt's words are not this one's."""
    of_plans = (pod for pod in draft.observed.pods if pod.meta.stage is None)
    return [pod for pod in of_plans if pod.meta.name.startswith(f"{job.meta.name}-")]


def _cause(draft: Draft, job: PlanJobView) -> Cause:
    """Why a plan Job failed without a word from its program."""
    for pod in _pods(draft, job):
        if pod.terminated is not None:
            container, reason, code, words = pod.terminated
            told = diagnosis.last_lines(words) or reason
            kind = Reason.OUT_OF_MEMORY if reason == "OOMKilled" else Reason.PROGRAM_FAILED
            permanent = code == diagnosis.EXIT_PERMANENT and reason != "OOMKilled"
            return Cause(kind, f"Pod {pod.meta.name}, container {container}, exit code {code}: {told}", permanent)
    return Cause(Reason.PROGRAM_FAILED, f"Job {job.meta.name}: {job.reason}: {job.message}")


def _failed(draft: Draft, plan: PlanStatus, cause: Cause) -> PlanStatus:
    failures = plan.failures + 1
    if cause.permanent or failures > draft.spec.backoff_limit:
        words = {"failures": failures, "retry_time": None, "reason": Reason.PLAN_FAILED, "message": cause.message}
        return plan.model_copy(update=words)
    due = draft.now + draft.delay(failures)
    draft.look_again(due)
    words = {
        "failures": failures,
        "retry_time": timestamp(due),
        "reason": cause.reason,
        "message": f"attempt {plan.attempt} failed, attempt {plan.attempt + 1} follows: {cause.message}",
    }
    return plan.model_copy(update=words)


def _waiting(plan: PlanStatus, cause: Cause) -> PlanStatus:
    return plan.model_copy(update={"reason": cause.reason, "message": cause.message})


def _done() -> dict[str, object]:
    return {"done": True, "failures": 0, "retry_time": None, "reason": None, "message": None}


def _clear_away(draft: Draft, plan: PlanStatus, may_start: bool) -> None:
    """Delete Jobs of other generations and earlier attempts, and every one while nothing may run."""
    kept = names.plan_job(draft.run_name, plan.generation, plan.attempt)
    for job in draft.observed.plan_jobs:
        stopped = not may_start and not (job.succeeded or job.failed)
        if job.meta.name != kept or stopped:
            draft.remove("Job", job.meta.name, job.meta.deleted)
