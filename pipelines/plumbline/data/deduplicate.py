"""Exact deduplication: of rows with the same key the first stays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DUPLICATE = "duplicate"


class FirstOccurrences:
    """Remembers keys over any number of tables, which must come in source order; about 100 bytes of memory a key."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def mask(self, keys: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Which rows bring a key for the first time.

        Args:
            keys: (n,) binary; null marks a row that is dropped already: neither first nor remembered.

        Returns:
            (n,) bool.
        """
        first = np.zeros(len(keys), dtype=bool)
        for i, key in enumerate(keys.to_pylist()):
            if key is not None and key not in self._seen:
                self._seen.add(key)
                first[i] = True
        return first


def mark_duplicates(table: pa.Table, seen: FirstOccurrences) -> pa.Table:
    """The working table with `reason` set to `duplicate` on good rows whose key occurred before."""
    first = seen.mask(table["key"])
    good = table["reason"].is_null()
    again = pc.and_(good, pa.array(~first))
    reason = pc.if_else(again, DUPLICATE, table["reason"])
    return table.set_column(table.schema.get_field_index("reason"), "reason", reason)
