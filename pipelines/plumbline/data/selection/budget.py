"""How much may be taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plumbline.api.curation.selection import SelectSpec

NO_LIMIT = 2**62


@dataclass(frozen=True)
class Budget:
    """At most so many rows, of at most so many tokens in all."""

    rows: int = NO_LIMIT
    tokens: int = NO_LIMIT

    @classmethod
    def of(cls, spec: SelectSpec, count: int) -> Budget:
        """The budget of a spec where `count` rows reach selection; a share is at least one row."""
        if spec.tokens is not None:
            return cls(tokens=spec.tokens)
        return cls(rows=spec.rows if spec.rows is not None else max(1, round((spec.share or 1) * count)))

    def take(self, order: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Rows in this order, each if it still fits. What is left over is less than any row that was passed over.

        Args:
            order: (m,) row numbers, the most wanted first.
            tokens: (n,) of each row.

        Returns:
            (k,) row numbers in the same order.
        """
        taken: list[np.ndarray] = []
        room, left = self.rows, self.tokens
        rest = order[tokens[order] <= left]
        while len(rest) and room:
            sums = np.cumsum(tokens[rest])
            count = min(room, int(np.searchsorted(sums, left, side="right")))
            taken.append(rest[:count])
            room, left = room - count, left - int(sums[count - 1])
            rest = rest[count:]
            rest = rest[tokens[rest] <= left]
        return np.concatenate(taken) if taken else order[:0]
