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


def fit(
    preference: Floats, longer: Floats, difficulty: Floats, anchors: Anchors | None = None, penalty: float | None = None
) -> Weights:
    """The terms from a model's judgments, by logistic regression without intercept under an L1 penalty.

    A preference p is two observations, 1 of weight p and 0 of weight 1 − p, which stay in one fold.

    Args:
        preference: (n,) in [0, 1].
        longer: (n,) characters of the baseline's answer less the model's.
        difficulty: (n,) of the instructions.
        anchors: further judgments that know no term of the model.
        penalty: its inverse strength; None: `best_penalty`.

    Raises:
        ValueError: too few items, or all lengths differ by the same, so that nothing tells length from the model.
    """
    observed = _Observed.of(*_features(preference, longer, difficulty, anchors))
    coefficients = observed.coefficients(observed.best_penalty() if penalty is None else penalty)
    return Weights(length=float(coefficients[0]), difficulty=float(coefficients[1]), model=float(coefficients[2]))


def best_penalty(preference: Floats, longer: Floats, difficulty: Floats) -> float:
    """The inverse strength that five-fold cross-validation takes; arguments and errors as of `fit`."""
    return _Observed.of(*_features(preference, longer, difficulty, None)).best_penalty()


def departs(raw: float, controlled: float) -> bool:
    """Whether length control moves a win rate by more than both 10 points and a quarter of the way to 0 or 100."""
    down, up = raw - controlled, controlled - raw
    return down > max(10, raw / 4) or up > max(10, (100 - raw) / 4)


def _features(
    preference: Floats, longer: Floats, difficulty: Floats, anchors: Anchors | None
) -> tuple[Floats, Floats, Floats]:
    """Features, preference and weight of each judgment."""
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
    return features, target, weight


@dataclass(frozen=True)
class _Observed:
    """Judgments as observations: of each one that the model was preferred and one that it was not.

    Attributes:
        rows: features, (2n, 3).
        label: (2n,) 1 or 0.
        preference: (2n,) of the judgment.
        weight: (2n,) of the judgment.
    """

    rows: Floats
    label: Floats
    preference: Floats
    weight: Floats

    @staticmethod
    def of(features: Floats, target: Floats, weight: Floats) -> _Observed:
        target = np.clip(target, _SURE, 1 - _SURE)
        label = np.repeat((1.0, 0.0), len(target))
        return _Observed(np.concatenate((features, features)), label, np.tile(target, 2), np.tile(weight, 2))

    def coefficients(self, penalty: float) -> Floats:
        found: Floats = self._fitted(penalty, slice(None)).coef_[0]
        return found

    def best_penalty(self) -> float:
        from sklearn.model_selection import GroupKFold

        group = np.tile(np.arange(len(self.label) // 2), 2)
        folds = list(GroupKFold(FOLDS).split(self.rows, self.label, group))

        def loss(penalty: float) -> float:
            losses = []
            for kept, tested in folds:
                said = np.clip(self._fitted(penalty, kept).predict_proba(self.rows[tested])[:, 1], 1e-15, 1 - 1e-15)
                p = self.preference[tested]  # once for each of the two observations of an item, whichever of them it is
                losses.append(float(-np.mean(self.weight[tested] * (p * np.log(said) + (1 - p) * np.log(1 - said)))))
            return float(np.mean(losses))

        return float(min(PENALTIES, key=loss))

    def _fitted(self, penalty: float, chosen: Floats | slice) -> Any:
        from sklearn.linear_model import LogisticRegression  # a second that only a fit is worth

        model = LogisticRegression(C=penalty, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=_SEED)
        chance = np.where(self.label == 1, self.preference, 1 - self.preference)
        return model.fit(self.rows[chosen], self.label[chosen], sample_weight=(chance * self.weight)[chosen])
