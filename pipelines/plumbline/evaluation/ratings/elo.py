"""Elo ratings as Chatbot Arena had them first: K 4, scale 400, base 10, start 1000, ties ½.

A pass over the battles depends on their order, so the rating is the median over resampled orders (Zheng et al. 2023,
arXiv 2306.05685), with the 2.5 and 97.5 percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from plumbline.evaluation.ratings.battles import Arena, Floats, Integers, Rating, intervals

K = 4.0
SCALE = 400.0
START = 1000.0


@dataclass(frozen=True)
class EloRating(Rating):
    """A rating, and the one of a single pass in the order of the files."""

    in_order: float


def elo(arena: Arena, rounds: int, seed: int) -> list[EloRating]:
    """Ratings of all models, best first.

    Args:
        arena: the battles; one of weight n is n battles.
        rounds: resamples, with replacement; 0 for one pass alone, without intervals.
        seed: of the resamples.

    Raises:
        ValueError: there is no battle.
    """
    if not len(arena):
        raise ValueError("Elo needs one battle at least")
    rows = np.repeat(np.arange(len(arena)), arena.weight)
    in_order = _passes(arena, rows[:, None], 1)[0]
    draw = np.random.default_rng(seed)
    samples = _passes(arena, (rows[draw.integers(len(rows), size=rounds)] for _ in rows), rounds)
    ratings = np.median(samples, axis=0) if rounds else in_order
    low, high = intervals(samples)
    found = [
        EloRating(model, float(ratings[i]), low[i], high[i], float(in_order[i])) for i, model in enumerate(arena.models)
    ]
    return sorted(found, key=lambda one: -one.rating)


def _passes(arena: Arena, orders: Iterable[Integers], passes: int) -> Floats:
    """Ratings (passes, models) after all battles; `orders` yields the next row of every pass, (passes,)."""
    models = len(arena.models)
    ratings = np.full(passes * models, START)
    begins = np.arange(passes) * models
    slope = math.log(10) / SCALE
    for rows in orders if passes else ():
        first, second = begins + arena.first[rows], begins + arena.second[rows]
        expected = 1 / (1 + np.exp(slope * (ratings[second] - ratings[first])))
        change = K * (arena.outcome[rows] - expected)
        ratings[first] += change
        ratings[second] -= change
    return ratings.reshape(passes, models)
