"""Instruction-following difficulty (Cherry LLM, Li et al. 2023, arXiv 2308.12032)."""

from __future__ import annotations

import numpy as np

from plumbline.data.selection.budget import Budget
from plumbline.data.selection.choice import Choice

UNMEASURED = "too long to measure, or no good answer"
MISALIGNED = "prompt makes the answer less likely"


def choose_ifd(ratio: np.ndarray, tokens: np.ndarray, budget: Budget, max_ratio: float = 1.0) -> Choice:
    """Rows by descending ratio, without those above `max_ratio`; of equal ones the first.

    Args:
        ratio: (n,) mean negative log-likelihood of the answers given their prompts ÷ of the answers alone (a ratio of
            means of logarithms as in the paper, not of perplexities); NaN where it could not be measured.
        tokens: (n,) of each row.
        budget: how much to take.
        max_ratio: 1 in the paper.
    """
    usable = ratio <= max_ratio  # false for NaN
    rows = np.flatnonzero(usable)
    order = rows[np.argsort(-ratio[rows], kind="stable")]
    refused = {UNMEASURED: np.flatnonzero(np.isnan(ratio)), MISALIGNED: np.flatnonzero(ratio > max_ratio)}
    return Choice(np.sort(budget.take(order, tokens)), refused)
