"""The dataset that a method starts from: its rows, in an order of the seed's own, and what is read from them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import overload

import pyarrow as pa

from plumbline.data.normalise import fold
from plumbline.data.row import Chat, Row
from plumbline.data.rows import to_row
from plumbline.data.synthesis.book import Book
from plumbline.data.synthesis.program import random_of


class SeedRows(Sequence[Row]):
    """The rows of a Dataset artifact, shuffled; made when they are looked at, as a method seldom needs all of a large dataset.

    `record_id` names each row for its children, also where the record had no id.
    """

    def __init__(self, table: pa.Table, seed: int) -> None:
        self._batches = table.to_batches()  # taking from the table itself would join them all each time
        self._starts = list(accumulate((batch.num_rows for batch in self._batches), initial=0))[:-1]
        self._order = list(range(table.num_rows))
        random_of(seed, "order").shuffle(self._order)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, place: int) -> Row: ...

    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...

    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self._row(number) for number in self._order[place]]
        return self._row(self._order[place])

    def _row(self, number: int) -> Row:
        batch = bisect_right(self._starts, number) - 1
        [values] = self._batches[batch].slice(number - self._starts[batch], 1).to_pylist()
        return replace(to_row(values, "messages"), record_id=values["record_id"] or f"{values['source']}#{values['record']}")


BATCH = 4096
"""Most rows of one batch: what a large synthesis has made so far shows now and then."""


def batches(rows: Sequence[Row], book: Book, children: int = 1) -> Iterator[list[Row]]:
    """Rows to work on next: as many as would make the rows that the book still lacks, until rows or wants end.

    Args:
        rows: in order.
        book: where the method keeps what it makes.
        children: rows that one is expected to give.
    """
    position = 0
    while position < len(rows) and book.left > 0:
        count = min(BATCH, -(-book.left // children))
        yield list(rows[position : position + count])
        position += count


def instruction_of(row: Row) -> tuple[str, str]:
    """A row's task as (instruction, input): formats that keep them apart put a blank line between them."""
    instruction, _, extra = (row.prompts[0] if row.prompts else "").partition("\n\n")
    return instruction.strip(), extra.strip()


@dataclass(frozen=True)
class Demonstration:
    """A task that calls are shown, and the row that it stands for."""

    instruction: str
    row: str
    given: str = ""
    output: str = ""


def demonstrations(rows: Sequence[Row]) -> list[Demonstration]:
    """The distinct instructions of the rows, each with the input and the answer of its first row."""
    found: dict[str, Demonstration] = {}
    for row in rows:
        instruction, given = instruction_of(row)
        if instruction:
            line = " ".join(instruction.split())
            found.setdefault(fold(line), Demonstration(line, name_of(row), given, next(iter(row.answers), "")))
    return list(found.values())


def context_of(row: Row) -> Chat:
    """The chat up to the answer that is to be written anew."""
    return list(row.content["messages"][:-1])


def name_of(row: Row) -> str:
    """The id by which a row is named as a parent."""
    assert row.record_id is not None
    return row.record_id
