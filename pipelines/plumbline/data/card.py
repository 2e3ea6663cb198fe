"""The data card: what came in, what was kept, what was dropped and why. JSON for programs, HTML for people."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from plumbline.data.formats import Makes
from plumbline.data.rows import COLUMNS
from plumbline.data.sources import Origin

EXAMPLES = 5
EXCERPT = 300


class Tally:
    """Counts working tables as they pass, and makes the card from the counts.

    Args:
        origins: the sources, in order.
        origin_of: ordinal of the source, by ordinal of the part.
        makes: what the rows hold.
    """

    def __init__(self, origins: Sequence[Origin], origin_of: Sequence[int], makes: Makes) -> None:
        self._origins, self._origin_of, self._makes = origins, origin_of, makes
        self._fates: list[Counter[str | None]] = [Counter() for _ in origins]
        self._examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._characters: Counter[int] = Counter()
        self._total_characters = 0
        self._turns: Counter[int] = Counter()
        self._roles: Counter[str] = Counter()
        self._formats: Counter[str] = Counter()

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
        self._collect_examples(table.filter(table["reason"].is_valid()))
        kept = table.filter(table["reason"].is_null())
        self._total_characters += pc.sum(kept["characters"]).as_py() or 0
        # The bin of n characters is the smallest power of two above n.
        self._characters.update(characters.bit_length() for characters in kept["characters"].to_pylist())
        self._formats.update(kept["format"].to_pylist())
        chats = [kept[name] for name in COLUMNS[self._makes]]
        lengths = [pc.list_value_length(chat).to_pylist() for chat in chats[:2]]  # a pair's two answers are alternatives
        self._turns.update(map(sum, zip(*lengths, strict=True)))
        for chat in chats:
            counts = pc.value_counts(pc.struct_field(pc.list_flatten(chat), "role"))
            self._roles.update({count["values"]: count["counts"] for count in counts.to_pylist()})

    def _collect_examples(self, dropped: pa.Table) -> None:
        for reason in pc.unique(dropped["reason"]).to_pylist():
            wanted = EXAMPLES - len(self._examples[reason])
            if wanted > 0:
                few = dropped.filter(pc.equal(dropped["reason"], reason)).slice(0, wanted)
                self._examples[reason] += [
                    {"source": row["source"], "record": row["record"], "excerpt": row["excerpt"] or self._opening(row)}
                    for row in few.to_pylist()
                ]

    def _opening(self, row: dict[str, Any]) -> str:
        turns = [turn for name in COLUMNS[self._makes] for turn in row[name]]
        return " / ".join(f"{turn['role']}: {turn['content']}" for turn in turns)[:EXCERPT]

    def card(self) -> dict[str, Any]:
        """The card: plain JSON values, in an order that follows from the counts alone."""
        total: Counter[str | None] = sum(self._fates, Counter())
        dropped = _dropped(total)
        return {
            "format": self._makes,
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
            "formats": dict(sorted(self._formats.items())),
            "examples": {reason: self._examples[reason] for reason in dropped},
        }


def _dropped(fates: Counter[str | None]) -> dict[str, int]:
    """Reason → count, the most frequent first."""
    counts = [(reason, count) for reason, count in fates.items() if reason is not None]
    return dict(sorted(counts, key=lambda item: (-item[1], item[0])))


def _span(counts: Counter[int]) -> range:
    return range(min(counts), max(counts) + 1) if counts else range(0)


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap } td.bar { width: 50% }
.bar span { display: block; height: .8rem; background: #4878a8; min-width: 1px }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .4rem .6rem; margin: .3rem 0 }
"""


def render_html(card: Mapping[str, Any], title: str) -> str:
    """The card as one HTML page without external resources.

    Args:
        card: from `Tally.card`.
        title: heading, such as the stage's name.
    """
    kept = f"{card['rows']:,} of {card['records']:,} records became rows ({card['format']})."
    histogram = {f"under {bin['below']:,}": bin["rows"] for bin in card["characters"]["histogram"]}
    turns = {f"{turns} turns": rows for turns, rows in card["turns"].items()}
    parts = [
        f"<h1>Data card: {escape(title)}</h1><p>{kept}</p>",
        "<h2>Sources</h2>" + _sources_table(card["sources"]),
        "<h2>Dropped, by reason</h2>" + (_bars(card["dropped"]) if card["dropped"] else "<p>Nothing was dropped.</p>"),
        "<h2>Characters in a row</h2>" + _bars(histogram),
        "<h2>Turns in a row</h2>" + _bars(turns),
        "<h2>Turns by role</h2>" + _bars(card["roles"]),
        "<h2>Rows by record format</h2>" + _bars(card["formats"]),
        *(_examples(reason, examples) for reason, examples in card["examples"].items()),
    ]
    head = f'<meta charset="utf-8"><title>Data card: {escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>' + "\n".join(parts) + "\n</body></html>\n"


def _sources_table(sources: Sequence[Mapping[str, Any]]) -> str:
    rows = (
        f'<tr><td>{escape(source["name"])}</td><td>{escape(source["uri"])}</td><td class="n">{source["records"]:,}</td>'
        f'<td class="n">{source["rows"]:,}</td>'
        f"<td>{escape(', '.join(f'{reason} {count:,}' for reason, count in source['dropped'].items()) or 'none')}</td></tr>"
        for source in sources
    )
    head = '<tr><th>source</th><th>URI</th><th class="n">records</th><th class="n">rows</th><th>dropped</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def _bars(counts: Mapping[str, int]) -> str:
    most = max(counts.values(), default=0) or 1
    rows = (
        f'<tr><td>{escape(name)}</td><td class="n">{count:,}</td>'
        f'<td class="bar"><span style="width:{100 * count / most:.1f}%"></span></td></tr>'
        for name, count in counts.items()
    )
    return f"<table>{''.join(rows)}</table>"


def _examples(reason: str, examples: Sequence[Mapping[str, Any]]) -> str:
    shown = (
        f"<p>{escape(example['source'])}, record {example['record']}</p><pre>{escape(example['excerpt'])}</pre>"
        for example in examples
    )
    return f"<h2>Examples of “{escape(reason)}”</h2>{''.join(shown)}"
