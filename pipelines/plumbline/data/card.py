"""The data card: what came in, what was kept, what was dropped and why. JSON here; the page for people is `card_page.py`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from plumbline.data.records import EXCERPT
from plumbline.data.row import COLUMNS, Form
from plumbline.data.rows import CHAT, to_row
from plumbline.data.sources import Origin

EXAMPLES = 5
TABLE_LINES = 40
"""Lines of a table of the card; what is rarer is summed up as `other`."""


class Tally:
    """Counts working tables as they pass, and makes the card from the counts.

    Args:
        origins: the sources, in order.
        origin_of: ordinal of the source, by ordinal of the part.
        form: what the rows hold.
    """

    def __init__(self, origins: Sequence[Origin], origin_of: Sequence[int], form: Form) -> None:
        self._origins, self._origin_of, self._form = origins, origin_of, form
        self._fates: list[Counter[str | None]] = [Counter() for _ in origins]
        self._examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._characters: Counter[int] = Counter()
        self._total_characters = 0
        self._turns: Counter[int] = Counter()
        self._roles: Counter[str] = Counter()
        self._operations: Counter[str] = Counter()
        self._tables: dict[str, Counter[str]] = {name: Counter() for name in ("format", "language", "category", "licence")}

    @property
    def rows(self) -> int:
        """Rows kept so far."""
        return sum(fates[None] for fates in self._fates)

    def rows_of(self, origin: int) -> int:
        """Rows kept from one source."""
        return self._fates[origin][None]

    def add(self, table: pa.Table) -> None:
        """Count a working table whose `reason` is final."""
        for fate in table.group_by(["part", "reason"]).aggregate([([], "count_all")]).to_pylist():
            self._fates[self._origin_of[fate["part"]]][fate["reason"]] += fate["count_all"]
        self._collect_examples(table)
        kept = table.filter(table["reason"].is_null())
        self._total_characters += pc.sum(kept["characters"]).as_py() or 0
        # The bin of n characters is the smallest power of two above n.
        self._characters.update(characters.bit_length() for characters in kept["characters"].to_pylist())
        for name, counts in self._tables.items():
            counts.update(_counts(kept[name]))
        # `redact:email:2` and `split:3` are told apart by number, which says nothing here.
        self._operations.update(
            word.rstrip("0123456789").rstrip(":") for word in pc.list_flatten(kept["operations"]).to_pylist()
        )
        chats = [kept[name] for name in COLUMNS[self._form] if kept.schema.field(name).type == CHAT]
        if chats:
            lengths = [pc.list_value_length(chat).to_pylist() for chat in chats[:2]]  # a pair's answers are alternatives
            extra = self._form == "rankings"  # whose answers are no column of chats
            self._turns.update(sum(ones) + extra for ones in zip(*lengths, strict=True))
        for chat in chats:
            self._roles.update(_counts(pc.struct_field(pc.list_flatten(chat), "role")))

    def _collect_examples(self, table: pa.Table) -> None:
        for reason in pc.unique(table["reason"]).drop_null().to_pylist():
            wanted = EXAMPLES - len(self._examples[reason])
            if wanted > 0:
                few = table.filter(pc.equal(table["reason"], reason)).slice(0, wanted)
                self._examples[reason] += [
                    {"source": row["source"], "record": row["record"], "excerpt": self._excerpt(row)}
                    for row in few.to_pylist()
                ]

    def _excerpt(self, values: dict[str, Any]) -> str:
        """What reading noted; of a row that was dropped later its own opening."""
        found: str | None = values["excerpt"]
        return " / ".join(to_row(values, self._form).texts)[:EXCERPT] if found is None else found

    def card(self) -> dict[str, Any]:
        """The card: plain JSON values, in an order that follows from the counts alone."""
        total: Counter[str | None] = sum(self._fates, Counter())
        dropped = _dropped(total)
        return {
            "form": self._form,
            "records": total.total(),
            "rows": total[None],
            "dropped": dropped,
            "sources": [
                {
                    "name": origin.name,
                    "uri": origin.uri,
                    "records": fates.total(),
                    "rows": fates[None],
                    "dropped": _dropped(fates),
                }
                for origin, fates in zip(self._origins, self._fates, strict=True)
            ],
            "characters": {
                "total": self._total_characters,
                "histogram": [{"below": 2**bits, "rows": self._characters[bits]} for bits in _span(self._characters)],
            },
            "turns": {str(turns): self._turns[turns] for turns in sorted(self._turns)},
            "roles": dict(sorted(self._roles.items())),
            "formats": most_frequent(self._tables["format"]),
            "languages": most_frequent(self._tables["language"]),
            "categories": most_frequent(self._tables["category"]),
            "licences": most_frequent(self._tables["licence"]),
            "operations": most_frequent(self._operations),
            "examples": {reason: self._examples[reason] for reason in dropped},
        }


def _counts(values: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    """Value → count; nulls are left out."""
    return {one["values"]: one["counts"] for one in pc.value_counts(values).to_pylist() if one["values"] is not None}


def dropped_words(card: dict[str, Any], what: str) -> str:
    """How many were dropped and what for most, as `19 drafts dropped, most (12) as 'empty reply'`.

    Args:
        card: of `Tally.card`.
        what: records or drafts.
    """
    words = f"{card['records'] - card['rows']:,} {what} dropped"
    if not card["dropped"]:
        return words
    reason, count = next(iter(card["dropped"].items()))
    return f"{words}, most ({count:,}) as '{reason}'"


def _dropped(fates: Counter[str | None]) -> dict[str, int]:
    """Reason → count, the most frequent first."""
    return _sorted({reason: count for reason, count in fates.items() if reason is not None})


def most_frequent(counts: Counter[str]) -> dict[str, int]:
    """The most frequent first, and what is rarer as `other`."""
    lines = _sorted(counts)
    shown = dict(list(lines.items())[:TABLE_LINES])
    rest = sum(lines.values()) - sum(shown.values())
    return shown | ({"other": rest + shown.get("other", 0)} if rest else {})


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _span(counts: Counter[int]) -> range:
    return range(min(counts), max(counts) + 1) if counts else range(0)
