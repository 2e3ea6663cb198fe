"""From scored replies to the numbers of a report. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plumbline.api.stages.evaluate import GateSpec
from plumbline.evaluation import statistics
from plumbline.evaluation.benchmarks.benchmark import Item, Score
from plumbline.evaluation.contamination import Cleanliness, Exposure, cleanliness
from plumbline.evaluation.gate import Verdict, decide
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.statistics import Difference, Estimate


@dataclass(frozen=True)
class Sample:
    """One item with what every model made of it; `replies` and `scores` are by model name."""

    task: str
    item: Item
    replies: Mapping[str, Reply]
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class TaskScore:
    """A model's score on a task.

    Attributes:
        estimate: mean score with interval.
        unparseable: replies without an answer; they count 0.
        cut: replies that ended at the token limit.
        unanswered: prompts too long for the model; they count 0 and are among the unparseable.
        variants: mean score by other extraction rules, such as `strict`.
    """

    task: str
    model: str
    estimate: Estimate
    unparseable: int
    cut: int
    unanswered: int
    variants: dict[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """The candidate against one baseline on one task.

    Attributes:
        difference: mean of candidate − baseline per item.
        win_rate: share of items that the candidate wins, ties counting half.
        detectable: smallest true difference that these items show with 80 % power.
    """

    task: str
    baseline: str
    difference: Difference
    win_rate: Estimate
    detectable: float


@dataclass(frozen=True)
class Results:
    """All numbers of an evaluation. `verdict` is None where there are no gates."""

    candidate: str
    confidence: float
    scores: tuple[TaskScore, ...]
    comparisons: tuple[Comparison, ...]
    verdict: Verdict | None
    cleanliness: tuple[Cleanliness, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """What a reader of the scores must know, one sentence a task."""
        found = (one.warning(self.candidate) for one in self.cleanliness)
        return [words for words in found if words is not None]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for report.json."""
        return {
            "candidate": self.candidate,
            "confidence": self.confidence,
            "scores": [
                {
                    "task": s.task,
                    "model": s.model,
                    "score": s.estimate.value,
                    "low": s.estimate.low,
                    "high": s.estimate.high,
                    "n": s.estimate.n,
                    "unparseable": s.unparseable,
                    "cut": s.cut,
                    "unanswered": s.unanswered,
                    "variants": {name: asdict(estimate) for name, estimate in s.variants.items()},
                }
                for s in self.scores
            ],
            "comparisons": [
                {
                    "task": c.task,
                    "baseline": c.baseline,
                    "difference": {"value": c.difference.value, "low": c.difference.low, "high": c.difference.high},
                    "winRate": {"value": c.win_rate.value, "low": c.win_rate.low, "high": c.win_rate.high},
                    "pValue": c.difference.p_value,
                    "detectableDifference": c.detectable,
                    "n": c.difference.n,
                }
                for c in self.comparisons
            ],
            "contamination": [one.to_json() for one in self.cleanliness],
            "warnings": self.warnings,
            "verdict": self.verdict.status if self.verdict else None,
            "verdictReason": self.verdict.reason if self.verdict else None,
            "rules": [
                {
                    "task": rule.task,
                    "baseline": rule.baseline,
                    "limit": rule.limit,
                    "status": rule.status,
                    "value": rule.estimate.value,
                    "low": rule.estimate.low,
                    "high": rule.estimate.high,
                    "n": rule.estimate.n,
                    "itemsNeeded": rule.items_needed,
                    "reason": rule.reason,
                }
                for rule in (self.verdict.rules if self.verdict else ())
            ],
        }


def conclude(
    samples: Sequence[Sample],
    *,
    candidate: str,
    baselines: Sequence[str],
    gates: Sequence[GateSpec],
    confidence: float,
    exposures: Mapping[str, Exposure] | None = None,
) -> Results:
    """Scores, comparisons and the verdict.

    Args:
        samples: of all tasks, with a reply and a score of the candidate and every baseline.
        candidate: the model that is judged.
        baselines: what it is compared with.
        gates: rules of the gate.
        confidence: level of every interval.
        exposures: task → what is known of its questions in the training data. Gates judge all questions in any case.
    """
    models = [name for name in dict.fromkeys(baselines) if name != candidate] + [candidate]  # as they came to be
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    values = {task: {model: [s.scores[model].value for s in of] for model in models} for task, of in by_task.items()}
    return Results(
        candidate,
        confidence,
        tuple(_task_score(task, model, of, confidence) for task, of in by_task.items() for model in models),
        tuple(
            _comparison(task, baseline, of[candidate], of[baseline], confidence)
            for task, of in values.items()
            for baseline in models
            if baseline != candidate
        ),
        decide(gates, values, candidate, confidence),
        tuple(
            cleanliness(task, exposure, [s.item.id for s in by_task[task]], values[task], confidence)
            for task, exposure in (exposures or {}).items()
        ),
    )


def _task_score(task: str, model: str, samples: Sequence[Sample], confidence: float) -> TaskScore:
    scores = [sample.scores[model] for sample in samples]
    ended = Counter(sample.replies[model].finish_reason for sample in samples)
    variants = {name: [score.variants[name] for score in scores] for name in scores[0].variants}
    return TaskScore(
        task,
        model,
        statistics.score([score.value for score in scores], confidence),
        sum(score.extracted is None for score in scores),
        ended["length"],
        ended["context_length_exceeded"],
        {name: statistics.score(values, confidence) for name, values in variants.items()},
    )


def _comparison(task: str, baseline: str, ours: Sequence[float], theirs: Sequence[float], confidence: float) -> Comparison:
    difference = statistics.paired_difference(ours, theirs, confidence)
    return Comparison(
        task,
        baseline,
        difference,
        statistics.win_rate(ours, theirs, confidence),
        statistics.detectable_effect(difference.spread, difference.n, confidence),
    )
