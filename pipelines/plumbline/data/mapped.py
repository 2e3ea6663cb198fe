"""Rows on disk as memory has them: written once on a machine, then mapped by every process that reads them.

They lie below the user's cache. Files that no process reads any more go when another one is written.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from plumbline.artifacts import cache_folder


class Rows(Sequence[dict[str, Any]]):
    """A table's rows, each made a dictionary, as `Table.to_pylist` does it, when it is asked for.

    Attributes:
        table: the rows by column; of a mapped file, read from disk where it is touched.
    """

    def __init__(self, table: pa.Table, used: IO[bytes] | None = None) -> None:
        self.table = table
        self._columns = list(zip(table.column_names, table.columns, strict=True))
        self._used = used  # as long as it is open, its lock keeps the file there

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, i: int) -> dict[str, Any]:  # type: ignore[override]
        return {name: column[i].as_py() for name, column in self._columns}


def mapped(key: str, make: Callable[[], pa.RecordBatchReader]) -> Rows:
    """The rows of a key; who comes first on this machine makes them, others wait for that.

    Args:
        key: a file name that tells these rows from all others.
        make: called where they are not there yet; it gives record batches of a size that fits into memory.
    """
    folder = cache_folder("rows")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.arrow"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _clear(folder)
            _write(path, make())
        used = path.open("rb")
        fcntl.flock(used, fcntl.LOCK_SH)
    return Rows(pa.ipc.open_file(pa.memory_map(str(path))).read_all(), used)


def _clear(folder: Path) -> None:
    for path in [*folder.glob("*.arrow"), *folder.glob("*.part")]:
        with path.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # somebody reads it
                continue
            path.unlink()


def _write(path: Path, batches: pa.RecordBatchReader) -> None:
    partial = path.with_suffix(".part")
    try:
        with partial.open("wb") as stream:
            with pa.ipc.new_file(stream, batches.schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
