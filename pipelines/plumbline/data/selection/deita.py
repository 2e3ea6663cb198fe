"""Score first, diversity aware (DEITA, Liu et al. 2023, arXiv 2312.15685, algorithm 1)."""

from __future__ import annotations

import numpy as np

from plumbline.data.selection.budget import Budget
from plumbline.data.selection.choice import Choice

UNSCORED = "no score"
NEAR = "near a row with a better score"
BLOCK_ROWS = 1024


def choose_deita(
    value: np.ndarray, embeddings: np.ndarray, tokens: np.ndarray, budget: Budget, similarity: float = 0.9
) -> Choice:
    """Rows by descending value, each unless it is near to one that was taken; of equal ones the first.

    Nearness is to rows that were *taken*, as in the paper: a row that is near only to a refused one may be taken. Costs
    one cosine for each row looked at and each row taken: time O(n·k·d) for k rows taken. In memory are some numbers a row
    and some blocks of vectors.

    Args:
        value: (n,) complexity × quality; NaN for none.
        embeddings: (n, d) of length 1; may be memory-mapped.
        tokens: (n,) of each row.
        budget: how much to take.
        similarity: a higher cosine is near.
    """
    scored = np.flatnonzero(~np.isnan(value))
    order = scored[np.argsort(-value[scored], kind="stable")]
    room, left = budget.rows, budget.tokens
    taken: list[int] = []
    refused: list[int] = []
    for start in range(0, len(order), BLOCK_ROWS):
        block = order[start : start + BLOCK_ROWS]
        vectors = np.asarray(embeddings[block], np.float32)
        near = np.zeros(len(block), bool)
        for first in range(0, len(taken), BLOCK_ROWS):
            earlier = np.asarray(embeddings[taken[first : first + BLOCK_ROWS]], np.float32)
            near |= (vectors @ earlier.T > similarity).any(axis=1)
        within = vectors @ vectors.T > similarity
        for i, row in enumerate(block.tolist()):
            if not room:
                break
            if near[i]:
                refused.append(row)
            elif tokens[row] <= left:
                near |= within[i]
                taken.append(row)
                room, left = room - 1, left - int(tokens[row])
        if not room:
            break
    return Choice(
        np.sort(np.array(taken, np.int64)),
        {UNSCORED: np.flatnonzero(np.isnan(value)), NEAR: np.sort(np.array(refused, np.int64))},
    )
