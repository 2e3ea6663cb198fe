"""Verifiable rewards: pure functions of an answer and its reference. A new one is one function and one line."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from plumbline.api.stages.rlhf import RewardSpec
from plumbline.evaluation.benchmarks.gsm8k import last_number


def exact_match(reply: str, reference: str) -> float:
    """1 if equal up to surrounding and repeated white space."""
    return float(" ".join(reply.split()) == " ".join(reference.split()))


def numeric_match(reply: str, reference: str) -> float:
    """1 if the last numbers in both are equal, read as benchmark `gsm8k` reads them: what is rewarded is what is scored."""
    ours, theirs = last_number(reply), last_number(reference)
    return float(ours is not None and theirs is not None and Decimal(ours) == Decimal(theirs))


REWARDS: dict[str, Callable[[str, str], float]] = {"exactMatch": exact_match, "numericMatch": numeric_match}


def reward(specs: list[RewardSpec], reply: str, reference: str) -> float:
    """The weighted sum."""
    return sum((spec.weight * REWARDS[spec.type](reply, reference) for spec in specs), 0.0)
