"""The length-controlled win rate of a judged task (Dubois et al. 2024, arXiv 2404.04475), as a figure with an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks.benchmark import Item, Score
from plumbline.evaluation.ratings import length_control
from plumbline.evaluation.ratings.battles import Floats
from plumbline.evaluation.ratings.terms import read_difficulties

NAME = "lengthControlledWinRate"


def difficulties_of(uri: str, items: Sequence[Item], where: str) -> dict[str, float]:
    """The difficulty of each item's instruction, by item id: by its text where the file has texts, else by its place in the file of questions.

    Args:
        uri: AlpacaEval's table; see `read_difficulties`.
        items: of one task.
        where: field path, for messages.

    Raises:
        InvalidInput: the table cannot be read, or an instruction has none in it.
    """
    table = read_difficulties(uri)
    found: dict[str, float] = {}
    missing = []
    for item in items:
        number = -1 if item.number is None else item.number
        text = item.prompt[0]["content"]
        value = table.by_instruction.get(text) if table.by_instruction else table.by_item.get(number)
        if value is None:
            missing.append(item.id)
        else:
            found[item.id] = value
    if missing:
        by = "instruction" if table.by_instruction else "index, from 0 in the order of the questions"
        raise InvalidInput(
            f"{where}: {uri} has no difficulty for question {missing[0]} ({len(missing)} of {len(items)} are missing, by {by}); give the table "
            "that belongs to these questions, or leave it out"
        )
    return found


@dataclass(frozen=True)
class LengthControlled:
    """The figure: win rate in [0, 1] as if no lengths differed. A call may be of items drawn again, as a bootstrap draws them.

    The strength of the penalty is chosen on all items once, so that resamples differ by their items alone.

    Attributes:
        difficulty: of each item, by its id.
        penalty: inverse strength; None: too few items for any.
    """

    difficulty: Mapping[str, float]
    penalty: float | None

    @classmethod
    def of(cls, difficulty: Mapping[str, float], scores: Mapping[str, Score]) -> LengthControlled:
        """The figure of a comparison.

        Args:
            difficulty: by item id.
            scores: item id → the candidate's score, of the items that have one.
        """
        known = list(scores)
        try:
            columns = _columns([scores[one] for one in known], [difficulty[one] for one in known])
            return cls(difficulty, length_control.best_penalty(*columns))
        except ValueError:
            return cls(difficulty, None)

    def __call__(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, float]:
        if self.penalty is None:
            return {}
        preference, longer, difficulty = _columns(scores, [self.difficulty[item.id] for item in items])
        try:
            weights = length_control.fit(preference, longer, difficulty, penalty=self.penalty)
        except ValueError:  # a resample without what it is about
            return {}
        return {NAME: length_control.predict(weights, difficulty) / 100}


def _columns(scores: Sequence[Score], difficulty: Sequence[float]) -> tuple[Floats, Floats, Floats]:
    """Preference, characters by which the other answer is longer, difficulty."""
    return (
        np.array([score.value for score in scores]),
        np.array([-score.longer for score in scores], dtype=np.float64),
        np.array(difficulty),
    )
