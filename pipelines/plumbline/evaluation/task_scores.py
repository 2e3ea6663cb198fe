"""What every model scored on the items of a task, and what a metric of it comes to, alone or against a baseline. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from plumbline.evaluation import statistics
from plumbline.evaluation.benchmarks.benchmark import Item
from plumbline.evaluation.contamination import Exposure
from plumbline.evaluation.statistics import Difference, Estimate

Figures = Callable[[Sequence[int]], Mapping[str, float]]

SCORE, MACRO, UNDECIDED = "score", "macro", "undecided"


@dataclass(frozen=True)
class TaskScores:
    """The items of one task and what every model scored.

    Attributes:
        items: their ids.
        values: metric → model → value of each item, in the order of `items`, in [0, 1]. Of `score` None is an item that could not be scored,
            of others one that the metric leaves out. Where there is `undecided`, 1 is a reply that the benchmark could not make out.
        clusters: of each item; none: all stand alone.
        groups: grouping → group of each item, "" where it has none; the first grouping is what `macro` means.
        exposure: what is known of the questions in the training data; None: nothing is.
        figures: model → figures that are no means of items, in [-1, 1], from the numbers of items, of which some may come several times.
    """

    items: Sequence[str]
    values: Mapping[str, Mapping[str, Sequence[float | None]]]
    clusters: Sequence[str] = ()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    exposure: Exposure | None = None
    figures: Mapping[str, Figures] = field(default_factory=dict)

    def scored(self, models: Sequence[str], metric: str = SCORE) -> list[int]:
        """Numbers of the items for which all these models have a value, in the order of the items' ids."""
        columns = [self.values.get(metric, {}).get(model, [None] * len(self.items)) for model in models]
        order = sorted(range(len(self.items)), key=lambda item: self.items[item])
        return [item for item in order if all(column[item] is not None for column in columns)]

    def of(self, model: str, items: Sequence[int], metric: str = SCORE) -> list[float]:
        """The values of these items."""
        column = self.values[metric][model]
        return [value for item in items if (value := column[item]) is not None]

    def clusters_of(self, items: Sequence[int]) -> list[str]:
        """Their clusters. Items that are all of one cluster have none: it is what is asked about then, and they are its independent draws."""
        found = [self.clusters[item] for item in items] if self.clusters else []
        return [] if len(set(found)) == 1 else found

    def clusters_by_group(self, groups: Sequence[Sequence[int]]) -> list[list[str]]:
        """The clusters of the items of each group."""
        return [[self.clusters[item] for item in items] for items in groups] if self.clusters else []

    def members(self, grouping: str, items: Sequence[int]) -> dict[str, list[int]]:
        """Those of the items that have a group, by group, the groups in the order of their names."""
        found: dict[str, list[int]] = {}
        for item in items:
            if self.groups[grouping][item]:
                found.setdefault(self.groups[grouping][item], []).append(item)
        return {name: found[name] for name in sorted(found)}

    def has(self, metric: str) -> bool:
        """Whether a rule can judge it."""
        return metric in self.values or metric in group_metrics(self.groups) or metric in self.metrics()

    def metrics(self) -> list[str]:
        """What a rule can judge."""
        named = [name for name in self.values if name != SCORE]
        figures = [name for figure in self.figures.values() for name in figure(range(len(self.items)))]
        return list(dict.fromkeys([SCORE, *sorted(named), *sorted(figures), *group_metrics(self.groups)]))


@dataclass(frozen=True)
class Measured:
    """A figure, or a difference of two, with what power calculations need.

    Attributes:
        estimate: with its interval.
        spread: standard deviation of one item.
        design: how many times larger clusters make the variance.
        confidence: level of the interval.
    """

    estimate: Estimate
    spread: float
    design: float
    confidence: float

    @staticmethod
    def of(difference: Difference, confidence: float) -> Measured:
        """Of a difference."""
        return Measured(difference, difference.spread, difference.design, confidence)

    @property
    def detectable(self) -> float:
        """Smallest distance that the items show with 80 % power."""
        return statistics.detectable_effect(self.spread, self.estimate.n, self.confidence, design=self.design)

    def needed(self, distance: float) -> int | None:
        """How many items would show this one."""
        return statistics.items_needed(distance, self.spread, self.confidence, design=self.design)


def groups_of(items: Sequence[Item]) -> dict[str, list[str]]:
    """Grouping → group of each item, "" where it has none."""
    names = dict.fromkeys(name for item in items for name in item.groups)
    return {name: [item.groups.get(name, "") for item in items] for name in names}


def group_metrics(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The metrics that groups give: their macro averages, then each group."""
    each = [f"{grouping}={group}" for grouping, of in groups.items() for group in sorted(set(of) - {""})]
    return [*([MACRO] if groups else []), *(f"{MACRO}:{grouping}" for grouping in groups), *each]


def measure(
    task: TaskScores, metric: str, models: Sequence[str], items: Sequence[int], confidence: float
) -> Measured | None:
    """A metric of one model, or of the first minus the second.

    Args:
        task: what they scored.
        metric: one of `task.metrics()`.
        models: one or two.
        items: numbers of the items that count; all the models have a score on them.
        confidence: level of the interval.

    Returns:
        None where the metric has no value on these items.
    """
    if metric in task.values:
        known = frozenset(task.scored(models, metric))
        return _mean(task, metric, models, [item for item in items if item in known], confidence)
    if metric not in group_metrics(task.groups):
        return _bootstrapped(task, metric, models, items, confidence)
    if metric == MACRO or metric.startswith(f"{MACRO}:"):
        members = task.members(metric.partition(":")[2] or next(iter(task.groups)), items)
        return _macro(task, models, list(members.values()), confidence)
    grouping = next(one for one in task.groups if metric.removeprefix(f"{one}=") in task.groups[one])
    group = task.members(grouping, items).get(metric.removeprefix(f"{grouping}="), [])
    return _mean(task, SCORE, models, group, confidence)


def _mean(task: TaskScores, metric: str, models: Sequence[str], items: Sequence[int], confidence: float) -> Measured | None:
    if not items:
        return None
    columns, clusters = [task.of(model, items, metric) for model in models], task.clusters_of(items)
    if len(columns) == 2:
        return Measured.of(statistics.paired_difference(columns[0], columns[1], confidence, clusters), confidence)
    [values] = columns
    estimate = statistics.score(values, confidence, clusters)
    return Measured(estimate, statistics.spread(values), statistics.design_effect(values, clusters), confidence)


def _macro(task: TaskScores, models: Sequence[str], groups: Sequence[Sequence[int]], confidence: float) -> Measured | None:
    if not groups:
        return None
    columns = [[task.of(model, items) for items in groups] for model in models]
    clusters = task.clusters_by_group(groups)
    if len(columns) == 2:
        return Measured.of(statistics.macro_difference(columns[0], columns[1], confidence, clusters), confidence)
    [values] = columns
    estimate = statistics.macro(values, confidence, clusters)
    return Measured(estimate, statistics.macro_error(values, clusters) * math.sqrt(estimate.n), 1.0, confidence)


def _bootstrapped(
    task: TaskScores, metric: str, models: Sequence[str], items: Sequence[int], confidence: float
) -> Measured | None:
    if not items or not all(model in task.figures for model in models):
        return None

    def figure(numbers: Sequence[int]) -> dict[str, float]:
        found = [task.figures[model]([items[number] for number in numbers]).get(metric) for model in models]
        values = [value for value in found if value is not None]
        return {metric: values[0] - sum(values[1:])} if len(values) == len(models) else {}

    bound = float(len(models))  # a difference of two lies in [-2, 2]
    drawn = statistics.bootstrap(figure, len(items), confidence, task.clusters_of(items), (-bound, bound))
    return Measured.of(drawn[metric], confidence) if metric in drawn else None
