"""All that judgments say about models, as one record: win rates, mean grades, Elo, Bradley–Terry, positions, what was unscored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from plumbline.errors import InvalidInput
from plumbline.evaluation.ratings import length_control
from plumbline.evaluation.ratings.battles import Arena, Battle, Judgments, Positions, Preference, Rating, positions
from plumbline.evaluation.ratings.bradley_terry import Disconnected, bradley_terry, unbounded
from plumbline.evaluation.ratings.elo import EloRating, elo
from plumbline.evaluation.ratings.length_control import BASELINE, Weights
from plumbline.evaluation.ratings.scores import MeanScore, mean_scores
from plumbline.evaluation.ratings.terms import Difficulties
from plumbline.evaluation.ratings.win_rate import WinRate, outcomes_of, win_rate

WIDE = 1000.0
"""Points of a Bradley–Terry interval that few battles explain, not strength."""
NAMED = 5
"""Unscored judgments that are named."""


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate.

    Attributes:
        win_rate: in per cent.
        baseline: against whom.
        source: `weights` (given), `fit` (from these judgments), `stored` (each judgment's own) or `same` (the baseline itself).
        weights: the terms, where they are known.
        anchored: whether the fit knew the baseline's verbose and concise variants.
    """

    win_rate: float
    baseline: str
    source: str
    weights: Weights | None = None
    anchored: bool | None = None


@dataclass(frozen=True)
class ModelRate:
    """A model's win rate: against the baseline, or against all others where that is None."""

    model: str
    baseline: str | None
    rate: WinRate
    unscored: int
    controlled: LengthControlled | None = None
    avg_length: float | None = None

    def record(self) -> dict[str, Any]:
        """Flat, with the names of AlpacaEval's leaderboards."""
        found = {"model": self.model, "baseline": self.baseline, **asdict(self.rate), "unscored": self.unscored}
        if self.avg_length is not None:
            found["avg_length"] = self.avg_length
        if self.controlled is not None:
            found["length_controlled_winrate"] = self.controlled.win_rate
            found["length_control"] = {key: value for key, value in asdict(self.controlled).items() if key != "win_rate"}
        return found


@dataclass
class Ratings:
    """The result; `elo` and `bradley_terry` are empty where battles are missing or disconnected."""

    win_rates: list[ModelRate]
    mean_scores: list[MeanScore]
    elo: list[EloRating]
    bradley_terry: list[Rating]
    positions: Positions | None
    unscored: Counter[str]
    unscored_first: list[str]
    scored: int
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """For programs; rates in per cent."""
        return {
            "scored": self.scored,
            "unscored": {"total": self.unscored.total(), "reasons": dict(self.unscored), "first": self.unscored_first},
            "win_rates": [one.record() for one in self.win_rates],
            "mean_scores": [asdict(one) for one in self.mean_scores],
            "elo": [asdict(one) for one in self.elo],
            "bradley_terry": [asdict(one) for one in self.bradley_terry],
            "positions": None if self.positions is None else asdict(self.positions),
            "notes": self.notes,
        }


def rate(
    judgments: Judgments,
    baseline: str | None = None,
    rounds: int = 1000,
    seed: int = 0,
    weights: dict[str, Weights] | None = None,
    difficulties: Difficulties | None = None,
) -> Ratings:
    """Rate the models.

    Args:
        judgments: what the files hold.
        baseline: compare with this model, and set its Bradley–Terry rating to 1000.
        rounds, seed: of the resamples for intervals.
        weights, difficulties: of the length-controlled model.

    Raises:
        InvalidInput: no judgment could be scored, or the baseline is in none.
    """
    notes = list(judgments.notes)
    preferences = [one for one in judgments.preferences if one.value is not None]
    scored = len(judgments.battles) + len(preferences) + (0 if judgments.battles else len(judgments.scores))
    if not scored:
        reasons = Counter(one.reason for one in judgments.unscored)
        words = "; ".join(f"{reason} ({count})" for reason, count in reasons.items())
        raise InvalidInput(
            f"none of {len(judgments.unscored)} judgments could be scored: {words}; see the first at {judgments.unscored[0].where}"
        )
    battles = judgments.battles + [
        Battle(one.model, one.baseline, one.value or 0.0) for one in preferences if one.model != one.baseline
    ]
    arena = Arena.of(battles)
    models = {*arena.models, *(one.model for one in judgments.scores), *(one.model for one in preferences)}
    if baseline is not None and baseline not in models | set(weights or ()):
        raise InvalidInput(f"--baseline '{baseline}' is in no judgment; models: {', '.join(sorted(models))}")
    if judgments.preferences:
        win_rates = _preference_rates(judgments.preferences, baseline, weights, difficulties, notes)
    else:
        win_rates = _battle_rates(judgments, baseline)
    found = Ratings(
        win_rates=sorted(win_rates, key=lambda one: (-one.rate.win_rate, one.model)),
        mean_scores=mean_scores(judgments.scores),
        elo=[], bradley_terry=[],
        positions=positions(judgments.shown) if judgments.shown else None,
        unscored=Counter(one.reason for one in judgments.unscored),
        unscored_first=[f"{one.where}: {one.reason}" for one in judgments.unscored[:NAMED]],
        scored=scored, notes=notes,
    )  # fmt: skip
    if len(arena):
        _rate_arena(found, arena, baseline, rounds, seed)
    return found


def _rate_arena(found: Ratings, arena: Arena, baseline: str | None, rounds: int, seed: int) -> None:
    anchor = baseline if baseline in arena.models else None
    try:
        found.bradley_terry = bradley_terry(arena, rounds, seed, anchor)
    except Disconnected as error:
        found.notes.append(f"no Elo and no Bradley–Terry ratings: {error}")
        return
    found.elo = elo(arena, rounds, seed)
    sides = unbounded(arena)
    if len(sides) == 1 and any((one.high or 0) - (one.low or 0) > WIDE for one in found.bradley_terry):
        found.notes.append(
            "in some resamples a model won or lost every battle; there only the ridge bounds its Bradley–Terry rating, so take "
            f"intervals wider than {WIDE:g} points as open: more battles are needed"
        )
    if len(sides) > 1:
        # Resampling such battles gives the ridge's number every time, which would look like certainty.
        within = set(sides[0]) if len(sides[0]) > 1 else set()
        found.bradley_terry = [
            one if one.model in within else replace(one, low=None, high=None) for one in found.bradley_terry
        ]
        shown = "; ".join(", ".join(side) for side in sides[:4]) + ("; …" if len(sides) > 4 else "")
        found.notes.append(
            "between these groups one side won every battle, so that only the ridge bounds how far apart their Bradley–Terry "
            f"ratings are: {shown}"
        )


def _battle_rates(judgments: Judgments, baseline: str | None) -> list[ModelRate]:
    unscored: Counter[str] = Counter()
    for one in judgments.unscored:
        if baseline is None or baseline in one.models:
            unscored.update(set(one.models))
    return [
        ModelRate(model, baseline, win_rate(outcomes), unscored[model])
        for model, outcomes in outcomes_of(judgments.battles, baseline).items()
    ]


def _preference_rates(
    preferences: Sequence[Preference],
    baseline: str | None,
    weights: dict[str, Weights] | None,
    difficulties: Difficulties | None,
    notes: list[str],
) -> list[ModelRate]:
    references = {one.baseline for one in preferences}
    if baseline is not None:
        turned = [one for preference in preferences if (one := preference.against(baseline)) is not None]
        if turned:
            if len(turned) < len(preferences):
                notes.append(f"{len(preferences) - len(turned):,} judgments without '{baseline}' are in the ratings only")
            preferences = turned
        else:
            notes.append(f"'{baseline}' is in no judgment: only the length-controlled win rates are against it")
    pairs: dict[tuple[str, str], list[Preference]] = {}
    for one in preferences:
        pairs.setdefault((one.model, one.baseline), []).append(one)
    rates = []
    for (model, against), found in pairs.items():
        values = [one.value for one in found if one.value is not None]
        if not values:
            notes.append(f"'{model}' against '{against}' has no judgment that could be scored ({len(found)} could not)")
            continue
        rate = win_rate(values)
        controlled = _controlled(found, baseline or against, references, weights, difficulties, notes)
        if (
            controlled is not None
            and length_control.departs(rate.win_rate, controlled.win_rate)
            and controlled.baseline == against
        ):
            notes.append(
                f"'{model}': length control moves the win rate from {rate.win_rate:.1f} to {controlled.win_rate:.1f} %, which is a "
                "lot; look at the lengths, and at how the weights came about"
            )
        lengths = [one.characters_model for one in found if one.characters_model is not None]
        average = float(np.mean(lengths)) if lengths else None
        rates.append(ModelRate(model, against, rate, len(found) - len(values), controlled, average))
    return rates


def _controlled(
    found: Sequence[Preference],
    baseline: str,
    references: set[str],
    weights: dict[str, Weights] | None,
    difficulties: Difficulties | None,
    notes: list[str],
) -> LengthControlled | None:
    """The length-controlled win rate of a pair's judgments; None where nothing is given to take it from."""
    model = found[0].model
    if model == baseline:
        return LengthControlled(50.0, baseline, "same") if difficulties or weights else None
    if difficulties is None:
        stored = [one.controlled for one in found if one.controlled is not None]
        return LengthControlled(100 * float(np.mean(stored)), baseline, "stored") if len(stored) == len(found) else None
    hard = difficulties.of(found)
    if weights is not None:
        terms = _weights_of(model, weights, references) - _weights_of(baseline, weights, references)
        return LengthControlled(length_control.predict(terms, hard), baseline, "weights", terms)
    if baseline != found[0].baseline:
        return None
    usable = [
        number for number, one in enumerate(found)
        if one.value is not None and one.characters_model is not None and one.characters_baseline is not None
    ]  # fmt: skip
    try:
        if not usable:
            raise ValueError("the answers and their lengths are not in the judgments")
        values = np.array([found[number].value for number in usable], dtype=np.float64)
        longer = np.array([(found[n].characters_baseline or 0) - (found[n].characters_model or 0) for n in usable])
        terms = length_control.fit(values, longer, hard[usable], difficulties.anchors)
    except ValueError as error:
        notes.append(f"'{model}' has no length-controlled win rate: {error}")
        return None
    anchored = difficulties.anchors is not None
    if not anchored:
        words = "length-controlled win rates are fitted to these judgments, without the anchors of AlpacaEval's own (--lc-weights gives them)"
        if words not in notes:
            notes.append(words)
    return LengthControlled(length_control.predict(terms, hard), baseline, "fit", terms, anchored)


def _weights_of(model: str, weights: dict[str, Weights], references: set[str]) -> Weights:
    """A model's terms; those of the baseline that they were fitted against are 0, and it need not be in the table.

    Raises:
        InvalidInput: the table has no such model.
    """
    if model in weights:
        return weights[model]
    if model in references:
        return BASELINE
    raise InvalidInput(
        f"--lc-weights has no row for '{model}'; it has {', '.join(sorted(weights)[:8])}{' …' if len(weights) > 8 else ''}; "
        "leave it out to fit the weights to the judgments"
    )
