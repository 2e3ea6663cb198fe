"""Deduplication of candidates in every form: what counts as a repeat, and what the data card says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.api.curation.deduplication import DeduplicateSpec
from plumbline.api.stages.curate import CurateSpec
from plumbline.data.candidates import Candidates
from plumbline.data.preparation import BORDER, Preparation
from plumbline.data.refine import deduplicate
from plumbline.data.row import Form, Row
from plumbline.data.rows import Outcome, tabulate
from plumbline.errors import InvalidInput
from plumbline.models.reference import ModelReference

LONG = (
    "Explain, step by step and with one example each, why the days grow shorter in autumn, why the moon has phases, and why "
)


def label(answer: str, good: bool, prompt: str = LONG) -> Row:
    turns = {"prompt": [{"role": "user", "content": prompt}], "completion": [{"role": "assistant", "content": answer}]}
    return Row({**turns, "label": good})


def chat(prompt: str, **fields: Any) -> Row:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "Yes."}]
    return Row({"messages": turns}, **fields)


def candidates_of(folder: Path, form: Form, spec: DeduplicateSpec, *parts: Sequence[Row | str]) -> Candidates:
    """Rows, or reasons why a record is none, part by part."""
    block = CurateSpec.model_validate({"sources": [{"uri": "x"}]}).model_copy(update={"deduplicate": spec})
    preparation = Preparation((), len(parts), form, block, "x", ModelReference("builtin://tiny"))
    names = [annotation.field.name for annotation in preparation.annotations]
    candidates = Candidates(folder, form, [name for name in names if name != BORDER])
    for part, rows in enumerate(parts):
        outcomes = [
            Outcome("s", i, reason=row) if isinstance(row, str) else Outcome("s", i, row=row) for i, row in enumerate(rows)
        ]
        for table in tabulate(outcomes, form, part, preparation.annotations):
            candidates.add(table)
    return candidates.seal()


def refined(candidates: Candidates, spec: DeduplicateSpec, own: int, seen: list[Any] | None = None) -> dict[str, Any]:
    def embed(chunks: Iterator[list[Row]]) -> Iterator[dict[str, np.ndarray]]:
        for rows in chunks:
            yield {"embedding": np.ones((len(rows), 1), np.float32)}

    notes = [] if seen is None else seen
    return deduplicate(candidates, spec, own, 0, embed, notes.append, lambda done, of: notes.append((done, of)), "x.d")


@pytest.mark.parametrize("method", [{}, {"minhash": {}}, {"semantic": {"similarity": 0.9}}])
def test_a_good_answer_does_not_stand_for_a_bad_one(tmp_path: Path, method: dict[str, Any]) -> None:
    spec = DeduplicateSpec.model_validate(method)
    rows = [label("it tilts.", True), label("it tilts!", False), label("it tilts.", False), label("it tilts.", True)]
    candidates = candidates_of(tmp_path, "labels", spec, rows)
    refined(candidates, spec, own=1)
    assert candidates.kept().tolist() == ([0, 1] if method else [0, 1, 2])


def test_what_is_compared_with_is_counted_and_must_not_be_nothing(tmp_path: Path) -> None:
    spec = DeduplicateSpec(against=["b.jsonl"])
    own, other = [chat("one"), chat("two")], [chat("TWO"), "missing field", "missing field", "empty answer"]
    candidates = candidates_of(tmp_path, "messages", spec, own, other)
    card = refined(candidates, spec, own=1)
    assert card["against"] == {"records": 4, "rows": 1, "dropped": {"missing field": 2, "empty answer": 1}}
    assert candidates.kept().tolist() == [0, 2]
    (tmp_path / "again").mkdir()
    nothing = candidates_of(tmp_path / "again", "messages", spec, own, other[1:])
    with pytest.raises(
        InvalidInput, match=r"x\.d\.against: none of its 3 records .*2 as 'missing field', 1 as 'empty answer'"
    ):
        refined(nothing, spec, own=1)


def test_long_work_tells_how_far_it_is(tmp_path: Path) -> None:
    spec = DeduplicateSpec.model_validate({"exact": False, "minhash": {}, "semantic": {"similarity": 0.9}})
    seen: list[Any] = []
    candidates = candidates_of(tmp_path, "messages", spec, [chat(f"{LONG} {i}") for i in range(3)])
    refined(candidates, spec, 1, seen)
    assert [one for one in seen if isinstance(one, str)] == ["comparing near-duplicates", "comparing meanings"]
    assert (16, 16) in seen
    assert len(list(tmp_path.iterdir())) == 1, "embeddings are not left behind"


@pytest.mark.parametrize("words", [18, 19, 20, 21])
def test_a_word_more_makes_no_other_text_also_where_texts_begin_to_be_compared_by_words(tmp_path: Path, words: int) -> None:
    spec = DeduplicateSpec.model_validate({"key": "prompt", "minhash": {}})
    text = (LONG + "the tides come twice a day").split()
    rows = [chat("Something else altogether."), chat(" ".join(text[:words])), chat("And another thing entirely.")]
    rows.append(chat(" ".join(text[: words + 1])))
    candidates = candidates_of(tmp_path, "messages", spec, rows)
    card = refined(candidates, spec, own=1)
    assert candidates.kept().tolist() == [0, 1, 2]
    assert card["minhash"]["clusters"] == {"2": 1}


@pytest.mark.parametrize("keep", ["longest", "best"])
def test_what_stays_does_not_depend_on_the_order_of_sources(tmp_path: Path, keep: str) -> None:
    spec = DeduplicateSpec.model_validate({"keep": keep, "key": "prompt", "minhash": {"similarity": 0.7}})
    draw = np.random.default_rng(5)
    rows = [chat(f"{LONG} {'very ' * int(n)}", score=float(s)) for n, s in zip(range(6), draw.permutation(6), strict=True)]
    stayed = set()
    for i in range(4):
        (folder := tmp_path / str(i)).mkdir()
        candidates = candidates_of(folder, "messages", spec, [rows[j] for j in draw.permutation(6)])
        refined(candidates, spec, own=1)
        stayed.add(tuple(row.score for row in candidates.rows(candidates.kept())))
    assert len(stayed) == 1
    assert len(stayed.pop()) < 6
