"""Ratings against published figures, values computed by hand, and another optimiser."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from plumbline.evaluation.ratings import length_control
from plumbline.evaluation.ratings.battles import Arena, Battle, Judgments, Positions, Preference, Score, positions
from plumbline.evaluation.ratings.bradley_terry import CENTRE, POINTS, Disconnected, bradley_terry, groups_of, unbounded
from plumbline.evaluation.ratings.elo import elo
from plumbline.evaluation.ratings.formats import read_judgments
from plumbline.evaluation.ratings.length_control import Anchors, Weights
from plumbline.evaluation.ratings.rating import rate
from plumbline.evaluation.ratings.scores import mean_scores
from plumbline.evaluation.ratings.terms import read_difficulties, read_weights
from plumbline.evaluation.ratings.win_rate import outcomes_of, win_rate

MODELS = ("gpt-3.5-turbo-1106", "wizardlm-13b", "alpaca-7b")


def battles(first: str, second: str, won: int, lost: int, tied: int = 0) -> list[Battle]:
    results = [1.0] * won + [0.0] * lost + [0.5] * tied
    return [Battle(first, second, outcome) for outcome in results]


def random_battles(models: int, count: int, seed: int) -> list[Battle]:
    draw = np.random.default_rng(seed)
    strength = draw.normal(size=models)
    found = []
    for _ in range(count):
        one, other = draw.choice(models, 2, replace=False)
        won = draw.random() < 1 / (1 + math.exp(strength[other] - strength[one]))
        found.append(Battle(f"m{one}", f"m{other}", 0.5 if draw.random() < 0.15 else float(won), int(draw.integers(1, 4))))
    return found


def test_published_alpaca_eval(shared: Path) -> None:
    folder = shared / "alpaca_eval"
    with (folder / "golden_v2_leaderboard.csv").open() as stream:
        published = {row[""]: row for row in csv.DictReader(stream)}
    found = rate(
        read_judgments("alpaca_eval", [str(folder / "golden_v2_items.csv")]),
        rounds=0,
        weights=read_weights(str(folder / "golden_v2_lc_weights.csv")),
        difficulties=read_difficulties(str(folder / "golden_v2_instruction_difficulty.csv")),
    )
    rows = {row["model"]: row for row in found.record()["win_rates"]}
    assert set(rows) == set(published) == set(MODELS)
    for model, row in rows.items():
        for name in ("win_rate", "standard_error", "discrete_win_rate"):
            assert row[name] == pytest.approx(float(published[model][name]), abs=1e-9), (model, name)
        for name in ("n_wins", "n_wins_base", "n_draws", "n_total"):
            assert row[name] == int(published[model][name]), (model, name)
        assert row["length_controlled_winrate"] == pytest.approx(
            float(published[model]["length_controlled_winrate"]), abs=1e-6
        )
        assert int(row["avg_length"]) == int(published[model]["avg_length"])


def test_fitted_length_control_comes_near_the_published(shared: Path) -> None:
    """Without the anchors, which are not there, it cannot be exact; the raw rate of the first model is 10 points off."""
    folder = shared / "alpaca_eval"
    with (folder / "golden_v2_leaderboard.csv").open() as stream:
        published = {row[""]: float(row["length_controlled_winrate"]) for row in csv.DictReader(stream)}
    judgments = read_judgments("alpaca_eval", [str(folder / "golden_v2_items.csv")])
    found = rate(judgments, rounds=0, difficulties=read_difficulties(str(folder / "golden_v2_instruction_difficulty.csv")))
    for one in found.win_rates:
        assert one.controlled is not None
        assert (one.controlled.source, one.controlled.anchored) == ("fit", False)
        assert one.controlled.win_rate == pytest.approx(published[one.model], abs=1.5)
    assert any("without the anchors" in note for note in found.notes)


def test_win_rate() -> None:
    # outcomes 1, 1, 0.5, 0: mean 0.625, sd = √(0.6875/3) = 0.478714, error 0.239357
    rate = win_rate([1, 1, 0.5, 0])
    assert (rate.win_rate, rate.discrete_win_rate, rate.n_wins, rate.n_wins_base, rate.n_draws) == (62.5, 62.5, 2, 1, 1)
    assert rate.standard_error == pytest.approx(23.9357, abs=1e-4)
    graded = win_rate([0.9, 0.4, 0.5, 0.51])  # won, lost, drawn, won
    assert (graded.win_rate, graded.discrete_win_rate) == (pytest.approx(57.75), 62.5)


def test_win_rates_that_are_no_certainty() -> None:
    alone = win_rate([1.0])
    assert (alone.win_rate, alone.standard_error) == (100, None)
    assert alone.low < 50
    ties = win_rate([0.5] * 10)
    assert (ties.win_rate, ties.standard_error) == (50, 0)
    assert ties.low < 45 < 55 < ties.high
    with pytest.raises(ValueError, match="one outcome"):
        win_rate([])


def test_outcomes_against_all_and_against_one() -> None:
    found = [Battle("a", "b", 1.0), Battle("b", "c", 0.5, weight=2), Battle("c", "a", 0.25)]
    assert outcomes_of(found, None) == {"a": [1.0, 0.75], "b": [0.0, 0.5, 0.5], "c": [0.5, 0.5, 0.25]}
    assert outcomes_of(found, "a") == {"b": [0.0], "c": [0.25]}


def planted(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Preferences that follow the model exactly, with its terms -0.5, -2 and 0.8."""
    draw = np.random.default_rng(seed)
    longer, difficulty = draw.normal(-200, 400, n), draw.normal(size=n)
    logit = -0.5 - 2 * np.tanh(longer / longer.std(ddof=1)) + 0.8 * difficulty
    return 1 / (1 + np.exp(-logit)), longer, difficulty


def test_length_control_finds_all_three_terms() -> None:
    preference, longer, difficulty = planted(600, 1)
    weights = length_control.fit(preference, longer, difficulty)
    assert (weights.model, weights.length, weights.difficulty) == pytest.approx((-0.5, -2, 0.8), abs=0.01)
    # By hand: the mean over the items of the model without its length term
    expected = 100 * np.mean(1 / (1 + np.exp(0.5 - 0.8 * difficulty)))
    assert length_control.predict(weights, difficulty) == pytest.approx(expected, abs=0.1)


def test_length_control_is_symmetric() -> None:
    preference, longer, difficulty = planted(300, 2)
    one = length_control.predict(length_control.fit(preference, longer, difficulty), difficulty)
    other = length_control.predict(length_control.fit(1 - preference, -longer, difficulty), difficulty)
    assert one + other == pytest.approx(100, abs=1e-3)
    assert length_control.predict(Weights(1.0, 2.0, 3.0) - Weights(1.0, 2.0, 3.0), difficulty) == 50


def test_anchors_tie_down_what_length_does() -> None:
    preference, longer, difficulty = planted(40, 3)
    draw = np.random.default_rng(4)
    length = draw.normal(size=8000)
    pulling = Anchors(1 / (1 + np.exp(-3 * np.tanh(length))), length, np.zeros(8000))  # they say +3, the judgments -2
    free = length_control.fit(preference, longer, difficulty)
    tied = length_control.fit(preference, longer, difficulty, pulling)
    assert free.length < -1.5
    assert tied.length > 2


def test_length_control_where_little_can_be_told() -> None:
    preference, longer, difficulty = planted(50, 5)
    never = length_control.fit(np.zeros(50), longer, difficulty)
    always = length_control.fit(np.ones(50), longer, difficulty)
    assert length_control.predict(never, difficulty) < 0.1
    assert length_control.predict(always, difficulty) > 99.9
    same = length_control.fit(preference, np.zeros(50), difficulty)
    assert same.length == 0
    with pytest.raises(ValueError, match="too few"):
        length_control.fit(preference[:4], longer[:4], difficulty[:4])
    with pytest.raises(ValueError, match="same length"):
        length_control.fit(preference, np.full(50, 7.0), difficulty)


@pytest.mark.parametrize(
    ("raw", "controlled", "departs"),
    [(50, 61, False), (50, 63, True), (50, 39, False), (50, 37, True), (20, 9, True), (20, 10, False), (95, 99.9, False)],
)
def test_departing_length_control(raw: float, controlled: float, departs: bool) -> None:
    assert length_control.departs(raw, controlled) is departs


def test_stored_weights_against_another_baseline(shared: Path) -> None:
    """LC(m, b) + LC(b, m) = 100, and of a model with itself 50."""
    folder = shared / "alpaca_eval"
    weights = read_weights(str(folder / "golden_v2_lc_weights.csv"))
    hard = read_difficulties(str(folder / "golden_v2_instruction_difficulty.csv"))
    judgments = read_judgments("alpaca_eval", [str(folder / "golden_v2_items.csv")])

    def controlled(baseline: str) -> dict[str, float]:
        rates = rate(judgments, baseline, 0, weights=weights, difficulties=hard).win_rates
        return {one.model: one.controlled.win_rate for one in rates if one.controlled is not None}

    over_alpaca, plain = controlled("alpaca-7b"), controlled("baseline")
    assert over_alpaca == {"baseline": pytest.approx(100 - plain["alpaca-7b"])}
    reference = rate(judgments, None, 0, weights=weights, difficulties=hard)
    assert {one.model: one.controlled.win_rate for one in reference.win_rates if one.controlled} == pytest.approx(plain)


def test_difficulties_are_found_by_number_text_or_order(tmp_path: Path) -> None:
    path = tmp_path / "difficulty.csv"
    path.write_text("index,instruction,instruction_difficulty\n5,five,0.5\n7,seven,0.7\n")
    table = read_difficulties(str(path))

    def of(*found: Preference) -> list[float]:
        return list(table.of(found))

    assert of(Preference("m", "b", 1, item=7), Preference("m", "b", 1, item=5)) == [0.7, 0.5]
    assert of(Preference("m", "b", 1, instruction="seven")) == [0.7]
    assert of(Preference("m", "b", 1), Preference("m", "b", 1)) == [0.5, 0.7]


def test_elo_by_hand() -> None:
    # 1000:1000 → +2; then b wins at 998 to 1002: E = 1/(1 + 10^(4/400)) = 0.494244, +4·0.505756 = 2.023024
    arena = Arena.of([Battle("a", "b", 1.0), Battle("b", "a", 1.0), Battle("a", "c", 0.5)])
    found = {one.model: one for one in elo(arena, 0, 0)}
    assert found["b"].in_order == pytest.approx(1000.023024, abs=1e-6)
    # a stands at 999.976976 against 1000: E = 0.499967, +4·0.000033
    assert found["a"].rating == found["a"].in_order == pytest.approx(999.976976 + 4 * 0.0000331, abs=1e-5)
    assert found["a"].low is None
    assert sum(one.rating for one in found.values()) == pytest.approx(3000)


def test_elo_is_the_median_over_resampled_orders() -> None:
    arena = Arena.of(battles("a", "b", 30, 0) + battles("a", "b", 0, 30))  # in this order b ends ahead
    found = {one.model: one for one in elo(arena, 400, 3)}
    assert found["a"].in_order < 990
    assert found["a"].rating == pytest.approx(1000, abs=4)
    assert found["a"].low is not None
    assert found["a"].low < 1000 < (found["a"].high or 0)
    assert elo(arena, 400, 3) == elo(arena, 400, 3) != elo(arena, 400, 4)
    heavy = Arena.of([Battle("a", "b", 1.0, weight=3)])
    assert elo(heavy, 0, 0) == elo(Arena.of(battles("a", "b", 3, 0)), 0, 0)


def test_bradley_terry_of_two() -> None:
    # 8 won, 2 lost, 2 tied: odds 9 to 3
    found = bradley_terry(Arena.of(battles("a", "b", 8, 2, 2)), 0, 0)
    assert [one.model for one in found] == ["a", "b"]
    assert found[0].rating - found[1].rating == pytest.approx(400 * math.log10(3), abs=1e-3)
    assert found[0].rating + found[1].rating == pytest.approx(2 * CENTRE)
    anchored = bradley_terry(Arena.of(battles("a", "b", 8, 2, 2)), 50, 0, "b")
    assert anchored[1].rating == anchored[1].low == anchored[1].high == 1000


def test_published_arena_battles(shared: Path) -> None:
    """Nine of ten won is 400·log10(9) points apart."""
    found = rate(read_judgments("battles", [str(shared / "arena_hard" / "battles_example.jsonl")]), rounds=0)
    ratings = [one.rating for one in found.bradley_terry]
    assert ratings == pytest.approx([1000 + 200 * math.log10(9), 1000 - 200 * math.log10(9)], abs=0.01)


def test_bradley_terry_is_the_maximum_of_the_likelihood() -> None:
    arena = Arena.of(random_battles(9, 700, 5))

    def loss(theta: np.ndarray) -> float:
        logit = theta[arena.first] - theta[arena.second]
        lost = arena.outcome * np.logaddexp(0, -logit) + (1 - arena.outcome) * np.logaddexp(0, logit)
        return float((arena.weight * lost).sum())

    theta = minimize(loss, np.zeros(9), method="BFGS", options={"gtol": 1e-5}).x
    expected = dict(zip(arena.models, CENTRE + POINTS * (theta - theta.mean()), strict=True))
    assert {one.model: one.rating for one in bradley_terry(arena, 0, 0)} == pytest.approx(expected, abs=0.01)


def test_bradley_terry_intervals() -> None:
    # 400 battles at even odds: the logit's error is 1/√(400/4) = 0.1, so each of the two has 400/ln 10·0.05 = 8.69 points
    arena = Arena.of(battles("a", "b", 200, 200))
    found = bradley_terry(arena, 4000, 7)[0]
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 8.69, rel=0.06)
    assert bradley_terry(arena, 100, 7) == bradley_terry(arena, 100, 7) != bradley_terry(arena, 100, 8)


def test_models_that_never_met_are_not_rated() -> None:
    arena = Arena.of(battles("a", "b", 2, 1) + battles("c", "d", 2, 1) + battles("d", "e", 1, 1))
    assert groups_of(arena) == [["c", "d", "e"], ["a", "b"]]
    with pytest.raises(Disconnected, match=r"disconnected: 2 groups.*\(c, d, e; a, b\)") as refusal:
        bradley_terry(arena, 0, 0)
    assert refusal.value.groups == groups_of(arena)


def test_a_model_that_never_loses_has_a_finite_rating_and_no_interval() -> None:
    arena = Arena.of(battles("a", "b", 5, 5) + battles("c", "a", 10, 0))
    assert unbounded(arena) == [["a", "b"], ["c"]]
    assert unbounded(Arena.of(battles("a", "b", 0, 0, 3))) == [["a", "b"]]
    found = rate(Judgments(battles("a", "b", 5, 5) + battles("c", "a", 10, 0)), rounds=20)
    best, *others = found.bradley_terry
    assert (best.model, best.low, best.high) == ("c", None, None)
    assert 2000 < best.rating < 4000
    assert others[0].rating == pytest.approx(others[1].rating, abs=0.1)
    assert all(one.low is not None for one in others)
    assert any("only the ridge" in note and "a, b; c" in note for note in found.notes)


def test_probabilities_are_outcomes_too() -> None:
    arena = Arena.of([Battle("a", "b", 0.7), Battle("b", "a", 0.1)])  # 1.6 of 2
    assert bradley_terry(arena, 0, 0)[0].rating == pytest.approx(1000 + 200 * math.log10(4), abs=1e-2)


def test_positions() -> None:
    shown = {("1", "a", "b"): 1.0, ("1", "b", "a"): 1.0, ("2", "a", "b"): 1.0, ("2", "b", "a"): 0.0, ("3", "a", "b"): 0.5}
    assert positions(shown) == Positions(games=4, first_preferred=0.75, pairs=2, consistent=0.5)
    assert positions({("1", "a", "b"): 0.5}) == Positions(0, None, 0, None)


def test_mean_scores_are_clustered_by_question() -> None:
    scores = [Score("m", value, question, turn, "maths") for question, turn, value in
              (("1", 1, 8.0), ("1", 2, 6.0), ("2", 1, 4.0), ("2", 2, 2.0))]  # fmt: skip
    one = mean_scores(scores)[0]
    assert (one.mean, one.turns, one.categories, one.n, one.questions) == (5, {1: 6, 2: 4}, {"maths": 5}, 4, 2)
    # Sums of the questions' deviations ±4: √(32·2/1)/4 = 2; as if independent it would be 1.29
    assert one.standard_error == pytest.approx(2)
    assert mean_scores(scores[:2])[0].standard_error is None
