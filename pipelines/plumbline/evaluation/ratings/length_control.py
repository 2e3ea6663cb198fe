"""AlpacaEval's length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475), with all terms of its model.

P(model preferred) = σ(model + length·tanh(Δ / sd Δ) + difficulty·d_i), with Δ the characters of the baseline's answer less those of the
model's, and d_i the instruction's difficulty. The win rate is the mean over the items as if no lengths differed (Δ = 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from plumbline.evaluation.ratings.battles import Floats

FOLDS = 5
PENALTIES = np.logspace(-4, 4, 10)
"""Inverse strengths of the L1 penalty; cross-validation takes the best."""
ANCHOR_WEIGHT = 0.2 / 2
"""Of one anchored judgment: 0.2 in all for the two variants of the baseline."""
_SEED = 123  # of liblinear's coordinate order
_SURE = 1e-9  # a preference is at least this far from 0 and 1: a fold in which nothing was ever won has no maximum


@dataclass(frozen=True)
class Weights:
    """The fitted terms of one model; differences of two are those of the one against the other."""

    model: float
    length: float
    difficulty: float

    def __sub__(self, other: Weights) -> Weights:
        return Weights(self.model - other.model, self.length - other.length, self.difficulty - other.difficulty)


BASELINE = Weights(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Anchors:
    """Judgments of the baseline's own verbose and concise variants, which tie down what length and difficulty do.

    Attributes:
        preference, length, difficulty: (n,) in [0, 1]; Δ in standard deviations; d.
    """

    preference: Floats
    length: Floats
    difficulty: Floats


def predict(weights: Weights, difficulty: Floats) -> float:
    """Win rate, in per cent, over items of these difficulties, as if no lengths differed."""
    return 100 * float(expit(weights.model + weights.difficulty * difficulty).mean())


def fit(preference: Floats, longer: Floats, difficulty: Floats, anchors: Anchors | None = None) -> Weights:
    """The terms from a model's judgments, by logistic regression without intercept under an L1 penalty.

    A preference p is two observations, 1 of weight p and 0 of weight 1 − p, which stay in one fold.

    Args:
        preference: (n,) in [0, 1].
        longer: (n,) characters of the baseline's answer less the model's.
        difficulty: (n,) of the instructions.
        anchors: further judgments that know no term of the model.

    Raises:
        ValueError: too few items, or all lengths differ by the same, so that nothing tells length from the model.
    """
    n = len(preference)
    if n < FOLDS:
        raise ValueError(f"{n} scored judgments are too few to fit the model; {FOLDS} are the least")
    spread = float(longer.std(ddof=1))
    if not spread and longer.any():
        raise ValueError("all answers differ from the baseline's by the same length; what length does cannot be told")
    length = longer / spread if spread else np.zeros(n)
    features = np.column_stack((np.tanh(length), difficulty, np.ones(n)))
    target, weight = preference, np.ones(n)
    if anchors is not None:
        also = np.column_stack((np.tanh(anchors.length), anchors.difficulty, np.zeros(len(anchors.length))))
        features, target = np.concatenate((also, features)), np.concatenate((anchors.preference, target))
        weight = np.concatenate((np.full(len(also), ANCHOR_WEIGHT), weight))
    coefficients = _fitted(features, target, weight)
    return Weights(length=float(coefficients[0]), difficulty=float(coefficients[1]), model=float(coefficients[2]))


def departs(raw: float, controlled: float) -> bool:
    """Whether length control moves a win rate by more than both 10 points and a quarter of the way to 0 or 100."""
    down, up = raw - controlled, controlled - raw
    return down > max(10, raw / 4) or up > max(10, (100 - raw) / 4)


def _fitted(features: Floats, target: Floats, weight: Floats) -> Floats:
    from sklearn.linear_model import LogisticRegression  # a second that only a fit is worth
    from sklearn.model_selection import GroupKFold

    rows = np.concatenate((features, features))
    label = np.repeat((1, 0), len(target))
    target = np.clip(target, _SURE, 1 - _SURE)
    chance = np.concatenate((target, 1 - target))
    twice = np.concatenate((weight, weight))
    group = np.tile(np.arange(len(target)), 2)
    folds = list(GroupKFold(FOLDS).split(rows, label, group))

    def regression(penalty: float, chosen: Floats | slice) -> Any:
        model = LogisticRegression(C=penalty, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=_SEED)
        return model.fit(rows[chosen], label[chosen], sample_weight=(chance * twice)[chosen])

    def loss(penalty: float) -> float:
        losses = []
        for kept, tested in folds:
            said = np.clip(regression(penalty, kept).predict_proba(rows[tested])[:, 1], 1e-15, 1 - 1e-15)
            # Once for each of the two observations of an item, whichever of them it is
            p = np.where(label[tested] == 1, chance[tested], 1 - chance[tested])
            losses.append(float(-np.mean(twice[tested] * (p * np.log(said) + (1 - p) * np.log(1 - said)))))
        return float(np.mean(losses))

    best = min(PENALTIES, key=loss)
    found: Floats = regression(best, slice(None)).coef_[0]
    return found
