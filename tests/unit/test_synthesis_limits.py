"""Token counts, the budget and rate limits."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from plumbline.data.synthesis import tokens
from plumbline.data.synthesis.budget import Budget
from plumbline.data.synthesis.endpoint import retry_after
from plumbline.data.synthesis.pace import Pace
from plumbline.external import tiny_folder

ASKED: Any = [{"role": "user", "content": "Tell me something about the tides of the sea."}]
TEXT = "The moon pulls the water, and so it rises twice a day. " * 4


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("word", 1),
        ("extraordinarily", 2),
        ("12345", 2),
        ("你好吗", 3),
        ("привет", 2),
        ("a\n\nb", 3),
        ("!!!", 2),
        ("   ", 1),
    ],
)
def test_estimates(text: str, count: int) -> None:
    assert tokens.estimate(text) == count


@given(st.text())
def test_an_estimate_is_never_more_than_the_bound(text: str) -> None:
    assert tokens.estimate(text) <= tokens.most(text)


def test_estimates_of_real_text_are_of_the_right_size(shared: Path) -> None:
    with gzip.open(shared / "alpaca" / "alpaca_data_cleaned_1000.json.gz") as stream:
        texts = [row["output"] for row in json.load(stream)]
    characters, count = sum(map(len, texts)), sum(map(tokens.estimate, texts))
    assert 3.5 < characters / count < 5  # 4.4 characters a token is what English takes in vocabularies of 64 k to 128 k


def test_a_bound_holds_for_a_real_tokenizer() -> None:
    tokenizer = Tokenizer.from_file(str(tiny_folder() / "tokenizer.json"))
    for text in ("Zähle 17 + 4 zusammen: 你好 🙂\n\n", "plain words", "\0\t-- ::"):
        assert len(tokenizer.encode(text).ids) <= tokens.most(text)


HONEST = {"prompt_tokens": 12, "completion_tokens": 60}


def test_an_honest_count_is_taken() -> None:
    assert tokens.count(ASKED, TEXT, 256, HONEST) == (12, 60)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        "many",
        {},
        {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": -5, "completion_tokens": -60},
        {"prompt_tokens": "12", "completion_tokens": "60"},
        {"prompt_tokens": 12.0, "completion_tokens": True},
        {"prompt_tokens": 0, "completion_tokens": 1},
        {"prompt_tokens": 10**9, "completion_tokens": 10**9},
        {"prompt_tokens": 3, "completion_tokens": 10},
    ],
)
def test_a_count_that_the_text_does_not_bear_out_is_replaced(usage: Any) -> None:
    assert tokens.count(ASKED, TEXT, 256, usage) == (tokens.prompt_estimate(ASKED), tokens.estimate(TEXT))


def test_hidden_reasoning_counts_up_to_the_limit() -> None:
    assert tokens.count(ASKED, "Yes.", 4096, {"prompt_tokens": 12, "completion_tokens": 4000}) == (12, 4000)
    assert tokens.count(ASKED, "Yes.", 256, {"prompt_tokens": 12, "completion_tokens": 4000})[1] == 2


@given(
    st.integers(0, 5000),
    st.lists(st.tuples(st.integers(1, 400), st.floats(0, 1)), max_size=60),
)
def test_waves_never_pass_the_limit_and_use_what_is_left(limit: int, calls: list[tuple[int, float]]) -> None:
    budget, made = Budget(limit), 0
    costs = [(worst, int(worst * share)) for worst, share in calls]
    while (count := budget.admit([worst for worst, _ in costs[made:]])) > 0:
        wave = costs[made : made + count]
        assert all(budget.begin(worst) for worst, _ in wave), "all of a wave may be in flight together"
        for worst, used in reversed(wave):
            budget.end(worst, used)
        made += count
        assert budget.spent <= limit
    assert budget.spent == sum(used for _, used in costs[:made])
    assert made == len(costs) or budget.spent + costs[made][0] > limit


def test_a_call_that_took_more_than_it_could_stops_the_rest() -> None:
    budget = Budget(100)
    assert budget.admit([30, 30, 30]) == 3
    assert budget.begin(30)
    budget.end(30, 90)
    assert not budget.begin(30)
    assert Budget(None).begin(10**9)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def starts(pace: Pace, clock: Clock, calls: list[int]) -> list[float]:
    """When each of these calls, all wanted at once, may be sent; in seconds from now."""
    return [round(pace.turn(tokens), 6) for tokens in calls]


def test_calls_are_spread_over_the_minute() -> None:
    clock = Clock()
    assert starts(Pace(None, None, clock), clock, [100] * 3) == [0, 0, 0]
    pace = Pace(30, None, clock)
    assert starts(pace, clock, [100] * 4) == [0, 2, 4, 6]
    clock.now += 60  # unused time is not saved up
    assert starts(pace, clock, [100] * 3) == [0, 2, 4]


def test_tokens_are_spread_and_what_was_not_used_is_given_back() -> None:
    clock = Clock()
    pace = Pace(None, 6000, clock)
    assert starts(pace, clock, [1000, 500]) == [0, 10]
    pace.give_back(900)  # the first took 100
    assert starts(pace, clock, [100]) == [6]
    both = Pace(60, 6000, clock)
    assert starts(both, clock, [10, 1000, 10]) == [0, 1, 11]


def test_silence_is_for_everybody_and_the_longest_holds() -> None:
    clock = Clock()
    pace = Pace(None, None, clock)
    assert not pace.silent()
    pace.silence(20)
    pace.silence(5)
    clock.now += 8
    assert pace.silent()
    assert pace.turn(100) == 12
    clock.now += 60
    assert not pace.silent()
    assert pace.turn(100) == 0


def test_after_a_silence_calls_are_spread_again() -> None:
    clock = Clock()
    pace = Pace(60, 6000, clock)
    assert starts(pace, clock, [50] * 3) == [0, 1, 2]
    pace.silence(30)
    pace.give_back(100)  # two had not begun: they lost their places
    assert starts(pace, clock, [50] * 2) == [30, 31]


NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("20", 20),
        ("1.5", 1.5),
        ("-3", 0),
        ("Fri, 01 May 2026 12:01:30 GMT", 90),
        ("Fri, 01 May 2026 11:00:00 GMT", 0),
        ("soon", 0),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(value: str | None, seconds: float) -> None:
    assert retry_after(value, NOW) == seconds
