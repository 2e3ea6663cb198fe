"""From scored replies to the numbers of a report. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from plumbline.api.stages.evaluate import GateSpec
from plumbline.evaluation import statistics
from plumbline.evaluation.benchmarks.benchmark import Item, Score
from plumbline.evaluation.contamination import Cleanliness, Exposure, cleanliness
from plumbline.evaluation.gate import RuleResult, Verdict, decide
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.statistics import Difference, Estimate
from plumbline.evaluation.task_scores import SCORE, Figures, TaskScores, groups_of

FigureFunction = Callable[[Sequence[Item], Sequence[Score]], Mapping[str, float]]
"""Figures of a benchmark that are no means of items, in [-1, 1], by name."""


@dataclass(frozen=True)
class Sample:
    """One item with what every model made of it; `replies` and `scores` are by model name. A reply without a score is one that a judge could
    not read. Of a conversation a reply holds all turns, and `turns` each of them."""

    task: str
    item: Item
    replies: Mapping[str, Reply]
    scores: Mapping[str, Score]
    turns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskScore:
    """A model's score on a task.

    Attributes:
        estimate: mean score with interval; of no items (`n` 0) it is [0, 1].
        unparseable: replies without an answer; they count 0.
        cut: replies that ended at the token limit.
        unanswered: prompts too long for the model; they count 0 and are among the unparseable.
        variants: mean score by other extraction rules, such as `strict`, over the items that have one.
        unscored: replies that a judge could not read; they count nowhere.
        clusters: of how many the items are that have a score; as many as items where they are independent.
        groups: grouping → group → mean score of its items, in the order of their names.
        macro: grouping → mean of its groups' scores.
        figures: what is no mean of items, with bootstrap intervals.
    """

    task: str
    model: str
    estimate: Estimate
    unparseable: int
    cut: int
    unanswered: int
    variants: dict[str, Estimate]
    unscored: int = 0
    clusters: int = 0
    groups: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    macro: dict[str, Estimate] = field(default_factory=dict)
    figures: dict[str, Estimate] = field(default_factory=dict)


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
class WinRates:
    """Every model against every other on one task.

    Attributes:
        models: the candidate last.
        rates: how often the model of the row wins against that of the column, ties counting half; None where they have no item in common,
            and with itself.
    """

    task: str
    models: tuple[str, ...]
    rates: tuple[tuple[Estimate | None, ...], ...]


@dataclass(frozen=True)
class Results:
    """All numbers of an evaluation. `verdict` is None where there are no gates."""

    candidate: str
    confidence: float
    scores: tuple[TaskScore, ...]
    comparisons: tuple[Comparison, ...]
    verdict: Verdict | None
    cleanliness: tuple[Cleanliness, ...] = ()
    win_rates: tuple[WinRates, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """What a reader of the scores must know, a sentence each."""
        found = (one.warning(self.candidate) for one in self.cleanliness)
        return [*(words for words in found if words is not None), *self.remarks]

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
                    "variants": _estimates(s.variants),
                    "unscored": s.unscored,
                    "clusters": s.clusters,
                    "groups": {grouping: _estimates(groups) for grouping, groups in s.groups.items()},
                    "macro": _estimates(s.macro),
                    "figures": _estimates(s.figures),
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
            "rules": [_rule_json(rule) for rule in (self.verdict.rules if self.verdict else ())],
            "winRates": [
                {
                    "task": one.task,
                    "models": list(one.models),
                    "rates": [[rate.value if rate else None for rate in row] for row in one.rates],
                }
                for one in self.win_rates
            ],
        }


def _estimates(found: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: {"value": e.value, "low": e.low, "high": e.high, "n": e.n} for name, e in found.items()}


def _rule_json(rule: RuleResult) -> dict[str, Any]:
    e = rule.estimate
    return {
        "task": rule.task,
        "metric": rule.metric,
        "baseline": rule.baseline,
        "comparison": rule.comparison,
        "limit": rule.limit,
        "confidence": rule.confidence,
        "status": rule.status,
        "value": e.value if e else None,
        "low": e.low if e else None,
        "high": e.high if e else None,
        "n": e.n if e else 0,
        "basis": rule.basis,
        "detectable": rule.detectable,
        "itemsNeeded": rule.items_needed,
        "itemsForEffect": rule.items_for_effect,
        "reason": rule.reason,
    }


def conclude(
    samples: Sequence[Sample],
    *,
    candidate: str,
    baselines: Sequence[str],
    gates: Sequence[GateSpec],
    confidence: float,
    exposures: Mapping[str, Exposure] | None = None,
    trust: Mapping[str, str] | None = None,
    figures: Mapping[str, FigureFunction] | None = None,
    remarks: Sequence[str] = (),
) -> Results:
    """Scores, comparisons and the verdict; the order of the samples changes none of them.

    Args:
        samples: of all tasks, with replies and scores of the candidate and the baselines, and of whoever else was compared on a task. A model
            without a score on any item of a task is not part of it.
        candidate: the model that is judged.
        baselines: what it is compared with.
        gates: rules of the gate.
        confidence: level of every interval.
        exposures: task → what is known of its questions in the training data. A task that is missing is not proven clean.
        trust: task → why its scores cannot be gated on.
        figures: task → what its benchmark tells that is no mean of items.
        remarks: further warnings.

    Raises:
        InvalidInput: a rule names a metric that its task does not have.
    """
    of_task: dict[str, list[Sample]] = {}
    for sample in samples:
        of_task.setdefault(sample.task, []).append(sample)
    by_task = {task: sorted(of, key=lambda sample: sample.item.id) for task, of in of_task.items()}
    tasks = {task: _task_scores(of, (exposures or {}).get(task), (figures or {}).get(task)) for task, of in by_task.items()}
    models = {task: _models(of, [*baselines, candidate], candidate) for task, of in by_task.items()}
    return Results(
        candidate,
        confidence,
        tuple(
            _task_score(task, model, of, tasks[task], confidence) for task, of in by_task.items() for model in models[task]
        ),
        tuple(
            comparison
            for task, names in models.items()
            for baseline in names
            if baseline != candidate
            if (comparison := _comparison(task, tasks[task], candidate, baseline, confidence)) is not None
        ),
        decide(gates, tasks, candidate, confidence, trust),
        tuple(
            cleanliness(
                task,
                exposure,
                tasks[task].items,
                {model: tasks[task].values[SCORE].get(model, [None] * len(tasks[task].items)) for model in models[task]},
                confidence,
                tasks[task].clusters,
            )
            for task, exposure in (exposures or {}).items()
        ),
        tuple(_win_rates(task, tasks[task], names, confidence) for task, names in models.items() if len(names) > 2),
        tuple(remarks),
    )


def _models(samples: Sequence[Sample], declared: Sequence[str], candidate: str) -> list[str]:
    """Who took part in a task: those that the stage names, whoever else was compared, the candidate last."""
    present = {model for sample in samples for model in (*sample.replies, *sample.scores)}
    others = sorted(present - set(declared))
    return [name for name in dict.fromkeys([*declared, *others]) if name in present and name != candidate] + (
        [candidate] if candidate in present else []
    )


def _task_scores(samples: Sequence[Sample], exposure: Exposure | None, figures: FigureFunction | None) -> TaskScores:
    items = [sample.item for sample in samples]
    values: dict[str, dict[str, list[float | None]]] = {SCORE: {}}
    for number, sample in enumerate(samples):
        for model, score in sample.scores.items():
            for metric, value in {SCORE: score.value, **score.variants}.items():
                column = values.setdefault(metric, {}).setdefault(model, [None] * len(samples))
                column[number] = value
    clusters = [item.cluster for item in items]
    return TaskScores(
        [item.id for item in items],
        values,
        clusters if any(clusters) else [],
        groups_of(items),
        exposure,
        {model: _figures(samples, model, figures) for model in values[SCORE]} if figures else {},
    )


def _figures(samples: Sequence[Sample], model: str, figures: FigureFunction) -> Figures:
    copies: dict[tuple[int, int], Item] = {}

    def copy(number: int, time: int) -> Item:
        """An item that is drawn again is another one, in a cluster of its own: a figure may take clusters together."""
        item = samples[number].item
        if time and item.cluster and (number, time) not in copies:
            copies[number, time] = replace(item, cluster=f"{item.cluster} again {time}")
        return copies.get((number, time), item)

    def of(numbers: Sequence[int]) -> Mapping[str, float]:
        times: Counter[int] = Counter()
        items, scores = [], []
        for number in numbers:
            if model in samples[number].scores:
                items.append(copy(number, times[number]))
                scores.append(samples[number].scores[model])
                times[number] += 1
        return figures(items, scores)

    return of


def _task_score(task: str, model: str, samples: Sequence[Sample], found: TaskScores, confidence: float) -> TaskScore:
    scores = [sample.scores[model] for sample in samples if model in sample.scores]
    replies = [sample.replies[model] for sample in samples if model in sample.replies]
    ended = Counter(reply.finish_reason for reply in replies)
    items = found.scored([model])
    clusters = found.clusters_of(items)

    def mean(numbers: Sequence[int], metric: str = SCORE) -> Estimate:
        return statistics.score(found.of(model, numbers, metric), confidence, found.clusters_of(numbers))

    groups = {grouping: found.members(grouping, items) for grouping in found.groups}
    variants = {metric: found.scored([model], metric) for metric in found.values if metric != SCORE}
    return TaskScore(
        task,
        model,
        mean(items) if items else Estimate(0.0, 0.0, 1.0, 0),
        sum(score.extracted is None for score in scores),
        ended["length"],
        ended["context_length_exceeded"],
        {metric: mean(numbers, metric) for metric, numbers in variants.items() if numbers},
        len(samples) - len(scores),
        len(set(filter(None, clusters))) + clusters.count("") if clusters else len(items),
        {grouping: {name: mean(members) for name, members in of.items()} for grouping, of in groups.items() if of},
        {
            grouping: statistics.macro(
                [found.of(model, members) for members in of.values()],
                confidence,
                found.clusters_by_group(list(of.values())),
            )
            for grouping, of in groups.items()
            if of
        },
        _bootstrapped(found, model, items, confidence),
    )


def _bootstrapped(found: TaskScores, model: str, items: Sequence[int], confidence: float) -> dict[str, Estimate]:
    if model not in found.figures or not items:
        return {}

    def figures(numbers: Sequence[int]) -> Mapping[str, float]:
        return found.figures[model]([items[number] for number in numbers])

    drawn = statistics.bootstrap(figures, len(items), confidence, found.clusters_of(items))
    return {name: drawn[name] for name in sorted(drawn)}


def _comparison(task: str, found: TaskScores, candidate: str, baseline: str, confidence: float) -> Comparison | None:
    """None where the two have no item in common."""
    items = found.scored([candidate, baseline])
    if not items:
        return None
    ours, theirs, clusters = found.of(candidate, items), found.of(baseline, items), found.clusters_of(items)
    difference = statistics.paired_difference(ours, theirs, confidence, clusters)
    return Comparison(
        task,
        baseline,
        difference,
        statistics.win_rate(ours, theirs, confidence, clusters),
        statistics.detectable_effect(difference.spread, difference.n, confidence, design=difference.design),
    )


def _win_rates(task: str, found: TaskScores, models: Sequence[str], confidence: float) -> WinRates:
    def rate(first: str, second: str) -> Estimate | None:
        items = found.scored([first, second])
        if first == second or not items:
            return None
        ours, theirs = found.of(first, items), found.of(second, items)
        return statistics.win_rate(ours, theirs, confidence, found.clusters_of(items))

    return WinRates(task, tuple(models), tuple(tuple(rate(first, second) for second in models) for first in models))
