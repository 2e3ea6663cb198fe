"""Greedy k-center (Gonzalez 1985; for data selection Sener and Savarese 2018, arXiv 1708.00489, algorithm 1)."""

from __future__ import annotations

import numpy as np

from plumbline.data.selection.budget import Budget
from plumbline.data.selection.choice import Choice

BLOCK_ROWS = 256
"""Large enough for fast products, small enough that most blocks have no row among the farthest."""
GONE = np.inf
"""In place of the cosine of a row that is taken, or does not fit."""


def choose_k_center(embeddings: np.ndarray, tokens: np.ndarray, budget: Budget, seed: int) -> Choice:
    """A random row, then always the row farthest (by cosine) from the nearest that was taken; of equal ones the first.

    Exact, and lazy: a row only comes nearer as more are taken, so the cosines of a block of rows are brought up to date
    only once its farthest row as last known could be the farthest of all. At most one cosine for each row and each
    row taken: time O(n·k·d) for k rows taken, mostly far less. In memory are one number a row and some blocks of vectors.

    Args:
        embeddings: (n, d) of length 1; may be memory-mapped.
        tokens: (n,) of each row.
        budget: how much to take.
        seed: of the first row.
    """
    fitting = np.flatnonzero(tokens <= budget.tokens)
    if not len(fitting) or not budget.rows:
        return Choice(fitting[:0])
    first = int(np.random.default_rng(seed).choice(fitting))
    taken, left = [first], budget.tokens - int(tokens[first])
    nearest = np.full(len(tokens), -np.inf, np.float32)  # cosine to the nearest center that was looked at
    nearest[first] = GONE
    blocks = [slice(start, start + BLOCK_ROWS) for start in range(0, len(tokens), BLOCK_ROWS)]
    farthest = np.array([nearest[block].min() for block in blocks])
    seen = np.zeros(len(blocks), np.int64)
    while len(taken) < budget.rows:
        b = int(np.argmin(farthest))
        if farthest[b] == GONE:
            break
        block = blocks[b]
        if seen[b] < len(taken):
            vectors = np.asarray(embeddings[block], np.float32)
            for start in range(seen[b], len(taken), BLOCK_ROWS):
                centers = np.asarray(embeddings[taken[start : start + BLOCK_ROWS]], np.float32)
                nearest[block] = np.maximum(nearest[block], (vectors @ centers.T).max(axis=1))
            seen[b] = len(taken)
        else:
            row = block.start + int(np.argmin(nearest[block]))
            nearest[row] = GONE
            if tokens[row] <= left:
                taken.append(row)
                left -= int(tokens[row])
        farthest[b] = nearest[block].min()
    return Choice(np.sort(np.array(taken, np.int64)))
