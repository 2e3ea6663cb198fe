"""The gate: rules and scores in, a verdict out. Pure: the same scores always give the same verdict, in whatever order they come.

A gate passes when every rule passes. It is an intersection of tests (Berger 1982): several rules make it stricter, never laxer, and need no
correction for multiple comparisons.

A rule that cannot be believed is inconclusive whatever its numbers say: the questions are not proven clean of the training data, a judge could
not read its task, or is not trusted. What a base model has read before is known to nobody, and refuses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from plumbline.api.stages.evaluate import GateSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks.benchmark import Item
from plumbline.evaluation.statistics import Estimate
from plumbline.evaluation.task_scores import MACRO, SCORE, UNDECIDED, Measured, TaskScores, group_metrics, groups_of, measure

Status = Literal["pass", "fail", "inconclusive"]
Basis = Literal["clean", "clean subset", "accepted", "not proven"]

UNSCORED = 0.02
"""Largest share of items without a score, or undecided: they are seldom like the rest."""

CLEAN_SHARE = 0.5
"""Least share of a task's questions that must be proven clean where some are not: which ones are left is no chance."""


@dataclass(frozen=True)
class RuleResult:
    """What one rule came to.

    Attributes:
        task, baseline: whose figure or difference was judged; no baseline: the figure itself.
        limit: what it must exceed, or stay below, by `comparison`.
        status: what the interval says, unless the scores cannot be believed.
        estimate: the figure or the paired difference; None where no item has a score.
        items_needed: for an undecided rule, how many items would decide an effect of the observed size with 80 % power; None where it is
            decided, or where no number would do.
        reason: one sentence with the numbers.
        metric, comparison, confidence: of the rule.
        basis: which questions count.
        detectable: smallest distance from the limit that the items show with 80 % power.
        items_for_effect: how many items would show a distance of the size of `minEffect` with 80 % power; None without one.
    """

    task: str
    baseline: str | None
    limit: float
    status: Status
    estimate: Estimate | None
    items_needed: int | None
    reason: str
    metric: str
    comparison: Literal["above", "below"]
    confidence: float
    basis: Basis
    detectable: float | None
    items_for_effect: int | None


@dataclass(frozen=True)
class Verdict:
    """The gate's decision."""

    status: Status
    rules: tuple[RuleResult, ...]

    @property
    def reason(self) -> str:
        """The sentences of the rules that decided."""
        return "; ".join(rule.reason for rule in self.rules if rule.status == self.status)


def decide(
    gates: Sequence[GateSpec],
    tasks: Mapping[str, TaskScores],
    candidate: str,
    confidence: float,
    trust: Mapping[str, str] | None = None,
) -> Verdict | None:
    """Judge every rule by its two-sided interval: fail if any fails, else inconclusive if any is, else pass.

    Args:
        gates: the rules; with none there is no verdict.
        tasks: by name.
        candidate: the model that is judged.
        confidence: level of the intervals where a rule has none of its own.
        trust: task → why its scores cannot be gated on, such as a judge that failed a self-test.

    Raises:
        InvalidInput: a rule names a metric that its task does not have.
        KeyError: a rule names a task without scores.
    """
    if not gates:
        return None
    rules = tuple(_rule(gate, tasks[gate.task], candidate, confidence, (trust or {}).get(gate.task)) for gate in gates)
    found = {rule.status for rule in rules}
    status: Status = "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"
    return Verdict(status, rules)


def check_groups(gates: Sequence[GateSpec], items: Mapping[str, Sequence[Item]]) -> None:
    """Before anything is asked: is there every group that a rule names?

    Args:
        gates: the rules.
        items: of each task.

    Raises:
        InvalidInput: there is none of that name.
    """
    for i, gate in enumerate(gates):
        if gate.metric == MACRO or gate.metric.startswith(f"{MACRO}:") or "=" in gate.metric:
            accepted = group_metrics(groups_of(items[gate.task]))
            if gate.metric not in accepted:
                raise InvalidInput(f"gates[{i}].metric: " + _unknown(gate, accepted))


def _unknown(gate: GateSpec, accepted: Sequence[str]) -> str:
    shown = ", ".join(accepted[:20]) + (f" and {len(accepted) - 20} more" if len(accepted) > 20 else "")
    return f"task '{gate.task}' has no metric '{gate.metric}'; it has {shown or 'no groups'}"


def _rule(gate: GateSpec, task: TaskScores, candidate: str, confidence: float, distrust: str | None) -> RuleResult:
    confidence = gate.confidence or confidence
    models = [candidate] if gate.baseline in (None, candidate) else [candidate, str(gate.baseline)]
    basis, unclean = _basis(gate, task)
    distrusted = f"cannot be gated on: {distrust}" if distrust else None
    doubts = [why for why in (unclean, distrusted, _unread(task, models), _undecided(gate, task, models)) if why]
    left_out = _touched(task) if basis == "clean subset" else frozenset()
    kept = [item for item in task.scored(models) if task.items[item] not in left_out]
    if kept and not task.has(gate.metric):  # as where no reply was of the kind that it counts
        doubts.append(_unknown(gate, task.metrics()))
    elif left_out and len(kept) < CLEAN_SHARE * len(task.items):
        doubts.append(
            f"only {len(kept)} of {len(task.items)} questions are proven clean, less than {CLEAN_SHARE:.0%}; take other questions, or set "
            "contaminated: accept"
        )
    if gate.metric == MACRO or gate.metric.startswith(f"{MACRO}:"):
        lost = _lost_groups(gate, task, kept)
        if lost:
            doubts.append(f"nothing is left of the groups {', '.join(lost)}, so the mean over groups is another one")
    limit = gate.threshold
    if limit is None:
        limit = gate.min_effect if gate.comparison == "above" else 0.0 - gate.min_effect  # of nothing not -0
    measured = measure(task, gate.metric, models, kept, confidence)
    if measured and gate.baseline == candidate:
        measured = Measured(Estimate(0.0, 0.0, 0.0, measured.estimate.n), 0.0, 1.0, confidence)
    status: Status = "inconclusive"
    needed = None
    if measured is None:
        told = f"{_what(gate, candidate)} has no value on any item"
    else:
        estimate = measured.estimate
        told = f"{_what(gate, candidate)} = {estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] on {estimate.n} items"
        told += {"clean subset": " that no training source holds", "accepted": " (proven clean or not)"}.get(basis, "")
        if not doubts:
            status = _by_interval(estimate, gate.comparison, limit)
            if status == "inconclusive":
                needed = measured.needed(estimate.value - limit)
                needed = max(needed, estimate.n + 1) if needed else None
            told += f", {_why(status, gate, limit, needed, measured)}"
    return RuleResult(
        gate.task,
        gate.baseline,
        limit,
        status,
        measured.estimate if measured else None,
        needed,
        "; ".join([told, *doubts]),
        gate.metric,
        gate.comparison,
        confidence,
        basis,
        measured.detectable if measured else None,
        measured.needed(gate.min_effect) if measured and gate.baseline else None,
    )


def _lost_groups(gate: GateSpec, task: TaskScores, kept: Sequence[int]) -> list[str]:
    """Groups of which no item counts."""
    grouping = gate.metric.partition(":")[2] or next(iter(task.groups), "")
    if grouping not in task.groups:
        return []
    return sorted(set(task.members(grouping, range(len(task.items)))) - set(task.members(grouping, kept)))


def _what(gate: GateSpec, candidate: str) -> str:
    metric = "" if gate.metric == SCORE else f", {gate.metric}"
    against = "" if gate.baseline is None else f" - {gate.baseline}"
    same = " (the same model)" if gate.baseline == candidate else ""
    return f"{gate.task}{metric}: {candidate}{against}{same}"


def _by_interval(estimate: Estimate, comparison: Literal["above", "below"], limit: float) -> Status:
    if comparison == "above":
        return "pass" if estimate.low > limit else "fail" if estimate.high <= limit else "inconclusive"
    return "pass" if estimate.high < limit else "fail" if estimate.low >= limit else "inconclusive"


def _basis(gate: GateSpec, task: TaskScores) -> tuple[Basis, str | None]:
    """Which questions count, and why the rule cannot be believed where none is proven clean."""
    exposure, touched = task.exposure, _touched(task)
    todo = "let decontamination compare those data with the task where they are made, or set contaminated: accept"
    if exposure is not None and not exposure.unchecked and not touched:
        return "clean", None
    if gate.contaminated == "accept":
        return "accepted", None
    if exposure is None:
        return "not proven", f"not proven clean: nothing is known of the training data; {todo}"
    if exposure.unchecked:
        return "not proven", f"not proven clean: nobody compared it with the data of {', '.join(exposure.unchecked)}; {todo}"
    if len(touched) == len(task.items):
        return (
            "not proven",
            f"not proven clean: all {len(touched)} questions occurred in training sources; take other questions, or set contaminated: accept",
        )
    return "clean subset", None


def _touched(task: TaskScores) -> frozenset[str]:
    return task.exposure.touched & frozenset(task.items) if task.exposure else frozenset()


def _unread(task: TaskScores, models: Sequence[str]) -> str | None:
    """Why too many items are without a score, if they are."""
    absent = [model for model in models if not task.scored([model])]
    if absent:
        return f"{' and '.join(absent)} has no score on this task"
    without = len(task.items) - len(task.scored(models))
    if without <= UNSCORED * len(task.items):
        return None
    share = f"{without} of {len(task.items)} items have no score that could be read"
    return f"{share}, more than {UNSCORED:.0%}; see their replies in samples.jsonl, and take another judge or prompt"


def _undecided(gate: GateSpec, task: TaskScores, models: Sequence[str]) -> str | None:
    """Why too many replies could not be made out, if they are."""
    for model in models if gate.metric != UNDECIDED else ():
        items = task.scored([model], UNDECIDED)
        share = sum(task.of(model, items, UNDECIDED)) / len(task.items) if items else 0.0
        if share > UNSCORED:
            told = f"{share:.1%} of the replies of {model} are undecided, more than {UNSCORED:.0%}"
            return f"{told}; samples.jsonl has them, with `undecided` 1 among their variants"
    return None


def _why(status: Status, gate: GateSpec, limit: float, needed: int | None, measured: Measured) -> str:
    if status != "inconclusive":
        return f"{'all' if status == 'pass' else 'none'} of it {gate.comparison} {limit:g}"
    shown = f"; these {measured.estimate.n:,} show a distance of {measured.detectable:.3f}"
    asked = measured.needed(gate.min_effect) if gate.baseline else None
    if asked:
        shown += f", and {asked:,} would show one of {abs(gate.min_effect):g}"
    if needed is None:
        return f"which cannot be told from {limit:g} however many items are asked{shown} (80 % power)"
    return f"which may lie on either side of {limit:g}; about {needed:,} items would tell{shown} (80 % power)"
