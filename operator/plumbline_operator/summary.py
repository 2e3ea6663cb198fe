"""What the stages come to: conditions, phase and the columns that `kubectl get` shows. Pure."""

from __future__ import annotations

from typing import Any

from plumbline.api.status import PlanStatus, RunStatus, StageStatus
from plumbline_operator import attempts, endpoints
from plumbline_operator.diagnosis import Cause
from plumbline_operator.draft import Draft
from plumbline_operator.observed import Observed
from plumbline_operator.status import Conditions, Reason, condition, holds, phase, timestamp

STARTABLE = ("Pending", "Suspended", "Waiting", "Running")


def summarise(
    draft: Draft, old: RunStatus, plan: PlanStatus, stages: dict[str, StageStatus], start_time: str | None, over: bool
) -> RunStatus:
    """The run's status.

    Args:
        draft: what was decided.
        old: the status before.
        plan: planning as it is.
        stages: by name, in order.
        start_time: when work began.
        over: the run's deadline ended it.
    """
    conditions = Conditions(old.conditions, draft.generation, draft.now)
    all_stages = list(stages.values())
    conditions.set("Validated", True, Reason.VALID, _unknown_accelerators(draft))
    verdict = _gate(draft, stages, conditions)
    serving = [node.name for node in draft.graph.nodes if node.kind == "serve"]
    endpoint = ready(draft.observed, serving, conditions)
    outcome = _outcome(draft, old, plan, all_stages, verdict, over)
    suspended = draft.spec.suspend and outcome is None
    if suspended:
        left = _left(draft)
        reason = Reason.SUSPENDING if left else Reason.SUSPENDED
        conditions.set("Suspended", not left, reason, left or "set spec.suspend to false to go on")
    else:
        conditions.set("Suspended", False, Reason.NOT_SUSPENDED)
    _progressing(plan, all_stages, outcome, suspended, conditions)
    succeeded = outcome is not None and outcome.reason == Reason.COMPLETE
    failed = outcome if outcome is not None and not succeeded else None
    conditions.set("Complete", succeeded, Reason.COMPLETE if succeeded else Reason.NOT_FINISHED)
    conditions.set(
        "Failed", failed is not None, failed.reason if failed else Reason.NOT_FAILED, failed.message if failed else ""
    )
    found = conditions.list()
    at_work = [stage for stage in all_stages if attempts.current(stage) and not attempts.done(stage)]
    shown = next((s for s in at_work if s.phase == "Running"), None) or next(iter(at_work), None)
    shown = shown or next((s for s in all_stages if s.phase == "Failed"), None)
    reports = [stage.artifact for stage in all_stages if stage.kind == "evaluate" and stage.artifact]
    return RunStatus(
        observed_generation=draft.generation,
        start_time=start_time,
        completion_time=(old.completion_time or timestamp(draft.now)) if outcome is not None else None,
        plan=plan,
        phase=phase(found, all_stages),
        conditions=found,
        stages=all_stages,
        current_stage=shown.name if shown is not None else None,
        progress=_progress(shown, all_stages),
        gate=verdict,
        endpoint=endpoint,
        report=reports[-1] if reports else None,
    )


def _unknown_accelerators(draft: Draft) -> str:
    """A warning: such a type is told to Ray and chooses no node."""
    spec, known = draft.spec, draft.observed.accelerators
    clusters = [one for one in (spec.cluster, *(stage.cluster for stage in spec.stages)) if one is not None]
    shapes = [shape for one in clusters for shape in (one.head, *(one.workers or ())) if shape is not None]
    unknown = sorted({s.accelerator for s in shapes if s.accelerator and not s.node_selector} - known)
    if not unknown:
        return ""
    return (
        f"accelerator {', '.join(unknown)} chooses no node: the operator's settings name labels for "
        f"{', '.join(sorted(known)) or 'none'}; add it to stagePods.accelerators, or give a nodeSelector"
    )


def _outcome(
    draft: Draft,
    old: RunStatus,
    plan: PlanStatus,
    stages: list[StageStatus],
    verdict: Any,
    over: bool,
) -> Cause | None:
    """How the run ended (reason `Complete`, or why it failed), or None while it goes on."""
    failed = condition(old, "Failed")
    if holds(old, "Complete"):
        return Cause(Reason.COMPLETE, "")
    if failed is not None and failed.status == "True":
        return Cause(failed.reason, failed.message)
    if over:
        return Cause(
            Reason.DEADLINE_EXCEEDED, f"spec.activeDeadlineSeconds: {draft.spec.active_deadline_seconds} s are over"
        )
    if plan.reason == Reason.PLAN_FAILED and not any(attempts.current(stage) for stage in stages):
        return Cause(Reason.PLAN_FAILED, plan.message or "")
    if not plan.done or any(stage.phase in STARTABLE and not attempts.done(stage) for stage in stages):
        return None
    for stage in stages:
        if stage.phase == "Failed":
            reason = stage.reason if stage.reason == Reason.DEADLINE_EXCEEDED else Reason.STAGE_FAILED
            return Cause(reason or Reason.STAGE_FAILED, f"stage '{stage.name}': {stage.reason}: {stage.message}")
    if verdict in ("Failed", "Inconclusive"):
        bad = next(s for s in stages if s.reason == attempts.VERDICTS[verdict] and s.kind == "evaluate")
        return Cause(bad.reason or "", f"the gate of '{bad.name}': {bad.message}")
    return Cause(Reason.COMPLETE, "")


def _gate(draft: Draft, stages: dict[str, StageStatus], conditions: Conditions) -> Any:
    """The verdict over all gates: one that did not pass decides."""
    gated = [stages[n.name] for n in draft.graph.nodes if n.kind == "evaluate" and getattr(n.spec, "gates", [])]
    if not gated:
        conditions.set("GatePassed", None, Reason.NO_GATE, "no stage has a gate")
        return None
    for reason, verdict, holds_ in (
        (Reason.GATE_FAILED, "Failed", False),
        (Reason.GATE_INCONCLUSIVE, "Inconclusive", False),
    ):
        for stage in gated:
            if attempts.done(stage) and stage.reason == reason:
                conditions.set("GatePassed", holds_, reason, f"'{stage.name}': {stage.message}")
                return verdict
    if all(attempts.done(stage) for stage in gated):
        words = "; ".join(f"'{stage.name}': {stage.message}" for stage in gated if stage.message)
        conditions.set("GatePassed", True, Reason.GATE_PASSED, words)
        return "Passed"
    conditions.set(
        "GatePassed", None, Reason.GATE_PENDING, f"waits for {', '.join(s.name for s in gated if not attempts.done(s))}"
    )
    return None


def ready(observed: Observed, serving: list[str], conditions: Conditions) -> str | None:
    """Set whether the endpoint of every one of these stages answers; returns the base URL of the last one that does."""
    if not serving:
        conditions.set("Ready", False, Reason.NO_ENDPOINT, "the run has no serve stage")
        return None
    silent = [name for name in serving if not endpoints.serves(endpoints.find(observed, name))]
    if silent:
        conditions.set("Ready", False, Reason.DEPLOYING, f"no endpoint answers yet: {', '.join(silent)}")
    else:
        conditions.set("Ready", True, Reason.SERVING, ", ".join(endpoints.url(observed, name) for name in serving))
    answering = [name for name in serving if name not in silent]
    return endpoints.url(observed, answering[-1]) if answering else None


def _left(draft: Draft) -> str:
    """What still holds resources of a suspended run."""
    jobs = [job.meta.name for job in draft.observed.ray_jobs if not job.ended]
    if jobs:
        return f"RayJob '{jobs[0]}' is ending"
    serving = {node.name for node in draft.graph.nodes if node.kind == "serve"}
    stages = dict.fromkeys(pod.meta.stage for pod in draft.observed.pods if pod.meta.stage not in serving)
    pods = [pod for stage in stages for pod in draft.living_pods(stage)]
    return f"Pod '{pods[0].meta.name}' is ending" if pods else ""


def _progressing(
    plan: PlanStatus, stages: list[StageStatus], outcome: Cause | None, suspended: bool, conditions: Conditions
) -> None:
    if outcome is not None:
        conditions.set("Progressing", False, outcome.reason)
        return
    if suspended:
        conditions.set("Progressing", False, Reason.SUSPENDED)
        return
    working = [s.name for s in stages if s.phase == "Running" and not attempts.done(s)]
    if working:
        conditions.set("Progressing", True, Reason.WORKING, f"at work: {', '.join(working)}")
        return
    normal = (Reason.STARTING, Reason.DEPLOYING, Reason.INPUTS_PENDING, Reason.RESULT_PENDING, Reason.PLANNING)
    stuck = [s for s in stages if s.phase in ("Waiting", "Pending") and s.reason is not None and s.reason not in normal]
    if stuck:
        conditions.set("Progressing", False, stuck[0].reason or "", f"stage '{stuck[0].name}': {stuck[0].message}")
    elif not plan.done:
        fine = plan.reason in (Reason.PLANNING, Reason.RESULT_PENDING, None)
        conditions.set("Progressing", fine, plan.reason or Reason.PLANNING, plan.message or "")
    else:
        starting = [s.name for s in stages if s.phase == "Waiting"]
        conditions.set("Progressing", True, Reason.STARTING, f"starting: {', '.join(starting)}")


def _progress(shown: StageStatus | None, stages: list[StageStatus]) -> str:
    """`30/100` of the stage at work where it counts steps, else how many stages are done."""
    if shown is not None and shown.progress is not None and shown.progress.total:
        return f"{shown.progress.step}/{shown.progress.total}"
    return f"{sum(attempts.done(stage) for stage in stages)}/{len(stages)} stages"
