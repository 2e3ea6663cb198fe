"""Win rates: AlpacaEval's (Dubois et al. 2024, arXiv 2404.04475) and those of a model against all others. In per cent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from plumbline.evaluation import statistics
from plumbline.evaluation.ratings.battles import Battle

CONFIDENCE = 0.95


@dataclass(frozen=True)
class WinRate:
    """How often a model is preferred.

    Attributes:
        win_rate: mean outcome, a tie ½.
        standard_error: standard deviation (n − 1) of the outcomes over √n; None of one item.
        low, high: interval of 95 %.
        discrete_win_rate: (wins + ½·draws) / n, where whatever is above ½ is won.
        n_wins, n_wins_base, n_draws, n_total: items above ½, below, at it, and all.
    """

    win_rate: float
    standard_error: float | None
    low: float
    high: float
    discrete_win_rate: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int


def win_rate(outcomes: Sequence[float]) -> WinRate:
    """The win rate over outcomes in [0, 1].

    The interval is the one of paired differences where items are won, tied or lost, so that ties alone are no certainty;
    Student's t where a judge gave probabilities.

    Raises:
        ValueError: there are none.
    """
    values = np.asarray(outcomes, dtype=np.float64)
    n = len(values)
    if not n:
        raise ValueError("a win rate needs one outcome at least")
    wins, losses, draws = (int(found.sum()) for found in (values > 0.5, values < 0.5, values == 0.5))
    if np.isin(values, (0.0, 0.5, 1.0)).all():
        estimate = statistics.win_rate(list(values), list(1 - values), CONFIDENCE)
    else:
        estimate = statistics.mean(list(values), CONFIDENCE)
    return WinRate(
        win_rate=100 * float(values.mean()),
        standard_error=100 * float(values.std(ddof=1)) / n**0.5 if n > 1 else None,
        low=100 * estimate.low,
        high=100 * estimate.high,
        discrete_win_rate=100 * (wins + draws / 2) / n,
        n_wins=wins,
        n_wins_base=losses,
        n_draws=draws,
        n_total=n,
    )


def outcomes_of(battles: Iterable[Battle], baseline: str | None) -> dict[str, list[float]]:
    """Every model's outcomes, against all others or against the baseline alone; a battle of weight n is there n times."""
    found: dict[str, list[float]] = {}
    for battle in battles:
        for model, other, outcome in (
            (battle.first, battle.second, battle.outcome),
            (battle.second, battle.first, 1 - battle.outcome),
        ):
            if baseline in (None, other):
                found.setdefault(model, []).extend([outcome] * battle.weight)
    return found
