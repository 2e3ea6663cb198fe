"""What models say of rows, chunk by chunk, as whole arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from plumbline.data.row import Row

Measure = Callable[[Iterator[list[Row]]], Iterator[dict[str, np.ndarray]]]
"""Chunks of rows → what models say of them: for each name → (rows of the chunk, …)."""
Progress = Callable[[int, int], None]
"""Told how many are done, of how many."""


def gather(parts: Iterable[dict[str, np.ndarray]], count: int, scratch: Path, progress: Progress) -> dict[str, np.ndarray]:
    """What was measured in chunks as whole arrays: one number a row in memory, vectors in a mapped file.

    Args:
        parts: name → (rows of the chunk, …), in order.
        count: rows in all.
        scratch: local folder for the files.
        progress: told after each chunk how many rows are done, of how many.
    """
    whole: dict[str, np.ndarray] = {}
    done = 0
    for part in parts:
        for name, values in part.items():
            if name not in whole:
                shape = (count, *values.shape[1:])
                whole[name] = (
                    np.empty(shape, values.dtype)
                    if values.ndim == 1
                    else np.lib.format.open_memmap(scratch / f"{name}.npy", "w+", values.dtype, shape)
                )
            whole[name][done : done + len(values)] = values
        done += len(values)
        progress(done, count)
    return whole
