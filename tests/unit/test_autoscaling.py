"""How many replicas load needs, by requests and by tokens, and the YAML block that says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from plumbline.api.stages.autoscaling import AutoscalingSpec
from plumbline.api.stages.serve import ServeSpec
from plumbline.serving.autoscaling import TOKENS, needed, number_of_replicas

load = st.just(0.0) | st.floats(1e-6, 1e7)  # means over replicas: no smaller fractions come up
target = st.integers(1, 10**6)


@given(requests=load, tokens=load, target_requests=target, target_tokens=target)
def test_neither_requests_nor_tokens_of_a_replica_are_above_their_targets(
    requests: float, tokens: float, target_requests: int, target_tokens: int
) -> None:
    found = needed(requests, tokens, target_requests=target_requests, target_tokens=target_tokens)
    assert requests <= found * target_requests * (1 + 1e-9)
    assert tokens <= found * target_tokens * (1 + 1e-9)
    assert (found == 0) == (requests == tokens == 0)


def test_few_long_requests_count_by_their_tokens_where_that_is_asked_for() -> None:
    assert needed(2, 30_000, target_requests=32, target_tokens=10_000) == 3
    assert needed(2, 30_000, target_requests=32, target_tokens=None) == 2 / 32
    assert needed(64, 100, target_requests=32, target_tokens=10_000) == 2


def config(*, replicas: int = 1, slots: int = 64, **fields: Any) -> Any:
    spec = AutoscalingSpec.model_validate({"maxReplicas": 4, **fields})
    return number_of_replicas(spec, replicas, slots)["autoscaling_config"]


def test_serves_policy_reads_its_requests_and_our_tokens() -> None:
    options = config(targetTokensInFlight=1000, targetOngoingRequests=10)
    policy = options.policy.get_policy()(**options.policy.policy_kwargs)

    def desired(requests: float, tokens: dict[str, dict[str, float]] | None, running: int = 1) -> float:
        context = SimpleNamespace(
            total_num_requests=requests,
            aggregated_metrics=tokens,
            config=options,
            current_num_replicas=running,
            target_num_replicas=2,
        )
        return policy(context)[0]

    assert desired(25, None) == 2.5
    assert desired(5, {TOKENS: {"one": 1500.0, "two": 1500.0}}) == 3
    assert desired(0, {}) == 0
    assert desired(0, {}, running=0) == 2, "those that are loading are left to come up"


def test_without_the_block_the_number_stays() -> None:
    assert number_of_replicas(None, 3, 64) == {"num_replicas": 3}


@pytest.mark.parametrize(("replicas", "least", "first"), [(1, 1, 1), (1, 2, 2), (3, 0, 3), (9, 1, 4)])
def test_the_first_number_lies_within_the_bounds(replicas: int, least: int, first: int) -> None:
    assert config(replicas=replicas, minReplicas=least).initial_replicas == first


def test_unset_targets_and_delays() -> None:
    found = config(slots=64)
    assert (found.target_ongoing_requests, found.upscale_delay_s, found.downscale_delay_s) == (32, 30, 600)
    assert config(slots=1).target_ongoing_requests == 1


def test_the_block_refuses_bounds_that_contradict() -> None:
    spec = ServeSpec.model_validate({"autoscaling": {"minReplicas": 3, "maxReplicas": 2}})
    assert spec.problems() == [("autoscaling.minReplicas", "3 is above maxReplicas, which is 2: no more than maxReplicas")]
    assert ServeSpec.model_validate({"autoscaling": {"minReplicas": 0, "maxReplicas": 2}}).problems() == []
    for wrong in ({}, {"maxReplicas": 0}, {"maxReplicas": 2, "minReplicas": -1}):
        with pytest.raises(ValidationError):
            ServeSpec.model_validate({"autoscaling": wrong})


def test_scaling_and_draining_change_nothing_of_what_is_served() -> None:
    assert {"autoscaling", "drain_seconds"} <= ServeSpec.unfingerprinted
