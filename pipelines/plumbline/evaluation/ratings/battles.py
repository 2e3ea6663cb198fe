"""What judges said, whatever file it stood in: battles, preferences and scores, and what could not be scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Battle:
    """Two models' answers to one question, compared.

    Attributes:
        first, second: the models.
        outcome: of the first: 1 won, 0.5 tied, 0 lost; between them where the judge gave a probability.
        weight: how often it counts.
    """

    first: str
    second: str
    outcome: float
    weight: int = 1


@dataclass(frozen=True)
class Preference:
    """One judgment in AlpacaEval's form.

    Attributes:
        model, baseline: `generator_2` and `generator_1`.
        value: how much the model's answer is preferred, in [0, 1]; None where the judge's reply could not be read.
        item: number of the instruction in the evaluation set, if the record says it.
        instruction: its text, if the record has it.
        characters_model, characters_baseline: lengths of the answers, if known.
        controlled: the value that a length-controlled model gave it (`glm_preference`), if stored.
    """

    model: str
    baseline: str
    value: float | None
    item: int | None = None
    instruction: str | None = None
    characters_model: float | None = None
    characters_baseline: float | None = None
    controlled: float | None = None

    def against(self, baseline: str) -> Preference | None:
        """The same judgment seen from the other model where this one is the baseline; None if it is neither."""
        if self.baseline == baseline:
            return self
        if self.model != baseline:
            return None
        return Preference(
            self.baseline, self.model, None if self.value is None else 1 - self.value, self.item, self.instruction,
            self.characters_baseline, self.characters_model, None if self.controlled is None else 1 - self.controlled,
        )  # fmt: skip


@dataclass(frozen=True)
class Score:
    """A grade of one answer.

    Attributes:
        question: answers to the same question are not independent.
        turn: of the conversation, from 1, if known.
        category: of the question, if known.
    """

    model: str
    value: float
    question: str
    turn: int | None = None
    category: str | None = None


@dataclass(frozen=True)
class Unscored:
    """A judgment that says nothing: where it stands (FILE:LINE), of which models, and why."""

    where: str
    models: tuple[str, ...]
    reason: str


@dataclass
class Judgments:
    """What the files hold.

    Attributes:
        shown: outcome of the answer that the judge saw first, by (question, model shown first, model shown second), where
            files tell the order.
        repeated: judgments that are there again word for word.
        notes: what readers should know, in words.
    """

    battles: list[Battle] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    unscored: list[Unscored] = field(default_factory=list)
    shown: dict[tuple[str, str, str], float] = field(default_factory=dict)
    repeated: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Positions:
    """What the order of the answers did.

    Attributes:
        games: judgments whose order is known and that were no tie; `first_preferred` is the share that the first answer won.
        pairs: questions judged in both orders; `consistent` is the share with the same result in both.
    """

    games: int
    first_preferred: float | None
    pairs: int
    consistent: float | None


def positions(shown: Mapping[tuple[str, str, str], float]) -> Positions:
    """Swap consistency and the preference for what comes first; `shown` as in `Judgments`."""
    decided = [outcome for outcome in shown.values() if outcome != 0.5]
    same = [
        outcome == 1 - shown[question, second, first]
        for (question, first, second), outcome in shown.items()
        if first < second and (question, second, first) in shown
    ]
    return Positions(
        len(decided),
        sum(outcome > 0.5 for outcome in decided) / len(decided) if decided else None,
        len(same),
        sum(same) / len(same) if same else None,
    )


@dataclass(frozen=True)
class Arena:
    """Battles as arrays.

    Attributes:
        models: sorted names; the arrays hold places in it.
        first, second, weight: (battles,) integers.
        outcome: (battles,) of the first model.
    """

    models: list[str]
    first: Integers
    second: Integers
    outcome: Floats
    weight: Integers

    @classmethod
    def of(cls, battles: Iterable[Battle]) -> Arena:
        rows = list(battles)
        models = sorted({name for battle in rows for name in (battle.first, battle.second)})
        place = {name: number for number, name in enumerate(models)}
        return cls(
            models,
            np.array([place[battle.first] for battle in rows], dtype=np.int64),
            np.array([place[battle.second] for battle in rows], dtype=np.int64),
            np.array([battle.outcome for battle in rows], dtype=np.float64),
            np.array([battle.weight for battle in rows], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.outcome)


@dataclass(frozen=True)
class Rating:
    """A model's rating on Elo's scale, where 400 points are odds of 10 to 1; the interval of 95 % from resampled battles."""

    model: str
    rating: float
    low: float | None
    high: float | None


def intervals(samples: Floats) -> tuple[Sequence[float | None], Sequence[float | None]]:
    """2.5 and 97.5 percentiles of every column of (rounds, models); None without rounds."""
    if not len(samples):
        nothing = [None] * samples.shape[1]
        return nothing, nothing
    low, high = np.percentile(samples, (2.5, 97.5), axis=0)
    return [float(value) for value in low], [float(value) for value in high]
