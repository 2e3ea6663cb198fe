"""A choice beside the two baselines that every method has to beat, at equal budget."""

from __future__ import annotations

from typing import Any

import numpy as np

from plumbline.api.curation.selection import SelectSpec
from plumbline.data.selection.budget import Budget
from plumbline.data.selection.choice import Choice
from plumbline.data.selection.longest import choose_longest
from plumbline.data.selection.uniform import choose_random


def compare(
    spec: SelectSpec, choice: Choice, tokens: np.ndarray, answer_tokens: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """What the method, a random choice and the longest answers give for the budget that the method spent.

    Args:
        spec: method, and whether rows or tokens were the budget.
        choice: what it chose.
        tokens: (n,) of each row.
        answer_tokens: (n,) of each row's answers.
        seed: of the random choice.

    Returns:
        One line each: method, rows, tokens, answerTokens (sums), and `shared`, the share of its rows that the method
        took too.
    """
    taken = choice.taken
    spent = Budget(rows=len(taken)) if spec.tokens is None else Budget(tokens=int(tokens[taken].sum()))
    chosen = {
        "random": choose_random(tokens, spent, seed).taken,
        "longest": choose_longest(answer_tokens, tokens, spent).taken,
    }
    return [
        {
            "method": method,
            "rows": len(rows),
            "tokens": int(tokens[rows].sum()),
            "answerTokens": int(answer_tokens[rows].sum()),
            "shared": float(np.isin(rows, taken).mean()) if len(rows) else 0.0,
        }
        for method, rows in (chosen | {spec.method: taken}).items()
    ]
