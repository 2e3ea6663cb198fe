"""The longest answers (Zhao et al. 2024, arXiv 2402.04833)."""

from __future__ import annotations

import numpy as np

from plumbline.data.selection.budget import Budget
from plumbline.data.selection.choice import Choice


def choose_longest(answer_tokens: np.ndarray, tokens: np.ndarray, budget: Budget) -> Choice:
    """Rows by the length of their answers; of equal ones the first.

    Args:
        answer_tokens: (n,) of each row's answers.
        tokens: (n,) of each row.
        budget: how much to take.
    """
    return Choice(np.sort(budget.take(np.argsort(-answer_tokens, kind="stable"), tokens)))
