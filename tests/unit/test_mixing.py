"""Mixing: shares within one percentage point, epochs within their cap, totals as large as they can be, clear refusals."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plumbline.api.curation.mixing import MixSpec
from plumbline.api.curation.selection import SelectSpec
from plumbline.data.filters.programming import is_programming
from plumbline.data.mixing import Mixture, Targets, allocate, largest_remainder, mix
from plumbline.data.row import Row
from plumbline.errors import InvalidInput


def spec(**block: object) -> MixSpec:
    return MixSpec.model_validate(block, by_alias=True, by_name=False)


def data(*cells: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows by source as (others, programming), interleaved; tokens of 5 to 50."""
    random = np.random.default_rng(seed)
    rows = [(s, k) for s, cell in enumerate(cells) for k, count in enumerate(cell) for _ in range(count)]
    order = random.permutation(len(rows))
    source, kind = np.array(rows, int).reshape(-1, 2)[order].T
    return source, kind.astype(bool), random.integers(5, 50, len(rows))


def mixed(of: MixSpec, *cells: tuple[int, int], seed: int = 0) -> Mixture:
    return mix(*data(*cells, seed=seed), of, [f"s{i}" for i in range(len(cells))], seed)


def test_without_targets_all_rows_stay_once_in_order() -> None:
    result = mixed(spec(maxEpochs=3), (30, 10), (5, 5))
    assert result.rows.tolist() == list(range(50))
    assert result.card["leftOut"] == 0


def test_weights_shrink_what_is_plentiful() -> None:
    result = mixed(spec(weights={"s0": 1, "s1": 1}), (1000, 0), (100, 0))
    assert [line["rows"] for line in result.card["sources"]] == [100, 100]
    assert result.card["bound"] == "the source 's1' has 100 rows for a share of 50.0%"


def test_epochs_let_the_scarce_reach_its_share() -> None:
    result = mixed(spec(weights={"s0": 1, "s1": 1}, maxEpochs=4), (1000, 0), (100, 0))
    lines = result.card["sources"]
    assert [line["rows"] for line in lines] == [400, 400]
    assert [line["maxEpochs"] for line in lines] == [1, 4]
    assert [line["distinct"] for line in lines] == [400, 100]


def test_what_is_plentiful_is_not_repeated() -> None:
    result = mixed(spec(weights={"s0": 1, "s1": 1}, maxEpochs=50), (1000, 0), (100, 0))
    assert [line["rows"] for line in result.card["sources"]] == [1000, 1000]
    result = mixed(spec(programming=0.5, maxEpochs=50), (1000, 100), (0, 0))
    assert (len(result.rows), result.card["programming"]["rows"]) == (2000, 1000)


def test_a_share_next_to_nothing_is_nothing() -> None:
    assert mixed(spec(programming=5e-324), (7, 3)).rows.size == 7


@pytest.mark.parametrize("weight", [5e-324, 1e-9, 0.1, 1 / 3, 1e308])
def test_weights_have_any_sum(weight: float) -> None:
    result = mixed(spec(weights={"s0": weight, "s1": weight}), (60, 0), (40, 0))
    assert [(line["rows"], line["target"]) for line in result.card["sources"]] == [(40, 0.5), (40, 0.5)]


@pytest.mark.parametrize("programming", [0.1, 0.25, 1 / 3, 0.37, 0.6])
@pytest.mark.parametrize("count", [2, 5, 9, 30, 47, 99, 150])
def test_few_rows_come_as_near_as_whole_rows_can(count: int, programming: float) -> None:
    """As many rows as come within one point of the share; where none do, the card says so."""
    others, code = count - count // 2, count // 2
    result = mixed(spec(programming=programming), (others, code))
    off = abs(result.card["programming"]["share"] - programming)
    possible = {(k, n - k) for n in range(1, count + 1) for k in range(n + 1) if k <= code and n - k <= others}
    offs = [abs(k / (k + rest) - programming) for k, rest in possible]
    assert off <= 0.01 or min(offs) > 0.01
    assert result.card["missed"] == (["programming"] if off > 0.01 else [])


def test_weight_zero_leaves_a_source_out() -> None:
    result = mixed(spec(weights={"s0": 0, "s1": 2}, programming=0.5), (50, 50), (40, 60))
    assert [line["rows"] for line in result.card["sources"]] == [0, 80]
    assert result.card["programming"]["share"] == 0.5


@pytest.mark.parametrize("unit", ["rows", "tokens"])
@pytest.mark.parametrize("share", [0.0, 0.07, 0.5, 0.93, 1.0])
def test_a_sweep_over_programming_meets_every_share(share: float, unit: str) -> None:
    result = mixed(spec(programming=share, unit=unit), (900, 300), (100, 700), seed=int(share * 100))
    assert result.card["programming"]["share"] == pytest.approx(share, abs=0.01)
    assert max(Counter(result.rows.tolist()).values()) == 1


def test_sources_lean_where_they_must() -> None:
    """One source has no programming at all, so the other gives all of it."""
    result = mixed(spec(weights={"s0": 3, "s1": 1}, programming=0.2), (3000, 0), (500, 900))
    card = result.card
    assert [line["share"] for line in card["sources"]] == pytest.approx([0.75, 0.25], abs=0.001)
    assert card["programming"]["share"] == pytest.approx(0.2, abs=0.001)


def test_sources_of_one_name_are_one() -> None:
    source, kind, tokens = data((100, 0), (100, 0), (50, 0))
    result = mix(source, kind, tokens, spec(weights={"a": 1, "b": 1}), ["a", "a", "b"], 0)
    assert {line["name"]: line["rows"] for line in result.card["sources"]} == {"a": 50, "b": 50}


def test_larger_shares_take_supersets() -> None:
    few, more = (mixed(spec(weights={"s0": w, "s1": 1}, total=200), (500, 0), (500, 0), seed=4) for w in (1, 3))
    source = data((500, 0), (500, 0), seed=4)[0]
    of_first = [set(m.rows[source[m.rows] == 0].tolist()) for m in (few, more)]
    assert of_first[0] < of_first[1]


cell = st.tuples(st.integers(0, 60), st.integers(0, 60))


@settings(max_examples=150, deadline=None)
@given(
    cells=st.lists(cell, min_size=1, max_size=5),
    weights=st.lists(st.sampled_from([0.0, 0.1, 1.0, 1.5, 7.0]), min_size=5, max_size=5) | st.none(),
    programming=st.none() | st.floats(0, 1),
    epochs=st.integers(1, 4),
    total=st.none() | st.integers(1, 300),
    seed=st.integers(0, 2**31),
)
def test_shares_and_caps_hold(
    cells: list[tuple[int, int]],
    weights: list[float] | None,
    programming: float | None,
    epochs: int,
    total: int | None,
    seed: int,
) -> None:
    assume(sum(map(sum, cells)) and (weights is None or any(weights[: len(cells)])))
    names = [f"s{i}" for i in range(len(cells))]
    of = MixSpec(
        weights=dict(zip(names, weights, strict=False)) if weights else None,
        programming=programming,
        max_epochs=epochs,
        total=total,
    )
    source, kind, tokens = data(*cells, seed=seed % 1000)
    try:
        result = mix(source, kind, tokens, of, names, seed)
    except InvalidInput:
        assert total is not None or weights is not None or programming is not None
        return
    rows = result.rows
    counts = np.bincount(rows, minlength=len(source))
    allowed = max(0.01, 1 / len(rows)) + 1e-9
    assert counts.max() <= epochs
    assert total is None or 0 <= total - len(rows) <= len(cells) + 2
    if programming is not None:
        assert abs(kind[rows].mean() - programming) <= allowed
    if weights:
        shares = np.array(weights[: len(cells)]) / sum(weights[: len(cells)])
        achieved = np.bincount(source[rows], minlength=len(cells)) / len(rows)
        assert (abs(achieved - shares) <= allowed).all()
    if weights is None and programming is None and total is None:
        assert len(rows) == len(source)
    again = mix(source, kind, tokens, of, names, seed)
    assert again.rows.tolist() == rows.tolist()
    assert again.card == result.card


@settings(max_examples=60, deadline=None)
@given(
    cells=st.lists(st.tuples(st.integers(200, 500), st.integers(200, 500)), min_size=1, max_size=3),
    programming=st.floats(0.05, 0.95),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_tokens_are_met_within_one_percent(cells: list[tuple[int, int]], programming: float, epochs: int, seed: int) -> None:
    names = [f"s{i}" for i in range(len(cells))]
    source, kind, tokens = data(*cells, seed=seed)
    of = MixSpec(weights=dict.fromkeys(names, 1.0), programming=programming, unit="tokens", max_epochs=epochs)
    rows = mix(source, kind, tokens, of, names, seed).rows
    all_tokens = tokens[rows].sum()
    assert abs(tokens[rows][kind[rows]].sum() / all_tokens - programming) <= 0.01
    for number in range(len(cells)):
        assert abs(tokens[rows][source[rows] == number].sum() / all_tokens - 1 / len(cells)) <= 0.01
    assert np.bincount(rows).max() <= epochs


@settings(max_examples=100, deadline=None)
@given(
    once=st.lists(cell, min_size=1, max_size=4),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    programming=st.sampled_from([0.0, 1.0]) | st.floats(1e-3, 1 - 1e-3),  # solvers take 1e-12 for 0
    epochs=st.integers(1, 3),
)
def test_the_largest_total_is_that_of_linear_programming(
    once: list[tuple[int, int]], weights: list[int], programming: float, epochs: int
) -> None:
    from scipy.optimize import linprog

    shares = np.array(weights[: len(once)]) / sum(weights[: len(once)])
    targets = Targets(np.array(once, np.int64), shares, np.array([1 - programming, programming]), epochs)
    size = 2 * len(once)
    rows = []
    for g in range(len(once)):  # Σ_k x[g, k] = share · total
        rows.append([1.0 if i // 2 == g else 0.0 for i in range(size)] + [-shares[g]])
    rows.append([float(i % 2) for i in range(size)] + [-programming])
    bounds = [(0, count * epochs) for pair in once for count in pair] + [(0, None)]
    solved = linprog([0.0] * size + [-1.0], A_eq=rows, b_eq=[0.0] * len(rows), bounds=bounds)
    assert solved.status == 0
    assert abs(targets.largest() - solved.x[-1]) < 1.001
    amounts = allocate(targets, targets.largest())
    assert (amounts >= 0).all()
    assert (amounts <= targets.most).all()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_largest_remainder_adds_up(amounts: list[float]) -> None:
    total = round(sum(amounts))
    scaled = np.array(amounts) * (total / sum(amounts) if sum(amounts) else 1)
    whole = largest_remainder(scaled, total)
    assert whole.sum() == total
    assert (abs(whole - scaled) < 1 + 1e-5).all()


@pytest.mark.parametrize(
    ("block", "cells", "words"),
    [
        ({"weights": {"s0": 1, "x": 1}}, [(5, 5)], "weights: 'x' is no source; sources are s0"),
        ({"weights": {"s0": 1}}, [(5, 5), (5, 5)], "the source 's1' has none"),
        ({"weights": {"s0": 1, "s1": 1}}, [(5, 5), (0, 0)], "the source 's1' has 0 rows for a share of 50.0%"),
        ({"programming": 0.5}, [(9, 0)], "programming has 0 rows for a share of 50.0%"),
        ({"programming": 0.5}, [(0, 9)], "what is not programming has 0 rows"),
        ({"programming": 0.5, "total": 50}, [(90, 10)], "total: 50 rows are not there, at most 20: programming has 10 rows"),
        ({"total": 50}, [(9, 0)], "at most 9: there are 9 rows"),
        ({"programming": 0.9, "weights": {"s0": 9, "s1": 1}}, [(900, 0), (0, 900)], "too unevenly"),
        ({"unit": "tokens", "total": 3}, [(9, 0)], "no row fits into 3 tokens"),
    ],
)
def test_what_cannot_be_is_said(block: dict[str, object], cells: list[tuple[int, int]], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        mixed(spec(**block), *cells)
    assert words in str(caught.value)


def test_rows_too_long_for_a_share_of_tokens_are_refused() -> None:
    tokens = np.array([600] * 10 + [10] * 200)
    of = spec(programming=0.5, unit="tokens", total=2000)
    with pytest.raises(InvalidInput, match=r"mix.programming: 50.0% of the tokens was asked for, and whole rows make 37.5%"):
        mix(np.zeros(210, int), np.arange(210) < 10, tokens, of, ["a"], 0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_orders(seed: int) -> None:
    source, kind, tokens = data((40, 20), (10, 10), seed=seed)
    hard = np.random.default_rng(seed).random(80)
    block = {"weights": {"a": 1, "b": 1}, "maxEpochs": 2}
    by = {
        order: mix(source, kind, tokens, spec(**block, order=order), ["a", "b"], seed, hard).rows
        for order in ("source", "shuffled", "shortest", "easiest")
    }
    assert all(Counter(rows.tolist()) == Counter(by["source"].tolist()) for rows in by.values())
    first = by["source"][: len(set(by["source"].tolist()))]
    assert (np.diff(first) > 0).all()
    assert set(by["source"][len(first) :]) <= set(np.flatnonzero(source == 1))
    assert (np.diff(tokens[by["shortest"]]) >= 0).all()
    assert (np.diff(hard[by["easiest"]]) >= 0).all()
    assert by["shuffled"].tolist() not in [by[other].tolist() for other in ("source", "shortest", "easiest")]
    assert (
        by["shuffled"].tolist()
        != mix(source, kind, tokens, spec(**block, order="shuffled"), ["a", "b"], seed + 1).rows.tolist()
    )


def test_contradictions_are_named() -> None:
    assert spec(weights={"a": 0}).problems(None)[0][0] == "weights"
    easiest = spec(order="easiest")
    assert easiest.problems(None)[0][0] == "order"
    assert easiest.problems(SelectSpec(rows=1, random={}))[0][0] == "order"  # type: ignore[arg-type]
    assert easiest.problems(SelectSpec(rows=1, ifd={})) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ["rows", "tokens"])
def test_programming_share_of_real_instructions(shared: Path, unit: str) -> None:
    """Alpaca and Code Alpaca, told apart by the detector and not by their files."""
    rows = []
    for name in ("alpaca/alpaca_data_cleaned_1000.json.gz", "instruct/code_alpaca_2k.json.gz"):
        with gzip.open(shared / name, "rt") as file:
            records = json.load(file)[:600]
        texts = [(f"{record['instruction']}\n{record['input']}", record["output"]) for record in records]
        rows.append([Row({"messages": [message("user", q), message("assistant", a)]}) for q, a in texts])
    every = [row for of_file in rows for row in of_file]
    kind = np.array([is_programming(row) for row in every])
    tokens = np.array([sum(map(len, row.texts)) // 4 + 1 for row in every])
    source = np.repeat([0, 1], [len(of_file) for of_file in rows])
    assert 0.02 < kind[source == 0].mean() < 0.3 < 0.7 < kind[source == 1].mean()
    for share in (0.1, 0.5, 0.8):
        of = MixSpec(programming=share, unit=unit)  # type: ignore[arg-type]
        chosen = mix(source, kind, tokens, of, ["alpaca", "code"], 0).rows
        size = tokens[chosen] if unit == "tokens" else np.ones(len(chosen))
        assert abs(size[kind[chosen]].sum() / size.sum() - share) <= 0.01
        assert len(chosen) > 500


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
