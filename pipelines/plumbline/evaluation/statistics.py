"""The statistics of reports and gates. Pure: sequences of per-item scores in, numbers out.

Scores lie in [0, 1]. Two sequences that are compared hold the same items in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Scores = Sequence[float]

POWER = 0.8  # the usual convention (Cohen 1988)


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
    """

    p_value: float
    spread: float


def wilson(successes: int, n: int, confidence: float) -> Estimate:
    """A proportion with its score interval (Wilson 1927), which stays in [0, 1] and holds for few items too.

    Raises:
        ValueError: `n` is below 1 or `successes` not within 0…n.
    """
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


def mean(scores: Scores, confidence: float) -> Estimate:
    """A mean with its Student t interval, cut to [0, 1]; one item tells nothing, so its interval is all of it."""
    value, low, high, _ = _student(np.asarray(scores, dtype=np.float64), confidence, (0.0, 1.0))
    return Estimate(value, low, high, len(scores))


def score(scores: Scores, confidence: float) -> Estimate:
    """The score of a model on a task: `wilson` where every item is right or wrong, `mean` where there is more between."""
    if _binary(scores):
        return wilson(round(sum(scores)), len(scores), confidence)
    return mean(scores, confidence)


def paired_difference(candidate: Scores, baseline: Scores, confidence: float) -> Difference:
    """Mean of candidate − baseline over the items, with a normal interval on the per-item differences.

    For right-or-wrong scores half an observation is added to each of the four outcomes before the interval is taken
    (Agresti and Min 2005, Statistics in Medicine 24:729). Without it ten ties would be certainty: a zero-width interval.
    The p-value is McNemar's exact one there, and Student's t otherwise.

    Raises:
        ValueError: the sequences differ in length or are empty.
    """
    differences = _differences(candidate, baseline)
    n = len(differences)
    if not (_binary(candidate) and _binary(baseline)):
        value, low, high, spread = _student(differences, confidence, (-1.0, 1.0))
        return Difference(value, low, high, n, _student_p(value, spread, n), spread)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    centre = (wins - losses) / (n + 2)
    spread = math.sqrt((wins + losses + 1) / (n + 2) - centre**2)
    reach = _z(confidence) * spread / math.sqrt(n + 2)
    return Difference(
        (wins - losses) / n, max(-1.0, centre - reach), min(1.0, centre + reach), n, mcnemar(wins, losses), spread
    )


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
    return float(stats.t.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(sum(parts))


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p-value that wins and losses are equally likely (McNemar 1947); ties do not count."""
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def win_rate(candidate: Scores, baseline: Scores, confidence: float) -> Estimate:
    """(wins + ½·ties) / n over the items, with the interval of `paired_difference` on win 1, tie ½, loss 0.

    Raises:
        ValueError: the sequences differ in length or are empty.
    """
    wins = (_differences(candidate, baseline) > 0).astype(np.float64)
    losses = (_differences(candidate, baseline) < 0).astype(np.float64)
    balance = paired_difference(list(wins), list(losses), confidence)
    return Estimate(0.5 + balance.value / 2, 0.5 + balance.low / 2, 0.5 + balance.high / 2, balance.n)


def detectable_effect(spread: float, n: int, confidence: float, power: float = POWER) -> float:
    """Smallest true effect that `n` items show with this power: (z_level + z_power)·spread/√n.

    Args:
        spread: standard deviation of one item's score or difference.
        n: items.
        confidence: level of the two-sided interval that must lie beyond the limit.
        power: how often it then does.
    """
    return (_z(confidence) + float(stats.norm.ppf(power))) * spread / math.sqrt(n)


def items_needed(effect: float, spread: float, confidence: float, power: float = POWER) -> int | None:
    """How many items show a true effect of this size with this power; None where no number would (an effect of 0)."""
    if effect == 0:
        return None
    return math.ceil(((_z(confidence) + float(stats.norm.ppf(power))) * spread / effect) ** 2)


def _z(confidence: float) -> float:
    return float(stats.norm.ppf(0.5 + confidence / 2))


def _binary(scores: Scores) -> bool:
    return all(value in (0.0, 1.0) for value in scores)


def _differences(candidate: Scores, baseline: Scores) -> npt.NDArray[np.float64]:
    if len(candidate) != len(baseline) or not candidate:
        raise ValueError(f"paired scores need the same items, at least one: {len(candidate)} and {len(baseline)} are given")
    return np.subtract(candidate, baseline, dtype=np.float64)


def _student(
    values: npt.NDArray[np.float64], confidence: float, bounds: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Mean, low, high and standard deviation; one value leaves the whole range open."""
    n, value = len(values), float(values.mean())
    if n < 2:
        return value, *bounds, bounds[1] - bounds[0]
    spread = float(values.std(ddof=1))
    reach = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * spread / math.sqrt(n)
    return value, max(bounds[0], value - reach), min(bounds[1], value + reach), spread


def _student_p(value: float, spread: float, n: int) -> float:
    if n < 2 or value == 0:
        return 1.0
    if spread == 0:
        return 0.0
    return float(2 * stats.t.sf(abs(value) / (spread / math.sqrt(n)), n - 1))
