"""Rows as Arrow tables: the columns of a dataset, and the working tables that curation passes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from plumbline.data.row import COLUMNS, Form, Row

TABLE_ROWS = 2000
TABLE_CHARACTERS = 1 << 25
"""Of texts in a table, about: an Arrow array holds at most 2 GiB of them."""

CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TYPES = {
    "completions": pa.list_(CHAT),
    "scores": pa.list_(pa.float64()),
    "label": pa.bool_(),
    "judgment": pa.string(),
    "text": pa.string(),
}
PROVENANCE = [
    pa.field("source", pa.string()),  # which file
    pa.field("record", pa.int64()),  # its index there, from 0
    pa.field("format", pa.string()),
    pa.field("record_id", pa.string()),  # the record's own id, if it has one
    pa.field("licence", pa.string()),
    pa.field("language", pa.string()),
    pa.field("category", pa.string()),
    pa.field("operations", pa.list_(pa.string())),  # what changed the row, in order
    pa.field("parents", pa.list_(pa.string())),  # ids of the rows that it was made from
    pa.field("teacher", pa.string()),
    pa.field("score", pa.float64()),
]
_OF_ROW = ("record_id", "licence", "language", "category", "operations", "parents", "teacher", "score")


def dataset_schema(form: Form) -> pa.Schema:
    """Columns of a dataset artifact: the content in TRL's form, then where each row came from."""
    return pa.schema([*(pa.field(name, _TYPES.get(name, CHAT)) for name in COLUMNS[form]), *PROVENANCE])


def working_schema(form: Form, annotations: Sequence[Annotation] = ()) -> pa.Schema:
    """A dataset row plus what curation decides by. `reason` is null for good rows; others have it, and no content."""
    working = [
        pa.field("instruction", pa.string()),
        pa.field("part", pa.int32()),
        pa.field("characters", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("dropped_by", pa.string()),
        pa.field("excerpt", pa.string()),
    ]
    return pa.schema([*dataset_schema(form), *working, *(annotation.field for annotation in annotations)])


@dataclass(frozen=True)
class Annotation:
    """A column that is computed from good rows, many at a time.

    Attributes:
        field: its name and type.
        compute: rows → one value each.
    """

    field: pa.Field
    compute: Callable[[list[Row]], pa.Array]


@dataclass(frozen=True)
class Outcome:
    """What became of one record, or of a part of it: a row, or the reason why not, with the field of the stage's block that
    dropped it (None: the record is none) and an excerpt."""

    source: str
    record: int
    format: str | None = None
    row: Row | None = None
    reason: str | None = None
    dropped_by: str | None = None
    excerpt: str | None = None

    def values(self) -> dict[str, Any]:
        """By column, without annotations."""
        row = self.row
        names = ("source", "record", "format", "reason", "dropped_by", "excerpt")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        if row is not None:
            found |= row.content
            found |= {name: getattr(row, name) for name in _OF_ROW}
            found |= {"instruction": row.instruction, "characters": sum(map(len, row.texts))}
        return found


def to_row(values: dict[str, Any], form: Form) -> Row:
    """The row of a dataset's or a working table's columns."""
    content = {name: values[name] for name in COLUMNS[form]}
    tuples = {name: tuple(values.get(name) or ()) for name in ("operations", "parents")}
    rest = {name: values.get(name) for name in ("instruction", *_OF_ROW) if name not in tuples}
    return Row(content, **rest, **tuples)


def tabulate(
    outcomes: Iterable[Outcome], form: Form, part: int, annotations: Sequence[Annotation] = ()
) -> Iterator[pa.Table]:
    """Outcomes as working tables of bounded size.

    Args:
        outcomes: of one part, in order.
        form: what the rows hold.
        part: ordinal of the part.
        annotations: further columns; null for outcomes that are no rows.
    """
    schema = working_schema(form)
    stream = iter(outcomes)
    while batch := list(_one_table(stream)):
        table = pa.Table.from_pylist([values | {"part": part} for _, values in batch], schema)
        good = [i for i, (row, _) in enumerate(batch) if row is not None]
        rows = [row for row, _ in batch if row is not None]
        places = None if len(good) == len(batch) else _places(good, len(batch))
        for annotation in annotations:
            values = annotation.compute(rows) if rows else pa.nulls(0, annotation.field.type)
            table = table.append_column(annotation.field, values if places is None else values.take(places))
        yield table


def _one_table(outcomes: Iterator[Outcome]) -> Iterator[tuple[Row | None, dict[str, Any]]]:
    characters = 0
    for outcome in islice(outcomes, TABLE_ROWS):
        values = outcome.values()
        yield outcome.row, values
        characters += values.get("characters", 0)
        if characters >= TABLE_CHARACTERS:
            return


def _places(good: list[int], count: int) -> pa.Array:
    """For each outcome the number of its row, or null."""
    places: list[int | None] = [None] * count
    for number, i in enumerate(good):
        places[i] = number
    return pa.array(places, pa.int64())


def to_table(outcomes: Iterable[Outcome], form: Form) -> pa.Table:
    """Good outcomes as one table with the columns of a dataset artifact."""
    schema = dataset_schema(form)
    rows = [outcome.values() for outcome in outcomes if outcome.row is not None]
    return pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)
