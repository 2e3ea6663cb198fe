"""One reconcile: what is wanted and what is there → what to do and what to say. Pure: no I/O, no clock.

The status is the memory: which attempt of which stage is under way. Everything else is read from the children, so any event
may be lost, doubled or late, and the operator may end between any two writes.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from plumbline.api.labels import PLAN, RETRY
from plumbline.api.problems import problem
from plumbline.api.report import PlanReport, Result
from plumbline.api.run import API_VERSION, KIND, AlignmentRun, RunSpec, WorkspaceSpec
from plumbline.api.status import PlanStatus, RunStatus, StageStatus
from plumbline.errors import InvalidRun, Problem
from plumbline.graph import Graph, Node, build_graph
from plumbline_operator import attempts, endpoints, names, planning
from plumbline_operator.desired import Access
from plumbline_operator.diagnosis import Cause
from plumbline_operator.draft import Draft, Outcome
from plumbline_operator.observed import HEALTHY, Observed, unix
from plumbline_operator.settings import Patience
from plumbline_operator.status import Conditions, Reason, condition, finished, holds, phase, timestamp

MANAGED_BY = RunSpec.model_fields["managed_by"].default
STARTABLE = ("Pending", "Suspended", "Waiting", "Running")


def reconcile(observed: Observed, patience: Patience, now: float) -> Outcome:
    """Decide the next step of a run.

    Args:
        observed: the run and everything that belongs to it, as last seen.
        patience: how long to wait for what.
        now: Unix seconds.
    """
    run = observed.run
    if run.meta.deleted is not None or run.spec.get("managedBy", MANAGED_BY) != MANAGED_BY:
        return Outcome()
    try:
        spec, graph = _validated(observed)
    except InvalidRun as error:
        return _invalid(observed, error, now)
    draft = Draft(observed, spec, graph, patience, now)
    old = _reopened(run.status, draft)
    status = _advance(draft, old)
    delete_run = _expired(draft, status)
    if draft.create:
        draft.create.insert(0, Access())
    wake = max(0.0, draft.wake - now) if draft.wake < float("inf") else None
    return Outcome(status, tuple(draft.create), tuple(draft.delete), _prunable(draft, status), delete_run, wake)


def parse(name: str, spec: dict[str, Any]) -> RunSpec:
    """The spec as the contract has it.

    Raises:
        InvalidRun: with every problem's field path.
    """
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
    try:
        return AlignmentRun.model_validate(document, by_name=False, by_alias=True).spec
    except ValidationError as error:
        raise InvalidRun([problem(details) for details in error.errors(include_url=False)]) from None


def _validated(observed: Observed) -> tuple[RunSpec, Graph]:
    spec = parse(observed.run.meta.name, observed.run.spec)
    graph = build_graph(spec)
    if spec.workspace.uri.startswith("~"):
        words = (
            f"'{spec.workspace.uri}' is in a home folder, which a Pod loses when it ends; give a path in a claim, or s3://…"
        )
        raise InvalidRun([Problem("spec.workspace.uri", words)])
    if _needs_claim(spec.workspace) and not observed.default_claim:
        words = (
            f"the workspace '{spec.workspace.uri}' is a path, which Pods of different nodes do not share; name a claim that all "
            "can mount, or give an object store (s3://…) as spec.workspace.uri"
        )
        raise InvalidRun([Problem("spec.workspace.persistentVolumeClaim", words)])
    return spec, graph


def _needs_claim(workspace: WorkspaceSpec) -> bool:
    """A relative path lies in a claim. An absolute one may lie in a volume of the Pod template."""
    relative = "://" not in workspace.uri and not workspace.uri.startswith(("/", "~"))
    return relative and workspace.persistent_volume_claim is None


def _invalid(observed: Observed, error: InvalidRun, now: float) -> Outcome:
    """The spec is wrong: say where, start nothing; what runs from an earlier generation may end."""
    run = observed.run
    conditions = Conditions(run.status.conditions, run.meta.generation, now)
    words = str(error)
    conditions.set("Validated", False, Reason.INVALID_SPEC, words)
    conditions.set("Progressing", False, Reason.INVALID_SPEC, "the spec must be corrected first")
    conditions.set("Complete", False, Reason.NOT_FINISHED)
    conditions.set("Failed", True, Reason.INVALID_SPEC, words)
    found = conditions.list()
    changes = {
        "observed_generation": run.meta.generation,
        "conditions": found,
        "phase": phase(found, []),
        "completion_time": run.status.completion_time or timestamp(now),
    }
    return Outcome(run.status.model_copy(update=changes))


def _reopened(status: RunStatus, draft: Draft) -> RunStatus:
    """The status to go on from: an edit, or a retry, gives stages that failed another chance."""
    edited = status.observed_generation != draft.generation
    annotations = draft.observed.run.meta.annotations
    stages = []
    reopened = edited
    for stage in status.stages or []:
        retried = annotations.get(f"{RETRY}{stage.name}") == str(stage.attempt) and stage.phase == "Failed"
        if retried or (edited and stage.phase == "Failed"):
            stage = _fresh(stage, stage.fingerprint)
        elif edited:
            stage = stage.model_copy(update={"failures": 0})
        reopened |= retried
        stages.append(stage)
    if not reopened:
        return status
    changes: dict[str, object] = {"stages": stages, "start_time": None, "completion_time": None}
    closed = [one for one in status.conditions or [] if one.type in ("Complete", "Failed")]
    if closed:
        changes["conditions"] = [one for one in status.conditions or [] if one not in closed] + [
            one.model_copy(update={"status": "False"}) if one.status != "False" else one for one in closed
        ]
    return status.model_copy(update=changes)


def _fresh(stage: StageStatus, fingerprint: str | None) -> StageStatus:
    """The stage before it began; attempts go on counting, because a later one fences the earlier."""
    return StageStatus(
        name=stage.name, kind=stage.kind, phase="Pending", attempt=stage.attempt, fingerprint=fingerprint, child=stage.child
    )


def _advance(draft: Draft, old: RunStatus) -> RunStatus:
    """Plan, then every stage in order, then what they come to."""
    closed = finished(old)
    suspended = draft.spec.suspend and not closed
    start_time = None if suspended else old.start_time or timestamp(draft.now)
    over = not closed and not suspended and _over_deadline(draft, start_time)
    may_start = not (closed or suspended or over)
    lost = any(stage.reason == Reason.RESULT_LOST and stage.phase == "Pending" for stage in old.stages or [])
    kept_alive = holds(old, "Complete") and any(node.kind == "serve" for node in draft.graph.nodes)
    if closed and not kept_alive and old.plan is not None:
        plan, report = old.plan, None
    else:
        plan, report = planning.advance(draft, old.plan, may_start or kept_alive, again=lost and may_start)
    before = {stage.name: stage for stage in old.stages or []}
    _clear_away(draft)
    stages: dict[str, StageStatus] = {}
    for node in draft.graph.nodes:
        stage = before.get(node.name)
        if stage is None or stage.kind != node.kind:
            attempt = max(stage.attempt if stage is not None else 0, _last_attempt(draft, node.name))
            stage = StageStatus(name=node.name, kind=node.kind, phase="Pending", reason=Reason.PLANNING, attempt=attempt)
        step = _closed_step if closed else _step
        stages[node.name] = step(draft, node, stage, stages, report, may_start)
    if suspended:
        stages = {name: _suspended(draft, stage) for name, stage in stages.items()}
    if over:
        stages = {name: _stopped(draft, stage) for name, stage in stages.items()}
    return _summary(draft, old, plan, stages, start_time, over)


def _last_attempt(draft: Draft, stage: str) -> int:
    """Of a stage that the status does not know, because it is new there or the status got lost."""
    return max((job.meta.attempt for job in draft.observed.ray_jobs if job.meta.stage == stage), default=0)


def _over_deadline(draft: Draft, start_time: str | None) -> bool:
    limit, began = draft.spec.active_deadline_seconds, unix(start_time)
    if limit is None or began is None:
        return False
    draft.look_again(began + limit)
    return draft.now >= began + limit


def _step(
    draft: Draft,
    node: Node,
    stage: StageStatus,
    earlier: dict[str, StageStatus],
    report: PlanReport | None,
    may_start: bool,
) -> StageStatus:
    """One step of one stage."""
    planned = report.stages[node.name] if report is not None and report.stages is not None else None
    may_start = may_start and planned is not None
    if planned is not None and stage.fingerprint != planned.fingerprint:
        if node.kind == "serve":
            endpoints.stop(draft, stage)
        stage = _fresh(stage, planned.fingerprint)
    serve = node.kind == "serve"
    begun = attempts.current(stage) or attempts.done(stage) or stage.phase == "Failed"
    if not begun and stage.phase != "Suspended":
        held = _held(node, draft, earlier) if planned is not None else None
        if held is not None:
            phase_, cause = held
            changes = {"phase": phase_, "reason": cause.reason, "message": cause.message, "retry_time": None}
            stage = stage.model_copy(update=changes)
            return stage if serve else attempts.advance(draft, node, stage, _result(draft, stage, report), False)
        if stage.phase == "Blocked":
            stage = _fresh(stage, stage.fingerprint)
    elif stage.phase == "Suspended" and may_start:
        if _held(node, draft, earlier) is not None:
            may_start = False
        else:
            stage = stage.model_copy(update={"phase": "Pending", "reason": Reason.INPUTS_PENDING, "message": None})
    if serve:
        return endpoints.advance(draft, node, stage, may_start)
    return attempts.advance(draft, node, stage, _result(draft, stage, report), may_start)


def _closed_step(
    draft: Draft, node: Node, stage: StageStatus, earlier: dict[str, StageStatus], report: PlanReport | None, may_start: bool
) -> StageStatus:
    """A run that has ended: nothing begins, but its endpoint is kept alive."""
    if node.kind != "serve":
        return attempts.advance(draft, node, stage, None, False)
    complete = holds(draft.observed.run.status, "Complete")
    return endpoints.advance(draft, node, stage, may_start=report is not None) if complete else stage


def _held(node: Node, draft: Draft, earlier: dict[str, StageStatus]) -> tuple[str, Cause] | None:
    """(phase, why) of a stage that cannot begin because of earlier ones."""
    parents = [earlier[name] for name in node.parents]
    for parent in parents:
        if parent.phase in ("Failed", "Blocked"):
            return "Blocked", Cause(Reason.UPSTREAM_FAILED, f"it needs '{parent.name}', which is {parent.phase.lower()}")
    waiting = [parent.name for parent in parents if not attempts.done(parent)]
    if waiting:
        return "Pending", Cause(Reason.INPUTS_PENDING, f"waits for {', '.join(waiting)}")
    if node.kind == "serve" and not getattr(node.spec, "ungated", False):
        for name in node.inputs["report"]:
            if earlier[name].reason != Reason.GATE_PASSED:
                reason = earlier[name].reason or Reason.GATE_PENDING
                return "Blocked", Cause(reason, f"the gate of '{name}' did not pass: {earlier[name].message}")
    return None


def _result(draft: Draft, stage: StageStatus, report: PlanReport | None) -> Result | None:
    """The artifact of a stage, as its program or the plan told."""
    if stage.fingerprint is None:
        return None
    state = draft.observed.state
    told = state.stages.get(stage.name) if state is not None else None
    if told is not None and told.fingerprint == stage.fingerprint and told.result is not None:
        return told.result
    planned = report.stages.get(stage.name) if report is not None and report.stages is not None else None
    return planned.result if planned is not None and planned.fingerprint == stage.fingerprint else None


def _suspended(draft: Draft, stage: StageStatus) -> StageStatus:
    return endpoints.suspend(draft, stage) if stage.kind == "serve" else attempts.suspend(draft, stage)


def _stopped(draft: Draft, stage: StageStatus) -> StageStatus:
    """The run's deadline is over."""
    if attempts.done(stage) or stage.phase in ("Failed", "Blocked"):
        return stage
    words = f"spec.activeDeadlineSeconds: {draft.spec.active_deadline_seconds} s are over"
    began = attempts.current(stage) or stage.retry_time is not None
    if stage.kind == "serve":
        endpoints.stop(draft, stage)
    else:
        attempts.suspend(draft, stage)
    changes = {"phase": "Failed" if began else "Blocked", "reason": Reason.DEADLINE_EXCEEDED, "message": words}
    return stage.model_copy(update=changes | {"retry_time": None, "progress": None, "end_time": timestamp(draft.now)})


def _clear_away(draft: Draft) -> None:
    """Delete children of stages that the run no longer has."""
    kinds = {node.name: node.kind for node in draft.graph.nodes}
    for job in draft.observed.ray_jobs:
        if job.meta.stage is not None and kinds.get(job.meta.stage, "serve") == "serve":
            draft.remove("RayJob", job.meta.name, job.meta.deleted)
    wanted = {names.ray_service(draft.run_name, name) for name, kind in kinds.items() if kind == "serve"}
    for service in draft.observed.services:
        if service.meta.name not in wanted:
            draft.remove("RayService", service.meta.name, service.meta.deleted)


def _summary(
    draft: Draft, old: RunStatus, plan: PlanStatus, stages: dict[str, StageStatus], start_time: str | None, over: bool
) -> RunStatus:
    """Conditions, phase and columns from the stages."""
    conditions = Conditions(old.conditions, draft.generation, draft.now)
    all_stages = list(stages.values())
    conditions.set("Validated", True, Reason.VALID)
    verdict = _gate(draft, stages, conditions)
    endpoint = _ready(draft, conditions)
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
        bad = next(s for s in stages if s.reason in (Reason.GATE_FAILED, Reason.GATE_INCONCLUSIVE) and s.kind == "evaluate")
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


def _ready(draft: Draft, conditions: Conditions) -> str | None:
    """Whether every endpoint answers; returns the base URL of the last one that does."""
    serving = [node.name for node in draft.graph.nodes if node.kind == "serve"]
    if not serving:
        conditions.set("Ready", False, Reason.NO_ENDPOINT, "the run has no serve stage")
        return None
    silent = [name for name in serving if not endpoints.serves(endpoints.find(draft, name))]
    if silent:
        conditions.set("Ready", False, Reason.DEPLOYING, f"no endpoint answers yet: {', '.join(silent)}")
    else:
        conditions.set("Ready", True, Reason.SERVING, ", ".join(endpoints.url(draft, name) for name in serving))
    answering = [name for name in serving if name not in silent]
    return endpoints.url(draft, answering[-1]) if answering else None


def _left(draft: Draft) -> str:
    """What still holds resources of a suspended run."""
    jobs = [job.meta.name for job in draft.observed.ray_jobs if not job.ended]
    if jobs:
        return f"RayJob '{jobs[0]}' is ending"
    stages = {node.name for node in draft.graph.nodes if node.kind != "serve"}
    pods = [pod for stage in (*sorted(stages), None) for pod in draft.living_pods(stage)]
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


def _expired(draft: Draft, status: RunStatus) -> bool:
    """Whether the run's time to live is over. One whose endpoint serves has not ended."""
    limit, ended = draft.spec.ttl_seconds_after_finished, unix(status.completion_time)
    if limit is None or ended is None or draft.observed.services:
        return False
    if draft.now < ended + limit:
        draft.look_again(ended + limit)
        return False
    return True


def _prunable(draft: Draft, status: RunStatus) -> tuple[str, ...]:
    """Keys in the ConfigMap of generations that nothing follows any more, and of stages that are gone."""
    state = draft.observed.state
    if state is None or status.plan is None or not status.plan.done:
        return ()
    used = {draft.generation}
    jobs = [job.meta for job in draft.observed.ray_jobs if not job.ended]
    for meta in (*(service.meta for service in draft.observed.services), *jobs):
        used |= {int(number) for number in re.findall(r"^\d+$", meta.labels.get(PLAN, ""))}
        used |= {int(number) for number in re.findall(r"run-(\d+)\.json", meta.annotations.get(HEALTHY, ""))}
    stages = {node.name for node in draft.graph.nodes}
    old = []
    for key in state.keys:
        kind, _, rest = key.removesuffix(".json").partition("-")
        outdated = kind in ("run", "plan") and rest.isdecimal() and int(rest) < draft.generation and int(rest) not in used
        if outdated or (kind == "stage" and rest not in stages):
            old.append(key)
    return tuple(sorted(old))
