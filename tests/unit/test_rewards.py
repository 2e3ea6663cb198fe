"""Verifiable rewards."""

from __future__ import annotations

import pytest

from plumbline.api.stages.rlhf import RewardSpec
from plumbline.rollout.rewards import REWARDS, exact_match, numeric_match, reward


@pytest.mark.parametrize(
    ("reply", "reference", "value"),
    [
        ("a b", "a b", 1),
        (" a\n  b ", "a b", 1),
        ("a b", " a  b", 1),
        ("A b", "a b", 0),
        ("a b c", "a b", 0),
        ("", "a", 0),
        ("", "", 1),
    ],
)
def test_exact_match(reply: str, reference: str, value: float) -> None:
    assert exact_match(reply, reference) == value


@pytest.mark.parametrize(
    ("reply", "reference", "value"),
    [
        ("The answer is 42.", "6 * 7 = 42", 1),
        ("first 41, then 42", "42", 1),
        ("42 or 41", "42", 0),
        ("1,234.50 dollars", "1234.5", 1),
        ("$1,234", "1234", 1),
        ("1,2,3", "123", 0),  # a list, not thousands
        ("1,2,3", "3", 1),
        ("-5", "-5", 1),
        ("−5", "-5", 1),
        ("5", "-5", 0),
        ("10-12", "12", 1),  # a range or a difference, not minus twelve
        (".5", "0.5", 1),
        ("9007199254740993", "9007199254740992", 0),  # equal as floats
        ("9" * 400, "8" * 400, 0),  # both infinite as floats
        ("none", "42", 0),
        ("42", "none", 0),
        ("", "", 0),
    ],
)
def test_numeric_match(reply: str, reference: str, value: float) -> None:
    assert numeric_match(reply, reference) == value


def test_rewards_are_summed_by_weight() -> None:
    specs = [RewardSpec(type="exactMatch", weight=0.25), RewardSpec(type="numericMatch", weight=2.0)]
    assert reward(specs, "42", "42") == 2.25
    assert reward(specs, "it is 42", "42") == 2.0
    assert reward(specs, "it is 41", "42") == 0.0


def test_every_reward_of_the_contract_has_its_function() -> None:
    assert set(REWARDS) == set(RewardSpec.model_fields["type"].annotation.__args__)  # type: ignore[union-attr]
