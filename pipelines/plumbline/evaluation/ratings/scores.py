"""Mean grades of models: over all, by turn and by category."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from plumbline.evaluation.ratings.battles import Score
from plumbline.evaluation.ratings.win_rate import CONFIDENCE


@dataclass(frozen=True)
class MeanScore:
    """A model's mean grade.

    Attributes:
        mean: over all grades (each turn of each question counts once).
        standard_error: clustered by question, since turns of one are not independent; None of one question.
        low, high: interval of 95 %, Student's t over the questions.
        n: grades.
        questions: different ones.
        turns, categories: mean grade of each.
    """

    model: str
    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    n: int
    questions: int
    turns: dict[int, float]
    categories: dict[str, float]


def mean_scores(scores: Iterable[Score]) -> list[MeanScore]:
    """Every model's mean grades, best first."""
    by_model: dict[str, list[Score]] = {}
    for score in scores:
        by_model.setdefault(score.model, []).append(score)
    return sorted((_of_model(model, found) for model, found in by_model.items()), key=lambda one: (-one.mean, one.model))


def _of_model(model: str, scores: Sequence[Score]) -> MeanScore:
    values = np.array([score.value for score in scores])
    mean = float(values.mean())
    questions: dict[str, float] = {}
    turns: dict[int, list[float]] = {}
    categories: dict[str, list[float]] = {}
    for score in scores:
        questions[score.question] = questions.get(score.question, 0.0) + score.value - mean
        if score.turn is not None:
            turns.setdefault(score.turn, []).append(score.value)
        if score.category is not None:
            categories.setdefault(score.category, []).append(score.value)
    error = low = high = None
    clusters = len(questions)
    if clusters > 1:
        # The sandwich estimate of a mean: √(Σ_q (Σ_i (x_i − mean))²) / n, with the correction for few clusters.
        error = float(np.sqrt(np.square(list(questions.values())).sum() * clusters / (clusters - 1))) / len(values)
        reach = float(scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, clusters - 1)) * error
        low, high = mean - reach, mean + reach
    return MeanScore(
        model, mean, error, low, high, len(values), clusters,
        {turn: float(np.mean(turns[turn])) for turn in sorted(turns)},
        {name: float(np.mean(categories[name])) for name in sorted(categories)},
    )  # fmt: skip
