"""A random sample."""

from __future__ import annotations

import numpy as np

from plumbline.data.selection.budget import Budget
from plumbline.data.selection.choice import Choice


def choose_random(tokens: np.ndarray, budget: Budget, seed: int) -> Choice:
    """Rows of a seeded permutation; a larger budget takes a superset, as long as rows are what is counted.

    Args:
        tokens: (n,) of each row.
        budget: how much to take.
        seed: of the permutation.
    """
    return Choice(np.sort(budget.take(np.random.default_rng(seed).permutation(len(tokens)), tokens)))
