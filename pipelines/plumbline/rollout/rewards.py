"""Verifiable rewards: pure functions of an answer and its reference. A new one is one function and one line."""

from __future__ import annotations

import re
from collections.abc import Callable

from plumbline.api.stages.rlhf import RewardSpec

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact_match(reply: str, reference: str) -> float:
    """1 if equal up to surrounding and repeated white space."""
    return float(" ".join(reply.split()) == " ".join(reference.split()))


def numeric_match(reply: str, reference: str) -> float:
    """1 if the last numbers in both are equal; thousands commas are read over."""
    found = [NUMBER.findall(text) for text in (reply, reference)]
    if not all(found):
        return 0.0
    ours, theirs = (float(numbers[-1].replace(",", "")) for numbers in found)
    return float(ours == theirs)


REWARDS: dict[str, Callable[[str, str], float]] = {"exactMatch": exact_match, "numericMatch": numeric_match}


def reward(specs: list[RewardSpec], reply: str, reference: str) -> float:
    """The weighted sum."""
    return sum(spec.weight * REWARDS[spec.type](reply, reference) for spec in specs)
