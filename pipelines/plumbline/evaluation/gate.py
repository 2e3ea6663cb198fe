"""The gate: rules and scores in, a verdict out. Pure: the same scores always give the same verdict.

A gate passes when every rule passes, so several rules make it stricter, never laxer, and need no correction for
multiple comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from plumbline.api.stages.evaluate import GateSpec
from plumbline.evaluation import statistics
from plumbline.evaluation.statistics import Estimate

Status = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class RuleResult:
    """What one rule came to.

    Attributes:
        task, baseline: whose score or difference was judged; no baseline: the score itself.
        limit: what it must exceed (`minEffect` or `threshold`).
        status: what the interval says.
        estimate: the score or the paired difference.
        items_needed: for an inconclusive rule, how many items would decide an effect of the observed size with 80 % power;
            None where it is decided, or where no number would do.
        reason: one sentence with the numbers.
    """

    task: str
    baseline: str | None
    limit: float
    status: Status
    estimate: Estimate
    items_needed: int | None
    reason: str


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
    gates: Sequence[GateSpec], scores: Mapping[str, Mapping[str, Sequence[float]]], candidate: str, confidence: float
) -> Verdict | None:
    """Judge every rule by its two-sided interval: fail if any fails, else inconclusive if any is, else pass.

    Args:
        gates: the rules; with none there is no verdict.
        scores: task → model → per-item scores in [0, 1], the items in the same order for every model.
        candidate: the model that is judged.
        confidence: level of the intervals.

    Raises:
        KeyError: a rule names a task or a baseline without scores.
    """
    if not gates:
        return None
    rules = tuple(_rule(gate, scores[gate.task], candidate, confidence) for gate in gates)
    found = {rule.status for rule in rules}
    status: Status = "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"
    return Verdict(status, rules)


def _rule(gate: GateSpec, scores: Mapping[str, Sequence[float]], candidate: str, confidence: float) -> RuleResult:
    estimate: Estimate
    if gate.baseline is None:
        assert gate.threshold is not None, "EvaluateSpec.problems asks for one of the two"
        limit, what = gate.threshold, candidate
        estimate = statistics.score(scores[candidate], confidence)
        centre = (estimate.low + estimate.high) / 2  # not the score itself: at 0 or 1 it would claim no spread at all
        spread = math.sqrt(centre * (1 - centre))
    elif gate.baseline == candidate:
        limit, what = gate.min_effect, f"{candidate} - {candidate} (the same model)"
        estimate, spread = Estimate(0.0, 0.0, 0.0, len(scores[candidate])), 0.0
    else:
        limit, what = gate.min_effect, f"{candidate} - {gate.baseline}"
        estimate = difference = statistics.paired_difference(scores[candidate], scores[gate.baseline], confidence)
        spread = difference.spread
    status: Status = "pass" if estimate.low > limit else "fail" if estimate.high <= limit else "inconclusive"
    needed = None
    if status == "inconclusive":
        needed = statistics.items_needed(estimate.value - limit, spread, confidence)
        needed = max(needed, estimate.n + 1) if needed else None
    return RuleResult(
        gate.task,
        gate.baseline,
        limit,
        status,
        estimate,
        needed,
        f"{gate.task}: {what} = {estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] on {estimate.n} items, "
        + _why(status, limit, needed),
    )


def _why(status: Status, limit: float, needed: int | None) -> str:
    match status:
        case "pass":
            return f"all of it above {limit:g}"
        case "fail":
            return f"none of it above {limit:g}"
        case "inconclusive" if needed is None:
            return f"which cannot be told from {limit:g} however many items are asked"
        case "inconclusive":
            return f"which may lie on either side of {limit:g}; about {needed:,} items would tell (80 % power)"
