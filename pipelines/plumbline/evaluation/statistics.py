"""The statistics of reports and gates. Pure: sequences of per-item scores in, numbers out.

Scores lie in [0, 1]. Two sequences that are compared hold the same items in the same order; no order gives other numbers.

Items are not always independent: two turns of a question, several samples of one, the items of one task. `clusters` names for each item
what it shares with others; an empty name, or no names at all, leaves an item alone. Intervals then count clusters, not items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy  # its `stats` takes a second to load, where it is used

from plumbline.evaluation.clusters import Clusters, Moments, design_of, members, student, sums_of

Scores = Sequence[float]

POWER = 0.8  # the usual convention (Cohen 1988)
RESAMPLES, FEWEST_RESAMPLES, DRAWS = 1000, 200, 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure with its two-sided interval, from `n` items."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference.

    Attributes:
        p_value: two-sided, of no difference.
        spread: standard deviation of one item's difference, for power calculations.
        design: how many times larger clusters make the variance of the mean (`design_effect`).
    """

    p_value: float
    spread: float
    design: float = 1.0


def wilson(successes: int, n: int, confidence: float) -> Estimate:
    """A proportion with its score interval (Wilson 1927), which stays in [0, 1] and holds for few items too.

    Raises:
        ValueError: `n` is below 1 or `successes` not within 0…n.
    """
    interval = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


def mean(scores: Scores, confidence: float, clusters: Clusters = ()) -> Estimate:
    """A mean with its Student t interval, cut to [0, 1]; one cluster tells nothing, so its interval is all of it.

    The standard error is clustered, with the correction for few clusters: √(G/(G−1) · Σ_g (Σ_{i in g} (x_i − mean))²) / n with G − 1 degrees
    of freedom (Liang and Zeger 1986). Of items that stand alone it is the plain one. Scores that are all the same but neither 0 nor 1
    have the interval of `paired_difference`: equality of a few is no certainty.
    """
    found = Moments.of(scores, clusters)
    low, high = _student(found, confidence, (0.0, 1.0))
    if found.constant and found.units > 1:
        signed = _agresti_min(2 * found.value - 1, (2 * found.value - 1) ** 2, found.effective(confidence), confidence)
        low, high = 0.5 + signed.low / 2, 0.5 + signed.high / 2
    return Estimate(found.value, low, high, found.n)


def score(scores: Scores, confidence: float, clusters: Clusters = ()) -> Estimate:
    """The score of a model on a task: `wilson` where every item is right or wrong, `mean` where there is more between.

    With clusters Wilson's interval is that of the effective number of items (`Moments.effective`).
    """
    if not _binary(scores):
        return mean(scores, confidence, clusters)
    found = Moments.of(scores, clusters)
    if found.units == found.n:
        return wilson(round(math.fsum(scores)), found.n, confidence)
    if found.units == 1:
        return Estimate(found.value, 0.0, 1.0, found.n)
    n, z = found.effective(confidence), _z(confidence)
    centre = (found.value + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(found.value * (1 - found.value) / n + z**2 / (4 * n**2))
    return Estimate(found.value, max(0.0, centre - reach), min(1.0, centre + reach), found.n)


def spread(scores: Scores) -> float:
    """Standard deviation of one item's score, for power calculations. Half an item at 0 and half one at 1 are added: a perfect score on a few
    items would else claim none."""
    n, value = len(scores) + 1, (math.fsum(scores) + 0.5) / (len(scores) + 1)
    return math.sqrt(max(0.0, (math.fsum(one * one for one in scores) + 0.5) / n - value**2))


def design_effect(values: Scores, clusters: Clusters) -> float:
    """How many times larger clusters make the variance of a mean (Kish 1965), at least 1: k where items come k times, 1 where they stand alone."""
    return Moments.of(values, clusters).design


def paired_difference(candidate: Scores, baseline: Scores, confidence: float, clusters: Clusters = ()) -> Difference:
    """Mean of candidate − baseline over the items, with a normal interval on the per-item differences.

    Where every difference is a win, a loss or a tie (1, −1, 0), half an observation is added to each of the four outcomes of two right-or-wrong
    scores before the interval is taken (Agresti and Min 2005, Statistics in Medicine 24:729). Without it ten ties would be certainty: a
    zero-width interval. The p-value is McNemar's exact one there, and Student's t otherwise. The same holds for graded scores whose differences
    are all the same.

    With clusters the counts are those of the effective number of items, and McNemar's test takes a cluster for a win or a loss
    by its sum.

    Raises:
        ValueError: the sequences differ in length or are empty.
    """
    differences = _differences(candidate, baseline)
    found = Moments.of(differences, clusters)
    signs = all(value in (-1.0, 0.0, 1.0) for value in differences)
    if not signs and not (found.constant and found.units > 1):
        low, high = _student(found, confidence, (-1.0, 1.0))
        return Difference(found.value, low, high, found.n, _student_p(found), found.spread, found.design)
    second = math.fsum(value * value for value in differences) / found.n
    of_item = _agresti_min(found.value, second, found.n, confidence).spread
    if found.units == 1 < found.n:
        return Difference(found.value, -1.0, 1.0, found.n, 1.0, of_item, found.design)
    interval = _agresti_min(found.value, second, found.effective(confidence), confidence)
    p_value = mcnemar(sum(one > 0 for one in found.sums), sum(one < 0 for one in found.sums))
    return Difference(found.value, interval.low, interval.high, found.n, p_value, of_item, found.design)


def independent_difference(first: Scores, second: Scores, confidence: float) -> Estimate:
    """Mean of the first minus mean of the second, of different items, with its interval.

    For right-or-wrong scores one success and one failure are added to each side before the interval is taken (Agresti and
    Caffo 2000, The American Statistician 54:280). Otherwise it is Welch's, and all of [-1, 1] where a side has one item.

    Raises:
        ValueError: one of them is empty.
    """
    if not first or not second:
        raise ValueError(f"a difference needs items on both sides: {len(first)} and {len(second)} are given")
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    value, n = float(a.mean() - b.mean()), len(a) + len(b)
    if _binary(first) and _binary(second):
        shares = [((side.sum() + 1) / (len(side) + 2), len(side) + 2) for side in (a, b)]
        centre = float(shares[0][0] - shares[1][0])
        reach = _z(confidence) * math.sqrt(sum(share * (1 - share) / size for share, size in shares))
    elif min(len(a), len(b)) < 2:
        return Estimate(value, -1.0, 1.0, n)
    else:
        centre, reach = value, _welch(a, b, confidence)
    return Estimate(value, max(-1.0, centre - reach), min(1.0, centre + reach), n)


def _welch(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], confidence: float) -> float:
    """Half the width of Welch's interval (1947)."""
    parts = [float(side.var(ddof=1)) / len(side) for side in (a, b)]
    if not sum(parts):
        return 0.0
    freedom = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (a, b), strict=True))
    return student(confidence, freedom) * math.sqrt(sum(parts))


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p-value that wins and losses are equally likely (McNemar 1947); ties do not count."""
    return float(scipy.stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def win_rate(candidate: Scores, baseline: Scores, confidence: float, clusters: Clusters = ()) -> Estimate:
    """(wins + ½·ties) / n over the items, with the interval of `paired_difference` on win 1, tie ½, loss 0.

    Raises:
        ValueError: the sequences differ in length or are empty.
    """
    differences = _differences(candidate, baseline)
    wins, losses = ([float(value) for value in side] for side in (differences > 0, differences < 0))
    balance = paired_difference(wins, losses, confidence, clusters)
    return Estimate(0.5 + balance.value / 2, 0.5 + balance.low / 2, 0.5 + balance.high / 2, balance.n)


def macro(groups: Sequence[Scores], confidence: float, clusters: Sequence[Clusters] = ()) -> Estimate:
    """Mean of the groups' means: every group counts the same. The groups are fixed, their items drawn: variances of the means add.

    Half an item at 0 and half one at 1 are added to the variance of each group, so that one that is all right is not certain. With clusters
    the interval is Student's with G − 1 degrees of freedom, and where each group is one cluster the groups are drawn too.

    Args:
        groups: the scores of each group, none of them empty.
        confidence: level of the interval.
        clusters: of the items of each group, in the same order. A cluster may reach over groups.

    Raises:
        ValueError: there is no group, or one is empty.
    """
    found = _Strata.of(groups, clusters, lambda scores: spread(scores) ** 2)
    reach = found.reach(confidence)
    return Estimate(found.value, max(0.0, found.value - reach), min(1.0, found.value + reach), found.n)


def macro_error(groups: Sequence[Scores], clusters: Sequence[Clusters] = ()) -> float:
    """Standard error of `macro`."""
    return _Strata.of(groups, clusters, lambda scores: spread(scores) ** 2).error


def macro_difference(
    candidate: Sequence[Scores], baseline: Sequence[Scores], confidence: float, clusters: Sequence[Clusters] = ()
) -> Difference:
    """`macro` of the candidate minus that of the baseline on the same items, with the variance of `paired_difference` in each group.

    Raises:
        ValueError: there is no group, one is empty, or the two differ in length.
    """

    def variance(values: Scores) -> float:
        first, second = (math.fsum(one**power for one in values) / len(values) for power in (1, 2))
        return _agresti_min(first, second, len(values), confidence).spread ** 2

    groups = [list(_differences(ours, theirs)) for ours, theirs in zip(candidate, baseline, strict=True)]
    found = _Strata.of(groups, clusters, variance)
    reach = found.reach(confidence)
    low, high = max(-1.0, found.value - reach), min(1.0, found.value + reach)
    p_value = float(2 * scipy.stats.t.sf(abs(found.value) / found.error, found.freedom))
    return Difference(found.value, low, high, found.n, p_value, found.error * math.sqrt(found.n))


@dataclass(frozen=True)
class _Strata:
    """Mean of the means of groups.

    Attributes:
        value, error: the mean and its standard error.
        freedom: degrees of freedom of its interval; infinite where items are independent.
        n: items.
    """

    value: float
    error: float
    freedom: float
    n: int

    @staticmethod
    def of(groups: Sequence[Scores], clusters: Sequence[Clusters], variance: Callable[[Scores], float]) -> _Strata:
        """Clusters multiply the variance by Σ_g u_g² / Σ r_i², r_i an item's weighted residual and u_g their sum in a cluster, but at least by 1."""
        if not groups or not all(len(values) for values in groups):
            raise ValueError(f"a mean of groups needs items in each: {[len(values) for values in groups]} are given")
        count, means = len(groups), [math.fsum(values) / len(values) for values in groups]
        value = math.fsum(means) / count
        square = math.fsum(variance(values) / len(values) for values in groups) / count**2
        residuals = [(x - mean) / len(values) for values, mean in zip(groups, means, strict=True) for x in values]
        sums = sums_of(residuals, [name for group in clusters for name in group])
        n, units = len(residuals), len(sums)
        if units == n:
            return _Strata(value, math.sqrt(square), math.inf, n)
        square *= design_of(residuals, sums)
        if count > 1 and units == count and all(len(set(group)) == 1 for group in clusters):
            square = max(square, math.fsum((mean - value) ** 2 for mean in means) / (count - 1) / count)
        return _Strata(value, math.sqrt(square), max(1, units - 1), n)

    def reach(self, confidence: float) -> float:
        """Half the width of the interval."""
        return student(confidence, self.freedom) * self.error


def bootstrap(
    figures: Callable[[Sequence[int]], Mapping[str, float]],
    n: int,
    confidence: float,
    clusters: Clusters = (),
    bounds: tuple[float, float] = (-1.0, 1.0),
    seed: int = 0,
) -> dict[str, Difference]:
    """Figures that are no means of items, with percentile intervals of resamples of the clusters (Efron 1979): `RESAMPLES` of them, fewer where there
    are so many items that they would take minutes.

    Args:
        figures: numbers of items, some of them several times → figure by name. A name may be absent where the items do not give it.
        n: items.
        confidence: level of the intervals.
        clusters: of each item.
        bounds: what the figures lie in: the interval where there are fewer than two clusters, or hardly any resample has the figure.
        seed: of the resamples.

    Returns:
        For each figure that all items together give: its value, interval, two-sided p-value of 0 and spread (of one item, for power).
    """
    units = members(clusters, n)
    rng = np.random.default_rng(seed)
    whole = figures(range(n))
    drawn: dict[str, list[float]] = {name: [] for name in whole}
    rounds = min(RESAMPLES, max(FEWEST_RESAMPLES, DRAWS // n)) if len(units) > 1 else 0
    for _ in range(rounds):
        items = [item for unit in rng.integers(0, len(units), len(units)) for item in units[unit]]
        for name, value in figures(items).items():
            if name in drawn:
                drawn[name].append(value)
    return {name: _percentile(value, drawn[name], rounds, n, confidence, bounds) for name, value in whole.items()}


def _percentile(
    value: float, drawn: Sequence[float], rounds: int, n: int, confidence: float, bounds: tuple[float, float]
) -> Difference:
    if not rounds or len(drawn) < rounds / 2:
        return Difference(value, *bounds, n, 1.0, (bounds[1] - bounds[0]) / 2 * math.sqrt(n))
    low, high = (float(one) for one in np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2]))
    tail = min(sum(one <= 0 for one in drawn), sum(one >= 0 for one in drawn))
    p_value = min(1.0, 2 * (tail + 1) / (len(drawn) + 1))
    return Difference(value, min(low, value), max(high, value), n, p_value, float(np.std(drawn, ddof=1)) * math.sqrt(n))


def detectable_effect(spread: float, n: int, confidence: float, power: float = POWER, design: float = 1.0) -> float:
    """Smallest true effect that `n` items show with this power: (z_level + z_power)·spread·√(design/n).

    Args:
        spread: standard deviation of one item's score or difference.
        n: items.
        confidence: level of the two-sided interval that must lie beyond the limit.
        power: how often it then does.
        design: how many times larger clusters make the variance.
    """
    return (_z(confidence) + float(scipy.stats.norm.ppf(power))) * spread * math.sqrt(design / n)


def items_needed(effect: float, spread: float, confidence: float, power: float = POWER, design: float = 1.0) -> int | None:
    """How many items, clustered as these are, show a true effect of this size with this power; None where no number would (an effect of 0)."""
    if effect == 0:
        return None
    return math.ceil(design * ((_z(confidence) + float(scipy.stats.norm.ppf(power))) * spread / effect) ** 2)


def _z(confidence: float) -> float:
    return float(scipy.stats.norm.ppf(0.5 + confidence / 2))


def _binary(scores: Scores) -> bool:
    return all(value in (0.0, 1.0) for value in scores)


def _differences(candidate: Scores, baseline: Scores) -> npt.NDArray[np.float64]:
    if len(candidate) != len(baseline) or not candidate:
        raise ValueError(f"paired scores need the same items, at least one: {len(candidate)} and {len(baseline)} are given")
    return np.subtract(candidate, baseline, dtype=np.float64)


@dataclass(frozen=True)
class _Signed:
    low: float
    high: float
    spread: float


def _agresti_min(first: float, second: float, n: float, confidence: float) -> _Signed:
    """Interval and spread of `n` differences in [-1, 1] with these first and second moments, two observations added: half a win, half a loss, a tie."""
    centre = first * n / (n + 2)
    spread = math.sqrt((second * n + 1) / (n + 2) - centre**2)
    reach = _z(confidence) * spread / math.sqrt(n + 2)
    return _Signed(max(-1.0, centre - reach), min(1.0, centre + reach), spread)


def _student(found: Moments, confidence: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """Low and high; one cluster leaves the whole range open."""
    if found.units < 2:
        return bounds
    reach = student(confidence, found.units - 1) * found.error
    return max(bounds[0], found.value - reach), min(bounds[1], found.value + reach)


def _student_p(found: Moments) -> float:
    if found.units < 2 or found.value == 0:
        return 1.0
    return float(2 * scipy.stats.t.sf(abs(found.value) / found.error, found.units - 1))
