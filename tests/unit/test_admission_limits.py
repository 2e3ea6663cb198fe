"""Rate limits and the bound on what waits: properties of token buckets, shares of replicas, words for people."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.serving.admission.backlog import MOST_SECONDS, UNKNOWN_SECONDS, Backlog
from plumbline.serving.admission.keys import ApiKey
from plumbline.serving.admission.limits import Bucket, Callers, Limits
from plumbline.serving.admission.refusal import TooManyRequests


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


pauses = st.lists(st.floats(0, 90), min_size=1, max_size=20)


@settings(deadline=None)
@given(per_minute=st.floats(0.1, 60), pauses=pauses)
def test_a_bucket_never_grants_more_than_flows_in_and_what_it_held(per_minute: float, pauses: list[float]) -> None:
    now, granted = 0.0, 0
    bucket = Bucket(per_minute, now)
    for pause in pauses:
        now += pause
        while not bucket.wait(1, now):
            bucket.take(1, now)
            granted += 1
    assert granted <= bucket.capacity + per_minute * now / 60 + 1e-6
    assert granted >= math.floor(min(bucket.capacity, 1)), "the first is always granted"


@given(per_minute=st.floats(0.1, 1000), amount=st.floats(0, 5000), used=st.floats(0, 5000), later=st.floats(0, 600))
def test_who_waits_as_long_as_told_gets_it(per_minute: float, amount: float, used: float, later: float) -> None:
    bucket = Bucket(per_minute, 0.0)
    bucket.take(used, 0.0)
    seconds = bucket.wait(amount, later)
    assert bucket.wait(amount, later + seconds) <= 1e-6 * (1 + seconds)
    if seconds > 1:
        assert bucket.wait(amount, later + seconds - 1) > 0, "and not before"


@given(per_minute=st.floats(1, 1000), reserved=st.integers(0, 5000), used=st.integers(0, 5000))
def test_what_was_reserved_in_vain_comes_back(per_minute: float, reserved: int, used: int) -> None:
    guessed, exact = Bucket(per_minute, 0.0), Bucket(per_minute, 0.0)
    guessed.take(reserved, 0.0)
    guessed.take(used - reserved, 0.0)
    exact.take(used, 0.0)
    assert guessed.level == pytest.approx(exact.level)
    assert guessed.level <= guessed.capacity


def test_a_changed_limit_forgets_nothing_that_was_used() -> None:
    bucket = Bucket(60, 0.0)
    bucket.take(50, 0.0)
    bucket.change(100, 0.0)
    assert (bucket.level, bucket.capacity) == (50, 100)
    bucket.change(10, 0.0)
    assert bucket.level == -40


def test_requests_of_a_minute_then_429_with_the_time_to_wait() -> None:
    clock = Clock()
    caller = Callers(Limits(requests_per_minute=3), 1, clock).find(None)
    for _ in range(3):
        caller.begin(0, clock())
    with pytest.raises(TooManyRequests, match="3 requests per minute") as refused:
        caller.begin(0, clock())
    assert (refused.value.status, refused.value.code, refused.value.retry_after) == (429, "rate_limit_exceeded", 20)
    clock.now += refused.value.retry_after
    caller.begin(0, clock())


def test_tokens_are_charged_as_they_turn_out_to_be() -> None:
    clock = Clock()
    caller = Callers(Limits(tokens_per_minute=600), 1, clock).find(None)
    caller.begin(100, clock())
    caller.end(100, 900, clock())  # a long answer: the caller owes 300
    with pytest.raises(TooManyRequests, match="600 tokens per minute") as refused:
        caller.begin(10, clock())
    assert refused.value.retry_after == 31
    clock.now += 31
    caller.begin(10, clock())
    caller.end(10, 0, clock())
    clock.now += 3600
    # More than a minute's worth is let in when the bucket is full, else it never would be; it holds no more than that either.
    reserved = caller.begin(5000, clock())
    assert reserved == 600
    caller.end(reserved, 0, clock())
    caller.begin(600, clock())


def test_what_is_refused_takes_nothing() -> None:
    clock = Clock()
    caller = Callers(Limits(requests_per_minute=10, tokens_per_minute=10, concurrent=1), 1, clock).find(None)
    caller.begin(10, clock())
    with pytest.raises(TooManyRequests, match="at the same time"):
        caller.begin(0, clock())
    caller.end(10, 10, clock())
    with pytest.raises(TooManyRequests, match="tokens"):
        caller.begin(1, clock())
    assert caller.ongoing == 0
    assert caller.headers(clock())["x-ratelimit-remaining-requests"] == "9"


def test_keys_have_their_own_limits_and_take_nothing_from_each_other() -> None:
    clock = Clock()
    callers = Callers(Limits(requests_per_minute=1), 1, clock)
    small = ApiKey(name="small", digest="a" * 64)
    large = ApiKey(name="large", digest="b" * 64, requests_per_minute=2)
    callers.find(small).begin(0, clock())
    for _ in range(2):
        callers.find(large).begin(0, clock())
    for key in (small, large):
        with pytest.raises(TooManyRequests):
            callers.find(key).begin(0, clock())
    callers.find(large.model_copy(update={"requests_per_minute": 10})).begin(0, clock())  # the file was changed


def test_replicas_grant_their_shares() -> None:
    clock = Clock()
    replicas = [Callers(Limits(requests_per_minute=10, concurrent=4), 2, clock).find(None) for _ in range(2)]
    granted = 0
    for caller in replicas:
        assert caller.headers(clock())["x-ratelimit-limit-requests"] == "10"
        for _ in range(20):
            try:
                caller.begin(0, clock())
            except TooManyRequests as refused:
                if "at the same time" not in str(refused):
                    break
                assert caller.ongoing == 2
                for _ in range(2):
                    caller.end(0, 0, clock())
            else:
                granted += 1
    assert granted == 10


def test_limits_are_divided_anew_when_there_are_more_replicas() -> None:
    clock = Clock()
    callers = Callers(Limits(requests_per_minute=10), 1, clock)
    for _ in range(4):
        callers.find(None).begin(0, clock())
    callers.divide(2)
    callers.find(None).begin(0, clock())
    with pytest.raises(TooManyRequests):
        callers.find(None).begin(0, clock())
    callers.divide(1)
    for _ in range(5):
        callers.find(None).begin(0, clock())


def test_headers_are_openais() -> None:
    clock = Clock()
    caller = Callers(Limits(requests_per_minute=60, tokens_per_minute=600), 1, clock).find(None)
    caller.begin(100, clock())
    assert caller.headers(clock()) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1.000s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "500",
        "x-ratelimit-reset-tokens": "10.000s",
    }
    assert Callers(Limits(), 1, clock).find(None).headers(clock()) == {}


def test_the_backlog_is_bounded_and_tells_how_long_it_takes() -> None:
    clock = Clock()
    backlog = Backlog(slots=2, max_queued=3, clock=clock)
    for _ in range(5):
        backlog.check()
        backlog.enter()
    with pytest.raises(TooManyRequests, match="2 requests are worked on and 3 wait") as refused:
        backlog.check()
    assert refused.value.code == "queue_full"
    assert refused.value.retry_after == UNKNOWN_SECONDS
    for _ in range(4):  # one in two seconds
        clock.now += 2
        backlog.leave()
        backlog.check()
        backlog.enter()
    with pytest.raises(TooManyRequests) as refused:
        backlog.check()
    assert refused.value.retry_after == 6, "three wait"
    clock.now += 10_000
    assert backlog.seconds() == MOST_SECONDS


def test_without_a_queue_only_what_is_worked_on_gets_in() -> None:
    backlog = Backlog(slots=1, max_queued=0, clock=Clock())
    backlog.check()
    backlog.enter()
    with pytest.raises(TooManyRequests):
        backlog.check()
    backlog.leave()
    backlog.check()
