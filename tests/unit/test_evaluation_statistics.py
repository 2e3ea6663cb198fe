"""Statistics against values computed by hand (z = 1.959964 at 95 %, z = 0.841621 for 80 % power)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from plumbline.evaluation import statistics
from plumbline.evaluation.clusters import Moments

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


# Clusters

graded = st.lists(st.floats(0, 1).map(lambda score: round(score, 6)), min_size=2, max_size=30)  # squares of less leave float


@given(graded)
def test_alone_in_its_cluster_is_the_plain_standard_error(scores: list[float]) -> None:
    found = Moments.of(scores, [f"c{i}" for i in range(len(scores))])
    plain = Moments.of(scores, ())
    assert replace(found, sums=()) == replace(plain, sums=())
    assert sorted(found.sums) == sorted(plain.sums)
    assert found.error == pytest.approx(float(np.std(scores, ddof=1)) / math.sqrt(len(scores)), abs=1e-12)
    assert found.design == 1


@given(graded, st.integers(2, 5))
def test_copies_add_nothing_to_the_standard_error(scores: list[float], copies: int) -> None:
    """k copies of every item: the standard error stays, √k times what k·n independent items would have."""
    names = [f"c{i}" for i in range(len(scores)) for _ in range(copies)]
    copied = Moments.of([score for score in scores for _ in range(copies)], names)
    assert copied.error == pytest.approx(Moments.of(scores, ()).error, abs=1e-12)
    assert copied.design == pytest.approx(copies)
    if min(scores) < max(scores):
        n = len(copied.sums)
        plain = np.std([score for score in scores for _ in range(copies)], ddof=0) / math.sqrt(n * copies)
        assert copied.error * math.sqrt((n - 1) / n) == pytest.approx(math.sqrt(copies) * float(plain))


def test_clustered_mean() -> None:
    # mean 0.5; clusters' residuals 0.2 − 0.1 = 0.1, −0.3 + 0.1 = −0.2, 0.1: √(3/2 · 0.06)/5 = 0.06, t(2) = 4.302653
    scores, names = [0.7, 0.4, 0.2, 0.6, 0.6], ["a", "a", "b", "b", ""]
    found = statistics.mean(scores, LEVEL, names)
    assert (found.low, found.value, found.high) == pytest.approx((0.5 - 0.258159, 0.5, 0.5 + 0.258159), abs=1e-6)
    difference = statistics.paired_difference(scores, [0.1] * 5, LEVEL, names)
    assert (difference.low, difference.high) == pytest.approx((0.4 - 0.258159, 0.4 + 0.258159), abs=1e-6)
    assert difference.p_value == pytest.approx(float(2 * stats.t.sf(0.4 / 0.06, 2)))
    # Σ u² = 0.06, Σ r² = 0.16: the clusters make it smaller, which is not taken for more items
    assert statistics.design_effect(scores, names) == 1


def test_one_cluster_tells_nothing() -> None:
    for scores in ([1.0, 1.0, 0.0], [0.5, 0.25, 0.5]):
        found = statistics.score(scores, LEVEL, ["a"] * 3)
        assert (found.low, found.high) == (0, 1)
        difference = statistics.paired_difference(scores, [0.0] * 3, LEVEL, ["a"] * 3)
        assert (difference.low, difference.high, difference.p_value) == (-1, 1, 1)


def test_clustered_right_or_wrong() -> None:
    # Five copies of 40 items: those of 40, but for the quantile of t: n = 40·(t(199)/t(39))²
    right, names = [float(i < 30) for i in range(40)], [f"c{i}" for i in range(40)]
    found = statistics.score(right * 5, LEVEL, names * 5)
    n = 40 * (stats.t.ppf(0.975, 199) / stats.t.ppf(0.975, 39)) ** 2
    centre, z = 0.75, 1.959964
    reach = z * math.sqrt(centre * (1 - centre) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert found.high - found.low == pytest.approx(2 * reach, rel=1e-5)
    assert found.n == 200
    perfect = statistics.score([1.0] * 200, LEVEL, names * 5)
    assert perfect.high == 1
    assert perfect.low < statistics.wilson(40, 40, LEVEL).low
    assert statistics.score(right, LEVEL, names) == statistics.wilson(30, 40, LEVEL)
    difference = statistics.paired_difference(right * 5, [0.0] * 200, LEVEL, names * 5)
    assert difference.p_value == pytest.approx(2 * 0.5**30)  # thirty clusters win, none loses
    assert difference.design == pytest.approx(5)


def test_equal_items_are_no_certainty() -> None:
    ties = statistics.mean([0.5] * 10, LEVEL)
    assert (ties.low, ties.high) == pytest.approx((0.5 - 0.081665, 0.5 + 0.081665), abs=1e-5)  # z/√12/√12/2
    gains = statistics.paired_difference([0.5] * 4, [0.4] * 4, LEVEL)
    assert gains.low < 0 < gains.value < gains.high
    assert gains.p_value == pytest.approx(2 / 16)
    half = statistics.paired_difference([0.5, 1.0, 0.0, 0.5], [0.5, 0.0, 1.0, 0.5], LEVEL)
    assert half == statistics.paired_difference([1, 1, 0, 0], [1, 0, 1, 0], LEVEL)
    balanced = statistics.mean([0.2, 0.6] * 3, LEVEL, ["a", "a", "b", "b", "c", "c"])
    assert balanced.low < 0.4 < balanced.high


def test_clustered_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """25 tasks of eight items, whose difficulty is the task's own."""
    rng = np.random.default_rng(3)
    names = [f"c{i // 8}" for i in range(200)]
    held, plain = 0, 0
    for _ in range(400):
        difficulty = np.repeat(rng.beta(1.0, 1.0, 25), 8)
        scores = [float(value) for value in rng.random(200) < difficulty]
        found = statistics.score(scores, LEVEL, names)
        held += found.low <= 0.5 <= found.high
        alone = statistics.score(scores, LEVEL)
        plain += alone.low <= 0.5 <= alone.high
    assert 0.925 <= held / 400 <= 0.985
    assert plain / 400 < 0.85


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 1.0]), st.sampled_from("abc")), min_size=2)
)
def test_no_order_of_items_gives_other_numbers(rows: list[tuple[float, float, str]]) -> None:
    def figures(rows: Sequence[tuple[float, float, str]]) -> list[statistics.Estimate]:
        ours, base, names = ([row[i] for row in rows] for i in range(3))
        return [
            statistics.score(ours, LEVEL, names),
            statistics.paired_difference(ours, base, LEVEL, names),
            statistics.win_rate(ours, base, LEVEL, names),
            statistics.macro([ours, base], LEVEL, [names, names]),
        ]

    assert figures(rows) == figures(sorted(rows)) == figures(rows[::-1])


# Means of groups


def test_macro_average() -> None:
    # means 1, 0.5; variances with half an item at each end: 4.5/5·0.5/5 = 0.09 and 0.25, over 4 and 10 items
    groups = [[1.0] * 4, [1.0] * 5 + [0.0] * 5]
    found = statistics.macro(groups, LEVEL)
    error = math.sqrt(0.09 / 4 + 0.25 / 10) / 2
    assert (found.value, found.n) == (0.75, 14)
    assert (found.low, found.high) == pytest.approx((0.75 - 1.959964 * error, 0.75 + 1.959964 * error))
    assert statistics.macro_error(groups) == pytest.approx(error)
    difference = statistics.macro_difference(groups, [[0.0] * 4, [1.0] * 5 + [0.0] * 5], LEVEL)
    # four wins: (4 + 1)/6 − (4/6)² ; ten ties: 1/12
    assert difference.value == 0.5
    assert difference.spread == pytest.approx(math.sqrt(14) * math.sqrt((5 / 6 - 4 / 9) / 4 + 1 / 12 / 10) / 2)
    assert difference.p_value < 0.01
    with pytest.raises(ValueError, match="items in each"):
        statistics.macro([[1.0], []], LEVEL)


def test_macro_average_of_groups_that_are_clusters() -> None:
    """Twenty tasks are what was drawn: the interval is at least that of their means."""
    means = [i / 20 for i in range(20)]
    groups = [[float(k < 40 * mean) for k in range(40)] for mean in means]
    found = statistics.macro(groups, LEVEL, [[f"t{i}"] * 40 for i in range(20)])
    of_means = statistics.mean(means, LEVEL)
    assert (found.value, found.low, found.high) == pytest.approx((of_means.value, of_means.low, of_means.high))
    fixed = statistics.macro(groups, LEVEL)
    assert fixed.high - fixed.low < 0.5 * (found.high - found.low)


def test_macro_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    truth, sizes = (0.95, 0.6, 0.3), (10, 40, 25)
    held = 0
    for _ in range(500):
        groups = [[float(x) for x in rng.random(n) < p] for p, n in zip(truth, sizes, strict=True)]
        found = statistics.macro(groups, LEVEL)
        held += found.low <= sum(truth) / 3 <= found.high
    assert 0.93 <= held / 500 <= 0.985


# Figures that are no means


def test_bootstrap_of_a_mean_is_about_its_standard_error() -> None:
    rng = np.random.default_rng(1)
    values = rng.random(100)
    found = statistics.bootstrap(lambda items: {"mean": float(values[list(items)].mean())}, 100, LEVEL)["mean"]
    assert found.value == pytest.approx(values.mean())
    oracle = stats.bootstrap((values,), np.mean, n_resamples=1000, method="percentile", rng=0).confidence_interval
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=0.01)
    assert found.spread == pytest.approx(values.std(ddof=1), rel=0.1)
    assert found.p_value == pytest.approx(2 / 1001)
    again = statistics.bootstrap(lambda items: {"mean": float(values[list(items)].mean())}, 100, LEVEL)["mean"]
    assert again == found


def test_bootstrap_draws_clusters() -> None:
    values = [float(i // 5 % 2) for i in range(400)]

    def figure(items: Sequence[int]) -> dict[str, float]:
        return {"mean": sum(values[i] for i in items) / len(items)}

    alone = statistics.bootstrap(figure, 400, LEVEL)["mean"]
    whole = statistics.bootstrap(figure, 400, LEVEL, [f"c{i // 5}" for i in range(400)])["mean"]
    assert whole.high - whole.low == pytest.approx(math.sqrt(5) * (alone.high - alone.low), rel=0.2)
    one = statistics.bootstrap(figure, 400, LEVEL, ["c"] * 400, (0.0, 1.0))["mean"]
    assert (one.low, one.high) == (0, 1)


def test_bootstrap_of_a_figure_that_is_often_not_there() -> None:
    found = statistics.bootstrap(lambda items: {"all": 0.5} if len(set(items)) == 40 else {}, 40, LEVEL)
    assert (found["all"].low, found["all"].high) == (-1, 1)
    assert statistics.bootstrap(lambda items: {}, 40, LEVEL) == {}


# Power with clusters


def test_power_with_clusters() -> None:
    assert statistics.detectable_effect(0.5, 100, LEVEL, design=4.0) == pytest.approx(2 * 0.140079, abs=1e-6)
    assert statistics.items_needed(0.1, 0.5, LEVEL, design=4.0) == 785  # 4·196.2
    assert statistics.spread([1.0] * 3 + [0.0] * 4) == pytest.approx(math.sqrt(3.5 / 8 * 4.5 / 8))
    assert 0 < statistics.spread([1.0] * 5) < 0.3
