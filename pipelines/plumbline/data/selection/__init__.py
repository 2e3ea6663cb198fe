"""Selection: one file per method, and one registry line. Methods are pure functions on arrays; `data.scoring` measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plumbline.api.curation.selection import SelectSpec
from plumbline.data.selection.budget import Budget
from plumbline.data.selection.choice import Choice
from plumbline.data.selection.deita import choose_deita
from plumbline.data.selection.ifd import choose_ifd
from plumbline.data.selection.k_center import choose_k_center
from plumbline.data.selection.longest import choose_longest
from plumbline.data.selection.tags import choose_tags, frequent_tags
from plumbline.data.selection.uniform import choose_random


@dataclass(frozen=True)
class Facts:
    """What methods go by.

    Attributes:
        tokens: (n,) of each row, as the run's tokenizer and chat template count.
        answer_tokens: (n,) of its answers.
        measured: name → (n, …) what `data.scoring` measured for the method; for `tags` an array of tuples, the tags.
    """

    tokens: np.ndarray
    answer_tokens: np.ndarray
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)


Method = Callable[[Any, Facts, Budget, int], Choice]
"""(the method's block, facts, budget, seed) → choice."""

METHODS: dict[str, Method] = {
    "random": lambda block, facts, budget, seed: choose_random(facts.tokens, budget, seed),
    "longest": lambda block, facts, budget, seed: choose_longest(facts.answer_tokens, facts.tokens, budget),
    "ifd": lambda block, facts, budget, seed: choose_ifd(facts.measured["ratio"], facts.tokens, budget, block.max_ratio),
    "deita": lambda block, facts, budget, seed: choose_deita(
        facts.measured["value"], facts.measured["embedding"], facts.tokens, budget, block.similarity
    ),
    "tags": lambda block, facts, budget, seed: choose_tags(
        frequent_tags(facts.measured["tags"].tolist(), block.min_count), facts.tokens, budget
    ),
    "kCenter": lambda block, facts, budget, seed: choose_k_center(facts.measured["embedding"], facts.tokens, budget, seed),
}


def choose(spec: SelectSpec, facts: Facts, seed: int) -> Choice:
    """Rows that the spec keeps; the same whatever the order of work, ties broken by row number.

    Args:
        spec: the stage's `select` block.
        facts: of the n rows that reach selection.
        seed: of random choices.
    """
    return METHODS[spec.method](spec.block, facts, Budget.of(spec, len(facts.tokens)), seed)


def difficulty(spec: SelectSpec, facts: Facts) -> np.ndarray:
    """(n,) how hard rows are by what the method measured, for the order `easiest`; see `SelectSpec.tells_difficulty`."""
    if spec.method == "tags":
        return np.array([len(tags) for tags in facts.measured["tags"]], np.float64)
    return facts.measured["ratio" if spec.method == "ifd" else "complexity"]
