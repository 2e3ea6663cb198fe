"""One reconcile: what is wanted and what is there → what to do and what to say. Pure: no I/O, no clock.

The status is the memory: which attempt of which stage is under way. Everything else is read from the children, so any event
may be lost, doubled or late, and the operator may end between any two writes.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from plumbline.api.labels import PLAN, RETRY
from plumbline.api.problems import problem
from plumbline.api.report import PlanReport, Result
from plumbline.api.run import API_VERSION, KIND, AlignmentRun, RunSpec, WorkspaceSpec
from plumbline.api.status import RunStatus, StageStatus
from plumbline.errors import InvalidRun, Problem
from plumbline.graph import Graph, Node, build_graph
from plumbline_operator import attempts, endpoints, names, planning
from plumbline_operator.desired import Access
from plumbline_operator.diagnosis import Cause
from plumbline_operator.draft import Draft, Outcome
from plumbline_operator.observed import HEALTHY, Observed, asked_rollback, unix
from plumbline_operator.settings import Patience
from plumbline_operator.status import Conditions, Reason, condition, finished, holds, phase, timestamp
from plumbline_operator.summary import ready, summarise

TAKEN = frozenset(
    map(PurePosixPath, ("/", "/tmp", "/dev/shm", "/plumbline", "/plumbline/state", "/etc", "/proc", "/var", "/home"))
)
"""Paths at which no volume can be mounted without breaking the container."""
MANAGED_BY = RunSpec.model_fields["managed_by"].default


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
    if draft.create or _asks(draft):
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
    where = spec.workspace.uri.removeprefix("file://")
    if where.startswith("/") and (PurePosixPath(where) in TAKEN or ".." in PurePosixPath(where).parts):
        words = (
            f"'{spec.workspace.uri}' is a folder that the container itself needs; give one of its own, such as /workspace"
        )
        raise InvalidRun([Problem("spec.workspace.uri", words)])
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
    """The spec is wrong: say where, start nothing; what runs from an earlier generation may end, and what serves goes on."""
    run = observed.run
    conditions = Conditions(run.status.conditions, run.meta.generation, now)
    words = str(error)
    conditions.set("Validated", False, Reason.INVALID_SPEC, words)
    conditions.set("Progressing", False, Reason.INVALID_SPEC, "the spec must be corrected first")
    conditions.set("Complete", False, Reason.NOT_FINISHED)
    conditions.set("Failed", True, Reason.INVALID_SPEC, words)
    endpoint = None
    if run.status.stages is not None:  # it was valid before
        serving = [stage.name for stage in run.status.stages if stage.kind == "serve"]
        endpoint = ready(observed, serving, conditions)
    found = conditions.list()
    changes = {
        "observed_generation": run.meta.generation,
        "conditions": found,
        "phase": phase(found, []),
        "endpoint": endpoint,
        "completion_time": run.status.completion_time or timestamp(now),
    }
    return Outcome(run.status.model_copy(update=changes))


def _reopened(status: RunStatus, draft: Draft) -> RunStatus:
    """The status to go on from: an edit, or a retry, gives stages that failed another chance, and at once."""
    edited = status.observed_generation != draft.generation
    annotations = draft.observed.run.meta.annotations
    stages = []
    failed = condition(status, "Failed")
    # A spec can become valid without an edit, by the operator's settings.
    reopened = edited or (failed is not None and failed.reason == Reason.INVALID_SPEC)
    for stage in status.stages or []:
        retried = annotations.get(f"{RETRY}{stage.name}") == str(stage.attempt) and stage.phase == "Failed"
        if retried or (edited and (stage.phase == "Failed" or stage.retry_time is not None)):
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
    if over and plan.done and all(attempts.done(stage) or stage.phase in ("Failed", "Blocked") for stage in stages.values()):
        over = False  # it ended in time, and this was seen late
    if over:
        stages = {name: _stopped(draft, stage) for name, stage in stages.items()}
    if plan.reason == Reason.PLAN_FAILED:
        stages = {name: _unplanned(stage) for name, stage in stages.items()}
    return summarise(draft, old, plan, stages, start_time, over)


def _last_attempt(draft: Draft, stage: str) -> int:
    """Of a stage that the status does not know, because it is new there or the status got lost."""
    told = draft.observed.state.stages.get(stage) if draft.observed.state is not None else None
    return max([attempts.believable(told), *attempts.numbered(draft, stage)])


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
        stage = _fresh(stage, planned.fingerprint)
    if stage.phase == "Suspended" and may_start:
        stage = stage.model_copy(update={"phase": "Pending", "reason": Reason.INPUTS_PENDING, "message": None})
    begun = attempts.current(stage) or attempts.done(stage) or stage.phase == "Failed"
    if not begun and stage.phase != "Suspended":
        held = _held(node, draft, earlier) if planned is not None else None
        if held is not None:
            phase_, cause = held
            changes = {"phase": phase_, "reason": cause.reason, "message": cause.message, "retry_time": None}
            stage, may_start = stage.model_copy(update=changes), False
        elif stage.phase == "Blocked":
            stage = _fresh(stage, stage.fingerprint)
    if node.kind == "serve":
        return endpoints.advance(draft, node, stage, may_start)
    return attempts.advance(draft, node, stage, _result(draft, stage, report), may_start)


def _closed_step(
    draft: Draft, node: Node, stage: StageStatus, earlier: dict[str, StageStatus], report: PlanReport | None, may_start: bool
) -> StageStatus:
    """A run that has ended: nothing begins, but its endpoint is kept alive."""
    if node.kind != "serve":
        return attempts.advance(draft, node, stage, None, False)
    if holds(draft.observed.run.status, "Complete"):
        return endpoints.advance(draft, node, stage, may_start=report is not None)
    if not attempts.done(stage):
        endpoints.withdraw(draft, stage)
    return stage


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
        endpoints.withdraw(draft, stage)
    else:
        attempts.suspend(draft, stage)
    changes = {"phase": "Failed" if began else "Blocked", "reason": Reason.DEADLINE_EXCEEDED, "message": words}
    return stage.model_copy(update=changes | {"retry_time": None, "progress": None, "end_time": timestamp(draft.now)})


def _unplanned(stage: StageStatus) -> StageStatus:
    """There is no plan and will be none until the run is edited. What runs since before the edit may end."""
    waits = stage.reason == Reason.PLANNING or not attempts.current(stage)
    if attempts.done(stage) or stage.phase == "Failed" or not waits:
        return stage
    changes = {"phase": "Blocked", "reason": Reason.PLAN_FAILED, "message": "the run could not be planned"}
    return stage.model_copy(update=changes | {"retry_time": None, "progress": None})


def _clear_away(draft: Draft) -> None:
    """Delete children of stages that the run no longer has."""
    jobs = [node.name for node in draft.graph.nodes if node.kind != "serve"]
    ours = {job.meta.name for stage in jobs for job in attempts.numbered(draft, stage).values()}
    for job in draft.observed.ray_jobs:
        if job.meta.name not in ours:
            draft.remove("RayJob", job.meta.name, job.meta.deleted)
    wanted = {names.ray_service(draft.run_name, node.name) for node in draft.graph.nodes if node.kind == "serve"}
    for service in draft.observed.services:
        if service.meta.name not in wanted:
            draft.remove("RayService", service.meta.name, service.meta.deleted)


def _expired(draft: Draft, status: RunStatus) -> bool:
    """Whether the run's time to live is over. One whose endpoint serves, or comes back, has not ended."""
    limit, ended = draft.spec.ttl_seconds_after_finished, unix(status.completion_time)
    serving = any(s.kind == "serve" and s.phase in ("Waiting", "Running") for s in status.stages or [])
    if limit is None or ended is None or serving or draft.observed.services:
        return False
    if draft.now < ended + limit:
        draft.look_again(ended + limit)
        return False
    return True


def _asks(draft: Draft) -> bool:
    """Whether somebody asks something of a release that its programs cannot read yet."""
    told = draft.observed.state.rollbacks if draft.observed.state is not None else {}
    asked = {node.name: asked_rollback(draft.observed.run.meta, node.name) for node in draft.graph.nodes}
    return draft.observed.state is not None and any(one and told.get(name) != one for name, one in asked.items())


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
