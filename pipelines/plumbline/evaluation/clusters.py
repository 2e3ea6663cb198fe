"""Items that are not independent, and what they do to the mean. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import scipy

Clusters = Sequence[str]
"""For each item the name of what it shares with others; "" where it stands alone. Without any name at all every item does."""


@dataclass(frozen=True)
class Moments:
    """What intervals of a mean need.

    Attributes:
        n, units: items and clusters.
        value: the mean.
        spread: standard deviation of the items (n − 1); of one, which has none, the largest that differences can have.
        error: clustered standard error of the mean; infinite with one cluster.
        design: see `design_effect`.
        constant: all values are the same.
        sums: sum of each cluster.
    """

    n: int
    units: int
    value: float
    spread: float
    error: float
    design: float
    constant: bool
    sums: tuple[float, ...]

    @staticmethod
    def of(values: Iterable[float], clusters: Clusters) -> Moments:
        """Of the values of items; none of the numbers depends on their order."""
        values = [float(value) for value in values]
        n, value = len(values), math.fsum(values) / len(values)
        constant = min(values) == max(values)
        residuals = [0.0 if constant else one - value for one in values]
        sums = sums_of(residuals, clusters)
        units = len(sums)
        spread = math.sqrt(math.fsum(one * one for one in residuals) / (n - 1)) if n > 1 else 1.0
        square = math.fsum(one * one for one in sums)
        error = math.sqrt(units / (units - 1) * square) / n if units > 1 else math.inf
        error = error or spread / math.sqrt(n)  # clusters that all balance are no certainty either
        design = design_of(residuals, sums)
        return Moments(n, units, value, spread, error, design, constant, tuple(sums_of(values, clusters)))

    def effective(self, confidence: float) -> float:
        """How many independent items tell as much: n / design effect · (t_{n−1} / t_{G−1})² (Korn and Graubard 1998, Survey Methodology 24:193).

        Of one cluster with several items it is not defined.
        """
        if self.units == self.n:
            return float(self.n)
        return self.n / self.design * (student(confidence, self.n - 1) / student(confidence, self.units - 1)) ** 2


def student(confidence: float, freedom: float) -> float:
    """Half the width of Student's two-sided interval in standard errors; normal where `freedom` is infinite."""
    return float(scipy.stats.t.ppf(0.5 + confidence / 2, freedom))


def members(clusters: Clusters, n: int) -> list[list[int]]:
    """Numbers of the items of each cluster; those without a name are clusters of their own.

    Raises:
        ValueError: not every item has its cluster.
    """
    if clusters and len(clusters) != n:
        raise ValueError(f"every item needs its cluster: {n} items and {len(clusters)} clusters are given")
    alone: list[list[int]] = []
    named: dict[str, list[int]] = {}
    for item, name in enumerate(clusters or [""] * n):
        if name:
            named.setdefault(name, []).append(item)
        else:
            alone.append([item])
    return alone + [named[name] for name in sorted(named)]


def sums_of(values: Sequence[float], clusters: Clusters) -> list[float]:
    """Sum of each cluster."""
    if not clusters:
        return list(values)
    return [math.fsum(values[item] for item in items) for items in members(clusters, len(values))]


def design_of(residuals: Sequence[float], sums: Sequence[float]) -> float:
    """How many times larger clusters make the variance of a mean (Kish 1965), at least 1, from the residuals of items and their sums in clusters."""
    if len(sums) == len(residuals):
        return 1.0
    square = math.fsum(one * one for one in residuals)
    if not square:  # where nothing varies nothing tells how alike a cluster's items are: each cluster counts as one item
        return len(residuals) / len(sums)
    return max(1.0, math.fsum(one * one for one in sums) / square)
