"""Statistics against values computed by hand (z = 1.959964 at 95 %, z = 0.841621 for 80 % power)."""

from __future__ import annotations

import random

import pytest
from scipy import stats

from plumbline.evaluation import statistics

LEVEL = 0.95


def paired(wins: int, losses: int, ties: int) -> tuple[list[float], list[float]]:
    return [1.0] * wins + [0.0] * losses + [1.0] * ties, [0.0] * wins + [1.0] * losses + [1.0] * ties


def test_wilson_interval() -> None:
    # centre = (8 + z²/2)/(10 + z²) = 0.7168, reach = z·√(10·0.8·0.2 + z²/4)/(10 + z²) = 0.2266
    estimate = statistics.wilson(8, 10, LEVEL)
    assert (estimate.value, estimate.n) == (0.8, 10)
    assert (estimate.low, estimate.high) == pytest.approx((0.49016, 0.94331), abs=1e-5)


def test_wilson_at_the_ends_is_not_certain() -> None:
    # all wrong: high = z²/(n + z²)
    nothing = statistics.wilson(0, 20, LEVEL)
    assert (nothing.low, nothing.high) == pytest.approx((0, 3.841459 / 23.841459), abs=1e-6)
    everything = statistics.wilson(20, 20, LEVEL)
    assert everything.low == pytest.approx(1 - 3.841459 / 23.841459, abs=1e-6)


def test_mean_interval() -> None:
    # sd = √(0.02/3), t(3) = 3.182446, reach = t·sd/2 = 0.129923
    estimate = statistics.mean([0.4, 0.5, 0.6, 0.5], LEVEL)
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((0.370077, 0.5, 0.629923), abs=1e-6)
    assert statistics.score([0.4, 0.5, 0.6, 0.5], LEVEL) == estimate
    assert statistics.score([1, 0, 1], LEVEL) == statistics.wilson(2, 3, LEVEL)
    alone = statistics.mean([0.5], LEVEL)
    assert (alone.low, alone.high) == (0, 1)


def test_paired_difference() -> None:
    # centre = 10/100, spread = √(31/100 − 0.01) = √0.3, reach = z·√0.3/10 = 0.107352
    difference = statistics.paired_difference(*paired(20, 10, 68), LEVEL)
    assert difference.value == pytest.approx(10 / 98)
    assert (difference.low, difference.high) == pytest.approx((-0.007352, 0.207352), abs=1e-6)
    assert difference.spread == pytest.approx(0.3**0.5)
    assert difference.p_value == pytest.approx(0.098737, abs=1e-6)


def test_paired_difference_of_graded_scores() -> None:
    # differences 0.1, 0.2, 0.3: mean 0.2, sd 0.1, t(2) = 4.302653, reach = 0.248414
    difference = statistics.paired_difference([0.5, 0.6, 0.7], [0.4, 0.4, 0.4], LEVEL)
    assert (difference.low, difference.value, difference.high) == pytest.approx((-0.048414, 0.2, 0.448414), abs=1e-6)
    assert difference.p_value == pytest.approx(0.074180, abs=1e-5)  # t = 3.4641 with 2 degrees of freedom


def test_ties_alone_are_no_certainty() -> None:
    one = statistics.paired_difference([1], [1], LEVEL)
    assert (one.value, one.p_value) == (0, 1)
    assert one.low < -0.5
    many = statistics.paired_difference([1] * 998, [1] * 998, LEVEL)
    assert many.high == pytest.approx(1.959964 / 1000, abs=1e-6)


def test_mcnemar_is_exact() -> None:
    assert statistics.mcnemar(5, 0) == pytest.approx(2 / 32)
    assert statistics.mcnemar(1, 3) == pytest.approx(2 * 5 / 16)
    assert statistics.mcnemar(4, 4) == 1
    assert statistics.mcnemar(0, 0) == 1


def test_win_rate_counts_ties_half() -> None:
    rate = statistics.win_rate(*paired(20, 10, 68), LEVEL)
    assert rate.value == pytest.approx((20 + 34) / 98)
    assert (rate.low, rate.high) == pytest.approx((0.5 - 0.003676, 0.5 + 0.103676), abs=1e-6)
    graded = statistics.win_rate([0.9, 0.2, 0.5], [0.1, 0.3, 0.5], LEVEL)
    assert graded.value == 0.5


def test_power() -> None:
    # (1.959964 + 0.841621)·0.5/10
    assert statistics.detectable_effect(0.5, 100, LEVEL) == pytest.approx(0.140079, abs=1e-6)
    assert statistics.items_needed(0.1, 0.5, LEVEL) == 197  # (2.801585·5)² = 196.2
    assert statistics.items_needed(-0.1, 0.5, LEVEL) == 197
    assert statistics.items_needed(0.0, 0.5, LEVEL) is None


@pytest.mark.parametrize(("candidate", "baseline"), [([], []), ([1.0], [1.0, 0.0])])
def test_unpaired_scores_are_refused(candidate: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError, match="same items"):
        statistics.paired_difference(candidate, baseline, LEVEL)


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(600):
        ours = [float(rng.random() < 0.30) for _ in range(40)]
        theirs = [float(rng.random() < 0.15) for _ in range(40)]
        difference = statistics.paired_difference(ours, theirs, LEVEL)
        covered += difference.low <= 0.15 <= difference.high
    assert 0.93 <= covered / 600 <= 0.98


def test_independent_difference() -> None:
    # 9 of 10 and 3 of 10: shares 10/12 and 4/12, reach = z·√((10/12·2/12 + 4/12·8/12)/12) = 0.340000
    right = statistics.independent_difference([1.0] * 9 + [0.0], [1.0] * 3 + [0.0] * 7, LEVEL)
    assert (right.value, right.n) == (pytest.approx(0.6), 20)
    assert (right.low, right.high) == pytest.approx((0.160000, 0.840000), abs=2e-6)
    ties = statistics.independent_difference([1.0], [1.0], LEVEL)
    assert ties.low < ties.value == 0 < ties.high
    first, second = [0.2, 0.4, 0.6], [0.5, 0.5, 0.8, 0.6]
    found = statistics.independent_difference(first, second, LEVEL)
    oracle = stats.ttest_ind(first, second, equal_var=False).confidence_interval(LEVEL)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))
    alone = statistics.independent_difference([0.5], second, LEVEL)
    assert (alone.low, alone.high) == (-1, 1)
    with pytest.raises(ValueError, match="3 and 0 are given"):
        statistics.independent_difference(first, [], LEVEL)


def test_intervals_of_independent_differences_hold_the_truth_as_often_as_they_say() -> None:
    rng = random.Random(11)
    held = 0
    for _ in range(1000):
        first = [float(rng.random() < 0.8) for _ in range(25)]
        second = [float(rng.random() < 0.5) for _ in range(80)]
        found = statistics.independent_difference(first, second, LEVEL)
        held += found.low <= 0.3 <= found.high
    assert 0.93 <= held / 1000 <= 0.98
