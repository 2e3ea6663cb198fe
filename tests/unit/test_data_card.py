"""Working tables, candidates, files and the card, without Ray."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plumbline.data.candidates import Candidates
from plumbline.data.card import Tally, dropped_words
from plumbline.data.card_page import render_html
from plumbline.data.dataset import ROW_GROUP_ROWS, DatasetWriter
from plumbline.data.measured import gather
from plumbline.data.row import Form, Row
from plumbline.data.rows import Annotation, Outcome, dataset_schema, tabulate, to_row
from plumbline.data.sources import Origin

LENGTH = Annotation(pa.field("length", pa.int32()), lambda rows: pa.array([len(row.texts[0]) for row in rows], pa.int32()))
TAG = Annotation(
    pa.field("tag", pa.binary(2)), lambda rows: pa.array([row.texts[0][:2].ljust(2).encode() for row in rows], pa.binary(2))
)


def chat(prompt: str, answer: str = "ok") -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def table_of(*outcomes: Outcome, part: int = 0, form: Form = "messages") -> pa.Table:
    return pa.concat_tables(tabulate(outcomes, form, part, (LENGTH, TAG)))


def good(record: int, prompt: str, **about: object) -> Outcome:
    return Outcome("s", record, "alpaca", Row(chat(prompt), **about))  # type: ignore[arg-type]


def bad(record: int, reason: str = "empty answer") -> Outcome:
    return Outcome("s", record, reason=reason, excerpt="<script>alert(1)</script>")


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("messages", chat("a")),
        ("pairs", {"prompt": chat("a")["messages"][:1], "chosen": chat("", "b")["messages"][1:], "rejected": []}),
        ("rankings", {"prompt": chat("a")["messages"][:1], "completions": [chat("", "b")["messages"][1:]], "scores": [0.5]}),
        ("labels", {"prompt": chat("a")["messages"][:1], "completion": chat("", "b")["messages"][1:], "label": False}),
        ("text", {"text": "a"}),
    ],
)
def test_a_row_goes_into_a_table_and_comes_back(form: Form, content: dict[str, object]) -> None:
    row = Row(content, "a", "id", "MIT", "en", "science", ("html", "split:1"), ("x", "y"), "teacher", 0.25)
    table = table_of(Outcome("s", 3, "f", row), bad(4), form=form)
    assert to_row(table.to_pylist()[0], form) == row
    assert table["characters"].to_pylist() == [sum(map(len, row.texts)), None]
    assert table["length"].to_pylist() == [1, None], "annotations are null where there is no row"


@pytest.mark.parametrize("size", [1, 3, 1000, 5000])
def test_candidates_are_told_apart_by_number_however_they_came(tmp_path: Path, size: int) -> None:
    outcomes = [bad(i) if i % 7 == 3 else good(i, f"{i % 10}{'x' * (i % 13)}") for i in range(5000 if size > 3 else 50)]
    whole = table_of(*outcomes)
    candidates = Candidates(tmp_path, "messages", ["length", "tag"])
    for start in range(0, len(outcomes), size):
        candidates.add(whole.slice(start, size))
    candidates.seal()
    assert len(candidates) == len(outcomes)
    expected = [i for i in range(len(outcomes)) if i % 7 != 3]
    assert candidates.kept().tolist() == expected
    assert candidates.fact("length")[expected].tolist() == [1 + i % 13 for i in expected]
    assert candidates.fact("tag").shape == (len(outcomes), 2)
    assert bytes(candidates.fact("tag")[12]) == b"2x"
    some = np.array([9, 2, 2, len(outcomes) - 2, 0])
    assert candidates.take(some, ["record"])["record"].to_pylist() == some.tolist()
    assert [row.texts[0] for row in candidates.rows(some[:3])] == [outcomes[i].row.texts[0] for i in some[:3]]  # type: ignore[union-attr]

    candidates.drop(np.array([3, 4, 9]), "duplicate")
    assert candidates.kept().tolist() == [i for i in expected if i not in (4, 9)]
    reasons = pa.concat_tables(list(candidates.tables(["record", "reason"])))["reason"].to_pylist()
    assert (reasons[3], reasons[4], reasons[5]) == ("empty answer", "duplicate", None), "the first reason stays"

    candidates.set_fact("score", np.array([0, 9]), np.array([0.5, 2.0]))
    assert candidates.take(np.array([0, 1, 9]), ["score"])["score"].to_pylist() == [0.5, None, 2.0]


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


def test_card_counts_everything_once_and_its_page_is_safe_and_whole(tmp_path: Path) -> None:
    candidates = Candidates(tmp_path, "messages", [])
    candidates.add(table_of(good(0, "a" * 10, language="en", operations=("redact:email", "split:2")), bad(1)))
    candidates.add(table_of(*(good(i, "b", language="de", operations=("split:3",)) for i in range(9)), part=1))
    candidates.add(table_of(good(0, "c"), part=2))
    candidates.seal().drop(np.arange(3, 11), "duplicate")
    tally = Tally([Origin("one", "/one"), Origin("<two>", "/two")], [0, 1, 1], "messages")
    for table in candidates.tables():
        tally.add(table)
    card = tally.card()
    assert (card["records"], card["rows"], card["dropped"]) == (12, 3, {"duplicate": 8, "empty answer": 1})
    assert [(s["name"], s["records"], s["rows"]) for s in card["sources"]] == [("one", 2, 1), ("<two>", 10, 2)]
    assert card["characters"] == {
        "total": 18,
        "histogram": [{"below": 4, "rows": 2}, {"below": 8, "rows": 0}, {"below": 16, "rows": 1}],
    }
    assert card["turns"] == {"2": 3}
    assert card["roles"] == {"assistant": 3, "user": 3}
    assert card["languages"] == {"de": 1, "en": 1}
    assert card["operations"] == {"split": 2, "redact:email": 1}
    assert len(card["examples"]["duplicate"]) == 5
    assert card["examples"]["duplicate"][0] == {"source": "s", "record": 1, "excerpt": "b / ok"}
    assert json.loads(json.dumps(card)) == card
    assert dropped_words(card, "records") == "9 records dropped, most (8) as 'duplicate'"
    assert dropped_words(empty_card(), "drafts") == "0 drafts dropped"

    page = Page()
    page.feed(render_html(card, "data"))
    assert not page.links
    assert not {"script", "two", "link", "img"} & set(page.tags)
    assert page.tags.count("table") == 8


def empty_card() -> dict[str, Any]:
    return Tally([Origin("one", "/one")], [0], "messages").card()


def test_the_page_tells_what_the_card_tells() -> None:
    share = {"rows": 7, "share": 0.37, "target": 0.35, "distinct": 6, "maxEpochs": 2}
    card = empty_card() | {
        "dropped": {"near-duplicate": 12345},
        "droppedBy": {"near-duplicate": "deduplicate.minhash"},
        "tokens": {
            "sampled": 2,
            "mean": 9.5,
            "answerMean": 3.5,
            "total": 9876543,
            "histogram": [{"below": 2**40, "rows": 0}],
        },
        "deduplication": {
            "against": {"records": 77, "rows": 66, "dropped": {"<i>broken</i>": 11}},
            "minhash": {
                "dropped": 1,
                "clusters": {"2": 1},
                "largest": [{"rows": 2, "examples": [{"source": "<i>", "record": 3, "excerpt": "</pre><script>"}]}],
            },
        },
        "selection": {
            "method": "tags",
            "comparison": [{"method": "random", "rows": 5, "tokens": 10**15, "answerTokens": 0, "shared": 0.5}],
            "tags": {"distinct": 2, "meanOfRow": 1.5, "rows": {"<script>": 4}, "unread": {"not tagged: <b>": 3}},
        },
        "mix": {
            "unit": "rows",
            "rows": 7,
            "leftOut": 4321,
            "order": "shuffled",
            "programming": share,
            "sources": [{"name": "<img src=x>"} | share],
            "bound": "the source '<img>' has 7 rows",
            "missed": ["programming"],
        },
    }
    text = render_html(card, "<script>")
    page = Page()
    page.feed(text)
    assert not page.links
    assert not {"script", "img", "i", "b"} & set(page.tags)
    for words in (
        "near-duplicate (deduplicate.minhash)", "12,345", "9,876,543", "66 of 77 records", "1,000,000,000,000,000", "4,321",
        "the source &#x27;&lt;img&gt;&#x27; has 7 rows", "Too few rows to come nearer to programming.", "not tagged: &lt;b&gt;",
        "with repeats the dataset has 7", "in order: shuffled",
    ):  # fmt: skip
        assert words in text
    assert "width:100.0%" in text
    assert "width:0" not in text, "what is not there has no bar"


def test_vectors_are_gathered_in_a_file_and_numbers_in_memory(tmp_path: Path) -> None:
    parts = [{"value": np.arange(n, dtype=float), "embedding": np.full((n, 3), n, np.float16)} for n in (4, 1, 5)]
    told: list[tuple[int, int]] = []
    found = gather(parts, 10, tmp_path, lambda done, of: told.append((done, of)))
    assert found["value"].tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3, 4]
    assert found["embedding"][:, 0].tolist() == [4] * 4 + [1] + [5] * 5
    assert isinstance(found["embedding"], np.memmap)
    assert told == [(4, 10), (5, 10), (10, 10)]


def test_card_of_nothing_can_be_made() -> None:
    tally = Tally([Origin("one", "/one")], [0], "messages")
    tally.add(table_of(bad(0, "blank line")))
    assert "blank line" in render_html(tally.card(), "data")
