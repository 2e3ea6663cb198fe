"""What becomes of each record, as Arrow tables: the rows of a dataset, and the working tables that curation passes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from plumbline.data.chat import Content
from plumbline.data.formats import Makes
from plumbline.data.normalise import KEY_BYTES, row_key

TABLE_ROWS = 2000

CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
COLUMNS: dict[Makes, tuple[str, ...]] = {"messages": ("messages",), "pairs": ("prompt", "chosen", "rejected")}
PROVENANCE = [
    pa.field("source", pa.string()),  # which file
    pa.field("record", pa.int64()),  # its index there, from 0
    pa.field("format", pa.string()),
    pa.field("record_id", pa.string()),  # the record's own id, if it has one
]


def dataset_schema(makes: Makes) -> pa.Schema:
    """Columns of a dataset artifact: the content in TRL's form, then where each row came from."""
    return pa.schema([*(pa.field(name, CHAT) for name in COLUMNS[makes]), *PROVENANCE])


def working_schema(makes: Makes) -> pa.Schema:
    """A dataset row plus what curation decides by. `reason` is null for good rows; others have it, and no content."""
    return pa.schema(
        [
            *dataset_schema(makes),
            pa.field("part", pa.int32()),
            pa.field("key", pa.binary(KEY_BYTES)),
            pa.field("characters", pa.int64()),
            pa.field("reason", pa.string()),
            pa.field("excerpt", pa.string()),
        ]
    )


@dataclass(frozen=True)
class Outcome:
    """What became of one record: content, or the reason why not and an excerpt."""

    source: str
    record: int
    format: str | None = None
    record_id: str | None = None
    content: Content | None = None
    reason: str | None = None
    excerpt: str | None = None


def tabulate(outcomes: Iterable[Outcome], makes: Makes, part: int, max_characters: int) -> Iterator[pa.Table]:
    """Outcomes as working tables of bounded size, with dedup keys and lengths.

    Args:
        outcomes: of one part, in order.
        makes: what the rows hold.
        part: ordinal of the part.
        max_characters: a row with more is dropped.
    """
    schema, names = working_schema(makes), COLUMNS[makes]
    stream = iter(outcomes)
    while batch := list(islice(stream, TABLE_ROWS)):
        yield pa.Table.from_pylist([_row(outcome, names, part, max_characters) for outcome in batch], schema)


def _row(outcome: Outcome, names: tuple[str, ...], part: int, max_characters: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "source": outcome.source,
        "record": outcome.record,
        "format": outcome.format,
        "record_id": outcome.record_id,
        "part": part,
        "reason": outcome.reason,
        "excerpt": outcome.excerpt,
    }
    if outcome.content is None:
        return row
    turns = [turn for name in names for turn in outcome.content[name]]
    characters = sum(len(turn["content"]) for turn in turns)
    if characters > max_characters:
        return row | {"reason": "too long", "excerpt": f"{characters} characters: {turns[0]['content'][:200]}"}
    texts = (text for name in names for turn in outcome.content[name] for text in (turn["role"], turn["content"]))
    return row | dict(outcome.content) | {"characters": characters, "key": row_key(texts)}
