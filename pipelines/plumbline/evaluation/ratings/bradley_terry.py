"""Bradley–Terry ratings (1952) by penalised maximum likelihood, with bootstrap intervals.

P(a beats b) = σ(θ_a − θ_b); the fit maximises Σ w·[y·ln σ(θ_a − θ_b) + (1 − y)·ln σ(θ_b − θ_a)] − ½·ridge·Σ θ², ties y = ½.
The rating is 1000 + 400·θ / ln 10: 400 points are odds of 10 to 1. Without a ridge a model that never loses has no finite
rating; with `RIDGE` it has one, and the others' move by less than a hundredth of a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from plumbline.evaluation.ratings.battles import Arena, Floats, Integers, Rating, intervals

CENTRE = 1000.0
POINTS = 400.0 / float(np.log(10.0))
"""Rating points of one natural logit."""
RIDGE = 1e-6
_STEP = 1.0  # logits at most in one Newton step: the curvature is known only so near
_PRECISE = 1e-9  # logits
_STEPS = 200
_CELLS = 4_000_000  # numbers held at once


class Disconnected(ValueError):
    """Some models were never compared with others, not even over a third: their ratings have no common scale.

    Attributes:
        groups: the models, by who can be compared.
    """

    def __init__(self, groups: list[list[str]]) -> None:
        self.groups = groups
        shown = "; ".join(_listed(group) for group in groups[:4]) + ("; …" if len(groups) > 4 else "")
        super().__init__(
            f"the comparisons are disconnected: {len(groups)} groups of models never met ({shown}), so that their ratings "
            "have no common scale; add battles between the groups, or rate each by itself"
        )


def groups_of(arena: Arena) -> list[list[str]]:
    """Models that are compared with each other, directly or over others; the largest group first."""
    return _components(arena, arena.first, arena.second, "weak")


def unbounded(arena: Arena) -> list[list[str]]:
    """Groups between which one side never loses a point: their distance has no finite estimate, only the ridge's.

    One group, of all models, where the likelihood has a maximum by itself (Ford 1957).
    """
    lost, won = arena.outcome < 1, arena.outcome > 0
    losers = np.concatenate((arena.first[lost], arena.second[won]))
    winners = np.concatenate((arena.second[lost], arena.first[won]))
    return _components(arena, losers, winners, "strong")


def bradley_terry(arena: Arena, rounds: int, seed: int, anchor: str | None = None) -> list[Rating]:
    """Ratings of all models, best first.

    Args:
        arena: the battles.
        rounds: bootstrap resamples of the battles; 0 for no intervals.
        seed: of the resamples.
        anchor: this model's rating is set to 1000; else the mean is.

    Raises:
        Disconnected: not all models can be compared.
        ValueError: there is no battle, or the anchor is in none.
    """
    if not len(arena):
        raise ValueError("Bradley–Terry needs one battle at least")
    if anchor is not None and anchor not in arena.models:
        raise ValueError(f"the anchor '{anchor}' is in no battle; models: {_listed(arena.models)}")
    if len(groups := groups_of(arena)) > 1:
        raise Disconnected(groups)
    table = _Table.of(arena)
    strengths = _fit(table, table.counts[None, :].astype(np.float64))
    draw = np.random.default_rng(seed)
    chunk = max(1, _CELLS // max(len(table.counts), len(arena.models) ** 2))
    resampled = [
        _fit(table, draw.multinomial(len(arena), table.counts / len(arena), size=min(chunk, rounds - begin)))
        for begin in range(0, rounds, chunk)
    ]
    samples = np.concatenate(resampled) if resampled else np.empty((0, len(arena.models)))
    ratings, spread = (_rated(found, arena.models, anchor) for found in (strengths, samples))
    low, high = intervals(spread)
    found = [Rating(model, float(ratings[0, i]), low[i], high[i]) for i, model in enumerate(arena.models)]
    return sorted(found, key=lambda one: -one.rating)


@dataclass(frozen=True)
class _Table:
    """The different results, and how often each is there: resampling needs only the counts.

    Attributes:
        models: how many.
        pair: (results,) place in `pairs`.
        pairs: (pairs, 2) models that met.
        outcome, weight, counts: (results,); the outcome of the pair's first.
    """

    models: int
    pair: Integers
    pairs: Integers
    outcome: Floats
    weight: Integers
    counts: Integers

    @classmethod
    def of(cls, arena: Arena) -> _Table:
        swap = arena.first > arena.second
        low, high = np.where(swap, arena.second, arena.first), np.where(swap, arena.first, arena.second)
        results = np.column_stack((low, high, np.where(swap, 1 - arena.outcome, arena.outcome), arena.weight))
        unique, counts = np.unique(results, axis=0, return_counts=True)
        pairs, pair = np.unique(unique[:, :2].astype(np.int64), axis=0, return_inverse=True)
        return cls(len(arena.models), pair.reshape(-1), pairs, unique[:, 2], unique[:, 3].astype(np.int64), counts)


def _fit(table: _Table, counts: Floats | Integers) -> Floats:
    """θ (rounds, models) for counts (rounds, results), by Newton's method in all rounds at once."""
    rounds, first, second = len(counts), table.pairs[:, 0], table.pairs[:, 1]
    gather = coo_array((table.weight, (np.arange(len(table.pair)), table.pair)), shape=(len(table.pair), len(table.pairs)))
    won = coo_array((table.weight * table.outcome, (gather.row, gather.col)), shape=gather.shape).tocsr()
    games, wins = np.asarray(counts @ gather.tocsr()), np.asarray(counts @ won)
    ends = np.concatenate((first, second))
    signs = np.repeat((1.0, -1.0), len(first))
    net = coo_array((signs, (np.tile(np.arange(len(first)), 2), ends)), shape=(len(first), table.models)).tocsr()
    strengths = np.zeros((rounds, table.models))
    diagonal = np.arange(table.models)
    for _ in range(_STEPS):
        chance = expit(strengths[:, first] - strengths[:, second])
        slope = (wins - games * chance) @ net - RIDGE * strengths
        curve = games * chance * (1 - chance)
        hessian = np.zeros((rounds, table.models, table.models))
        hessian[:, first, second] = hessian[:, second, first] = -curve
        hessian[:, diagonal, diagonal] = curve @ abs(net) + RIDGE
        step = np.linalg.solve(hessian, slope[..., None])[..., 0]
        reach = np.abs(step).max(axis=1, keepdims=True)
        strengths += step * np.minimum(1, _STEP / np.maximum(reach, _PRECISE))
        if reach.max() < _PRECISE:
            break
    return strengths


def _rated(strengths: Floats, models: list[str], anchor: str | None) -> Floats:
    zero = strengths[:, [models.index(anchor)]] if anchor is not None else strengths.mean(axis=1, keepdims=True)
    return CENTRE + POINTS * (strengths - zero)


def _components(arena: Arena, begins: Integers, ends: Integers, kind: Literal["weak", "strong"]) -> list[list[str]]:
    n = len(arena.models)
    graph = coo_array((np.ones(len(begins)), (begins, ends)), shape=(n, n)).tocsr()
    count, labels = connected_components(graph, directed=True, connection=kind)
    found = [[model for model, label in zip(arena.models, labels, strict=True) if label == one] for one in range(count)]
    return sorted(found, key=lambda group: (-len(group), group))


def _listed(names: list[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
