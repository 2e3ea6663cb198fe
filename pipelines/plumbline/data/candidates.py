"""All rows of a curation between reading and writing: small facts in memory, the rows themselves in a mapped file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plumbline.data.row import COLUMNS, Form, Row
from plumbline.data.rows import dataset_schema, to_row, working_schema

BATCH_ROWS = 2000


class Candidates:
    """Rows by number, in the order in which they came. First `add` tables, then `seal`, then decide.

    Facts cost some tens of bytes a row (with MinHash bands some hundred); the rows lie on disk and are read as they are needed.

    Args:
        folder: for the file; local.
        form: what the rows hold.
        facts: columns that are kept in memory too, as NumPy arrays; nulls are zeros.
    """

    def __init__(self, folder: Path, form: Form, facts: Sequence[str]) -> None:
        self.form = form
        self.folder = folder
        self._path = folder / "rows.arrow"
        self._names = ("part", "characters", "score", *(["label"] if "label" in COLUMNS[form] else []), *facts)
        self._chunks: dict[str, list[np.ndarray]] = {name: [] for name in self._names}
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._starts = [0]
        self._reasons: list[np.ndarray] = []
        self._changed: set[str] = set()
        self.reasons: list[str] = []
        """Names of the reasons why rows were dropped."""
        self.dropped_by: dict[str, str] = {}
        """Reason → field of the stage's block that dropped rows for it; without those for which a record is no row."""

    def add(self, table: pa.Table) -> None:
        """More rows: a working table."""
        if self._writer is None:
            self._writer = pa.ipc.new_file(str(self._path), table.schema)
        for fate in table.group_by(["reason", "dropped_by"]).aggregate([]).drop_null().to_pylist():
            self.dropped_by[fate["reason"]] = fate["dropped_by"]
        for batch in table.combine_chunks().to_batches(max_chunksize=BATCH_ROWS):
            self._writer.write_batch(batch)
            self._starts.append(self._starts[-1] + batch.num_rows)
            for name in self._names:
                self._chunks[name].append(_to_numpy(batch.column(name)))
            self._reasons.append(self._codes(batch.column("reason")))

    def _codes(self, reasons: pa.Array) -> np.ndarray:
        encoded = reasons.dictionary_encode()
        of_code = np.array([self._code(word) for word in encoded.dictionary.to_pylist()] + [0], np.int16)
        return of_code[encoded.indices.fill_null(len(of_code) - 1).to_numpy(zero_copy_only=False)]

    def _code(self, reason: str) -> int:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1

    def seal(self) -> Self:
        """All rows are there."""
        if self._writer is None:  # a program of a teacher may end with none
            self.add(working_schema(self.form).empty_table())
        assert self._writer is not None
        self._writer.close()
        self._file = pa.ipc.open_file(pa.memory_map(str(self._path)))
        self._facts = {name: np.concatenate(chunks or [np.empty(0)]) for name, chunks in self._chunks.items()}
        self._reason = np.concatenate(self._reasons or [np.empty(0, np.int16)])
        self._chunks.clear()
        self._reasons.clear()
        return self

    def __len__(self) -> int:
        return self._starts[-1]

    def fact(self, name: str) -> np.ndarray:
        """One value per row: (n,) or, for columns of bytes, (n, width) uint8."""
        return self._facts[name]

    def set_fact(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Change a column of numbers, such as the score, of some rows; the rows that are read have it too."""
        self._facts[name][rows] = values
        self._changed.add(name)

    def kept(self) -> np.ndarray:
        """(m,) numbers of the rows that are not dropped, ascending."""
        return np.flatnonzero(self._reason == 0)

    def drop(self, rows: np.ndarray, reason: str, by: str | None = None) -> None:
        """Drop rows; what is dropped already keeps its reason.

        Args:
            rows: (m,) numbers.
            reason: they are counted by it.
            by: field of the stage's block that drops them.
        """
        chosen = rows[self._reason[rows] == 0]
        self._reason[chosen] = self._code(reason)
        if by is not None:
            self.dropped_by[reason] = by

    def reason_of(self, rows: np.ndarray) -> np.ndarray:
        """(m,) 0 for a kept row, else 1 + its place in `reasons`."""
        return self._reason[rows]

    def take(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows by number, in the order asked for, also repeated ones.

        Args:
            rows: (m,) numbers. What is returned is held in memory.
            columns: default all.
        """
        order = np.argsort(rows, kind="stable")
        which = np.searchsorted(self._starts, rows[order], side="right") - 1
        pieces = []
        for number in np.unique(which):
            inside = rows[order[which == number]] - self._starts[number]
            pieces.append(self._batch(int(number), columns).take(pa.array(inside)))
        if not pieces:
            return self._batch(0, columns).slice(0, 0)
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return pa.concat_tables(pieces).take(pa.array(back))

    def rows(self, numbers: np.ndarray) -> list[Row]:
        """Rows by number, as objects."""
        schema = self._file.schema
        names = [name for name in schema.names if name in dataset_schema(self.form).names or name == "instruction"]
        return [to_row(values, self.form) for values in self.take(numbers, names).to_pylist()]

    def chunks(self, numbers: np.ndarray, size: int = 1000) -> Iterator[tuple[np.ndarray, list[Row]]]:
        """Rows by number, as objects, some at a time, with their numbers."""
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            yield part, self.rows(part)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All rows in order, with the reasons as they are now."""
        words = pa.array([None, *self.reasons], pa.string())
        for number in range(self._file.num_record_batches):
            table = self._batch(number, columns)
            if "reason" in table.column_names:
                codes = self._reason[self._starts[number] : self._starts[number + 1]]
                place = table.schema.get_field_index("reason")
                table = table.set_column(place, "reason", words.take(pa.array(codes.astype(np.int64))))
            yield table

    def _batch(self, number: int, columns: Sequence[str] | None) -> pa.Table:
        table = pa.Table.from_batches([self._file.get_batch(number)])
        for name in self._changed:
            values = self._facts[name][self._starts[number] : self._starts[number + 1]]
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), pa.array(values, from_pandas=True))  # NaN is null
        return table if columns is None else table.select(list(columns))


def _to_numpy(column: pa.Array) -> np.ndarray:
    """Numbers as they are, fixed-size bytes as (n, width) uint8; nulls are zeros."""
    if pa.types.is_fixed_size_binary(column.type):
        width: Any = column.type.byte_width
        filled = pc.fill_null(column, bytes(width))
        data = np.frombuffer(filled.buffers()[1], np.uint8)
        return data[filled.offset * width : (filled.offset + len(filled)) * width].reshape(-1, width).copy()
    if pa.types.is_boolean(column.type):
        return np.asarray(column.fill_null(False).to_numpy(zero_copy_only=False))
    if pa.types.is_floating(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))  # null is NaN: no score
    return np.asarray(column.fill_null(0).to_numpy(zero_copy_only=False))
