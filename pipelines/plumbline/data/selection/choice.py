"""What a selection method decides."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Choice:
    """Rows that a method takes, and those that it would not take at any budget. The others only did not fit into the budget.

    Attributes:
        taken: (k,) row numbers, ascending.
        refused: reason → row numbers.
    """

    taken: np.ndarray
    refused: dict[str, np.ndarray] = field(default_factory=dict)
