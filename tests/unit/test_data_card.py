"""Tables, deduplication, files and the card, without Ray."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plumbline.data.card import Tally, render_html
from plumbline.data.dataset import ROW_GROUP_ROWS, DatasetWriter
from plumbline.data.deduplicate import FirstOccurrences, mark_duplicates
from plumbline.data.rows import Outcome, dataset_schema, tabulate
from plumbline.data.sources import Origin


def chat(prompt: str, answer: str = "ok") -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def table_of(*outcomes: Outcome, part: int = 0, max_characters: int = 1000) -> pa.Table:
    return pa.concat_tables(tabulate(outcomes, "messages", part, max_characters))


def good(record: int, prompt: str) -> Outcome:
    return Outcome("s", record, "alpaca", content=chat(prompt))  # type: ignore[arg-type]


def test_the_first_of_equal_rows_stays_across_tables() -> None:
    seen = FirstOccurrences()
    first = mark_duplicates(table_of(good(0, "Hi there"), good(1, "hi  THERE"), good(2, "other")), seen)
    second = mark_duplicates(table_of(good(0, "other"), Outcome("s", 1, reason="empty answer"), good(2, "new")), seen)
    assert first["reason"].to_pylist() == [None, "duplicate", None]
    assert second["reason"].to_pylist() == ["duplicate", "empty answer", None]


def test_the_answer_and_the_roles_are_part_of_the_key() -> None:
    pair = table_of(Outcome("s", 0, content=chat("a", "b")), Outcome("s", 1, content=chat("a", "c")))  # type: ignore[arg-type]
    assert mark_duplicates(pair, FirstOccurrences())["reason"].to_pylist() == [None, None]


def test_too_long_is_a_reason_and_such_a_row_does_not_shadow_others() -> None:
    table = table_of(good(0, "x" * 99), good(1, "x" * 98), max_characters=100)
    assert table["reason"].to_pylist() == ["too long", None]
    assert table["key"].to_pylist()[0] is None
    assert table["characters"].to_pylist()[1] == 100


@pytest.mark.parametrize("batch", [1, 700, 2000, 4500])
def test_files_do_not_depend_on_how_the_rows_arrive(tmp_path: Path, batch: int) -> None:
    rows = table_of(*(good(i, f"prompt {i}") for i in range(2 * ROW_GROUP_ROWS + 500)))
    schema = dataset_schema("messages")

    def write(folder: Path, size: int) -> bytes:
        with DatasetWriter(folder, schema) as writer:
            for start in range(0, rows.num_rows, size):
                writer.write(rows.slice(start, size).select(schema.names))
        return (folder / "data/part-00000.parquet").read_bytes()

    assert write(tmp_path / "a", batch) == write(tmp_path / "b", rows.num_rows)
    assert pq.read_table(tmp_path / "a" / "data").equals(rows.select(schema.names))


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_card_counts_everything_once_and_its_page_is_safe_and_whole() -> None:
    tally = Tally([Origin("one", "/one"), Origin("<two>", "/two")], [0, 1, 1], "messages")
    tally.add(table_of(good(0, "a" * 10), Outcome("one", 1, reason="empty answer", excerpt="<script>alert(1)</script>")))
    seen = FirstOccurrences()
    tally.add(mark_duplicates(table_of(*(good(i, "b") for i in range(9)), part=1), seen))
    tally.add(mark_duplicates(table_of(good(0, "c"), part=2), seen))
    card = tally.card()
    assert (card["records"], card["rows"], card["dropped"]) == (12, 3, {"duplicate": 8, "empty answer": 1})
    assert [(s["name"], s["records"], s["rows"]) for s in card["sources"]] == [("one", 2, 1), ("<two>", 10, 2)]
    assert card["characters"] == {
        "total": 18,
        "histogram": [{"below": 4, "rows": 2}, {"below": 8, "rows": 0}, {"below": 16, "rows": 1}],
    }
    assert card["turns"] == {"2": 3}
    assert card["roles"] == {"assistant": 3, "user": 3}
    assert len(card["examples"]["duplicate"]) == 5
    assert card["examples"]["duplicate"][0] == {"source": "s", "record": 1, "excerpt": "user: b / assistant: ok"}
    assert json.loads(json.dumps(card)) == card

    page = Page()
    page.feed(render_html(card, "data"))
    assert not page.links
    assert not {"script", "two", "link", "img"} & set(page.tags)
    assert page.tags.count("table") == 6


def test_card_of_nothing_can_be_made() -> None:
    tally = Tally([Origin("one", "/one")], [0], "messages")
    tally.add(table_of(Outcome("one", 0, reason="blank line", excerpt="line 1: ")))
    assert "blank line" in render_html(tally.card(), "data")
