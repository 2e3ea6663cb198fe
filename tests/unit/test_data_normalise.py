"""Normalising: texts, and rows of every form."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from plumbline.api.curation.normalisation import NormaliseSpec
from plumbline.data.formats import FORMATS
from plumbline.data.formats.options import Options
from plumbline.data.normalise import clean, make_normaliser, row_key
from plumbline.data.row import COLUMNS, Chat, Form, Reject, Row
from plumbline.data.truncation import is_cut_off, run_on
from plumbline.external import TINY
from plumbline.models.load import load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.training.encode import encode_chat


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def chat(*texts: str, system: str | None = None) -> Chat:
    turns: Any = [turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    return [turn("system", system), *turns] if system else turns  # type: ignore[list-item]


def row(*texts: str, system: str | None = None, **facts: Any) -> Row:
    return Row({"messages": chat(*texts, system=system)}, **facts)


def pair(prompt: str, chosen: str, rejected: str) -> Row:
    return Row({"prompt": chat(prompt), "chosen": chat("", chosen)[1:], "rejected": chat("", rejected)[1:]})


def characters(turns: Chat) -> int:
    return sum(len(turn["content"]) for turn in turns)


def normalised(one: Row, count: Any = None, **spec: Any) -> list[Row | Reject]:
    return list(make_normaliser(NormaliseSpec(**spec), count)(one))


def only(one: Row, **spec: Any) -> Row:
    (result,) = normalised(one, **spec)
    assert isinstance(result, Row)
    return result


def reason_of(one: Row, count: Any = None, **spec: Any) -> str:
    (result,) = normalised(one, count, **spec)
    assert isinstance(result, Reject)
    return result.reason


def test_clean_is_nfc_with_plain_newlines_and_no_control_characters() -> None:
    assert clean(" e\u0301\r\nx\ry\0\x1b\x7f\ufeff\tz ") == "é\nx\ny\tz"


@pytest.mark.parametrize("text", ["\u200b", " \u200b\n\u200d ", "\u00ad", "\ufeff\u2060"])
def test_what_shows_nothing_is_empty(text: str) -> None:
    assert clean(text) == ""
    assert clean(f"{text}\u0645\u06cc\u200c\u062e") != ""


def test_clean_rejects_a_lone_surrogate_and_keeps_a_pair() -> None:
    assert clean(json.loads(r'"\ud83d\ude00"')) == "😀"
    with pytest.raises(Reject, match=r"U\+D83D"):
        clean(json.loads(r'"\ud83d"'))


def test_row_key_folds_case_and_space_but_not_boundaries() -> None:
    assert row_key(["Hello  World", "a"]) == row_key(["hello\nworld ", "A"])
    assert row_key(["ab", "c"]) != row_key(["a", "bc"])


@pytest.mark.parametrize(
    "good", [row("a", "b", "c", "d", system="s"), pair("p", "a", "b"), Row({"text": "a\n6. Instruction: b\n```"})]
)
def test_nothing_is_done_to_good_rows(good: Row) -> None:
    assert only(good, html="markdown", system="drop" if "text" in good.content else "keep") is good


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("A peak.\n6. Instruction: Draft a note.\n6. Input:\n<noinput>", "A peak."),
        ("Yes.\n##\n18. Instruction: Identify", "Yes."),
        ("Yes.\n\n\n\n  \n11.  Instruction : x", "Yes."),
        ("Yes.\n<!-- --> \n8. Instruction: x", "Yes."),
        ("Yes.\n________\n\n12. Instruction: x", "Yes."),
        ("Yes.\n### Instruction:\nMore", "Yes."),
        ("Yes.\n### Human: more", "Yes."),
        ("```\ncode\n```\n14. Instruction: x", "```\ncode\n```"),
        ("Yes.\n```\n14. Instruction: x", "Yes."),
        ("10. Instruction: x", ""),
    ],
)
def test_where_the_next_task_begins(answer: str, kept: str) -> None:
    end = run_on(answer)
    assert end is not None
    assert answer[:end] == kept


@pytest.mark.parametrize(
    "answer",
    [
        "Instruction: Fill the mug.",
        "1. Instructions: mix.\n2. Input the code.",
        "Follow the 3. Instruction: it says so.",
        "### Instructions:\n1. Mix.",
        "## Human rights",
        "Human: hello",
    ],
)
def test_what_only_speaks_of_instructions_is_no_next_task(answer: str) -> None:
    assert run_on(answer) is None


def test_run_on_answers_are_cut_dropped_or_kept() -> None:
    one = row("a", "first", "b", "second\n7. Instruction: c")
    cut = only(one)
    assert cut.content["messages"] == chat("a", "first", "b", "second")
    assert cut.operations == ("cut:run-on",)
    assert only(one, run_on="keep") is one
    assert reason_of(one, run_on="drop") == "answer runs on"
    assert reason_of(row("a", "7. Instruction: c")) == "answer runs on"
    assert only(row("a\n7. Instruction: c", "b")).operations == ()
    assert only(pair("p", "a\n7. Instruction: c", "b")).content["chosen"] == chat("", "a")[1:]
    assert reason_of(pair("p", "a\n7. Instruction: c", "a")) == "chosen equals rejected"


LONG = "This sentence is finished, and it is long enough to be prose. " * 4


@pytest.mark.parametrize(
    ("answer", "cut"),
    [
        (LONG + "But this one was", True),
        (LONG.strip(), False),
        (LONG + "So there is hope", True),
        (LONG + "\n\nSincerely,", False),
        (LONG + "\n- and then there is an item of a list that has no full stop at all", False),
        (LONG + "See https://example.org/a", False),
        (LONG + "#hope #joy", False),
        (LONG + "🎉", False),
        ("So there is hope", False),
        ("```python\nprint(1)", True),
        ("```python\nprint(1)\n```", False),
        ("Use ```start``` and ```stop", False),
        ("这是一个完整的句子。" * 30 + "这是一个没有说完的", True),
        ("这是一个完整的句子。" * 30, False),
    ],
)
def test_answers_that_were_cut_off(answer: str, cut: bool) -> None:
    assert is_cut_off(answer) == cut
    assert only(row("a", answer)).operations == (("cut off",) if cut else ())
    if cut:
        assert reason_of(row("a", answer), cut_off="drop") == "answer cut off"
        assert only(pair("p", "good", answer)).operations == ()
        assert only(pair("p", answer, "bad")).operations == ("cut off",)


@pytest.mark.parametrize(
    "answer", ["\n" * 300_000 + "6. Instruction: a", "x" * 200 + " " * 300_000 + "x", "```\n" * 100_000]
)
def test_texts_that_are_made_to_be_slow_are_not(answer: str) -> None:
    assert len(normalised(row("a", "b" + answer))) == 1  # backtracking, or quadratic work, would meet the test's time limit


def test_placeholders_are_filled_or_the_row_is_dropped() -> None:
    one = row("Who are you?", "I am {{name}}, made by {{ author }}.")
    assert reason_of(one) == "unfilled template"
    filled = only(one, placeholders={"name": "Plumb", "author": "us"})
    assert filled.answers == ["I am Plumb, made by us."]
    assert filled.operations == ("placeholders",)
    assert reason_of(one, placeholders={"name": "Plumb"}) == "unfilled template"
    assert only(one, unfilled="keep") is one
    assert only(one, unfilled="keep", placeholders={"author": "us"}).answers == ["I am {{name}}, made by us."]
    code = row("Jinja?", "Write\n```\n{{ user }}\n```\nor `{{x}}`, not {{ 1 + 1 }}.")
    assert only(code) is code


def test_html_answers_of_any_format_on_request() -> None:
    one = row("<p>a</p>", "<p>one</p><ul><li>two</li></ul>")
    assert only(one) is one
    done = only(one, html="markdown")
    assert (done.content["messages"][0], done.answers) == (one.content["messages"][0], ["one\n\n- two"])
    assert done.operations == ("html",)
    assert reason_of(row("a", "<p></p>"), html="markdown") == "empty answer"


@pytest.mark.parametrize(
    ("system", "with_one", "without"),
    [("keep", "old", None), ("drop", None, None), ("fill", "old", "new"), ("replace", "new", "new")],
)
def test_system_prompts(system: str, with_one: str | None, without: str | None) -> None:
    spec: dict[str, Any] = {"system": system} | ({"system_text": "new"} if system in ("fill", "replace") else {})
    for one, expected in ((row("a", "b", system="old"), with_one), (row("a", "b"), without)):
        done = only(one, **spec)
        assert done.content["messages"] == chat("a", "b", system=expected)
        assert done.operations == ((f"system:{system}",) if done.content != one.content else ())
    assert only(pair("p", "a", "b"), **spec).content["prompt"] == chat("p", system=without)


def test_the_spec_says_what_contradicts_itself() -> None:
    assert NormaliseSpec(system="fill").problems() == [("systemText", "system: fill needs the text")]
    assert NormaliseSpec(system_text="a").problems()[0][0] == "systemText"
    assert NormaliseSpec(system="replace", system_text="a").problems() == []


@pytest.mark.parametrize(
    ("licence", "refused"),
    [
        ("CC BY-NC 4.0", True),
        ("cc-by-nc-sa-4.0", True),
        ("CC_BY_NC", True),
        ("CC BY 4.0", False),
        ("Apache-2.0", False),
        (None, False),
    ],
)
def test_licences_are_refused_by_glob(licence: str | None, refused: bool) -> None:
    one = row("a", "b", licence=licence)
    result = normalised(one, refuse_licences=["* nc*", "Proprietary"])
    assert isinstance(result[0], Reject) == refused
    assert isinstance(normalised(one, refuse_licences=["unknown"])[0], Reject) == (licence is None)


def test_long_chats_are_split_between_exchanges() -> None:
    one = row("aa", "bb", "cc", "dd", "ee", "ff", system="s", record_id="7")
    assert normalised(one, characters, max_tokens=13) == [one]
    first, second = normalised(one, characters, max_tokens=9)
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert first.content["messages"] == chat("aa", "bb", "cc", "dd", system="s")
    assert second.content["messages"] == chat("ee", "ff", system="s")
    assert (first.operations, second.operations, second.record_id) == (("split:1",), ("split:2",), "7")
    assert only(one) is one


def test_an_exchange_that_is_too_long_is_a_reject_and_ends_a_piece() -> None:
    results = normalised(row("a", "b", "c", "d" * 99, "e", "f"), characters, max_tokens=50)
    assert [r.reason if isinstance(r, Reject) else r.content["messages"] for r in results] == [
        "longer than the context",
        chat("a", "b"),
        chat("e", "f"),
    ]
    assert reason_of(row("a", "b" * 60), characters, max_tokens=50) == "longer than the context"


@pytest.mark.parametrize("seed", range(5))
def test_pieces_fit_and_lose_nothing(seed: int) -> None:
    rng = random.Random(seed)
    texts = [f"{i}" + "x" * rng.randint(0, 40) for i in range(2 * rng.randint(1, 30))]
    limit = rng.randint(100, 200)
    pieces = normalised(row(*texts, system="sss"), characters, max_tokens=limit)
    chats = [piece.content["messages"] for piece in pieces if isinstance(piece, Row)]
    assert len(chats) == len(pieces)
    assert all(characters(turns) <= limit and turns[0]["role"] == "system" for turns in chats)
    assert [turn["content"] for turns in chats for turn in turns[1:]] == texts
    assert all(characters(a) + characters(b[1:3]) > limit for a, b in pairwise(chats))


def test_preferences_that_are_too_long_are_dropped_whole() -> None:
    one = pair("p" * 10, "a" * 10, "b" * 30)
    assert normalised(one, characters, max_tokens=40) == [one]
    assert reason_of(one, characters, max_tokens=39) == "longer than the context"
    ranking = Row({"prompt": chat("p"), "completions": [chat("", x)[1:] for x in ("a" * 9, "b" * 20)], "scores": [1.0, 0.0]})
    assert reason_of(ranking, characters, max_tokens=20) == "longer than the context"


def test_a_limit_needs_a_counter() -> None:
    with pytest.raises(ValueError, match="maxTokens needs"):
        make_normaliser(NormaliseSpec(max_tokens=5))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelReference(TINY))


RECORDS: list[tuple[str, Form, dict[str, Any]]] = [
    ("alpaca", "messages", {"instruction": "Add.", "input": "1 2", "output": "3", "system": "s", "history": [["q", "a"]]}),
    ("sharegpt", "messages", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "<p>b</p>"}]}),
    ("pairs", "pairs", {"prompt": "p", "chosen": "good", "rejected": "bad"}),
    ("hh", "pairs", {"chosen": "\n\nHuman: p\n\nAssistant: good", "rejected": "\n\nHuman: p\n\nAssistant: bad"}),
    ("rankings", "rankings", {"instruction": "p", "output": ["good", "fair", "bad"]}),
    ("kto", "labels", {"prompt": "p", "completion": "good", "label": True}),
    ("completion", "messages", {"prompt": "p", "completion": "c<|endoftext|>"}),
]


@pytest.mark.parametrize(("format", "form", "record"), RECORDS, ids=[name for name, *_ in RECORDS])
def test_every_form_renders_with_the_loss_on_its_answers(
    tokenizer: PreTrainedTokenizerBase, format: str, form: Form, record: dict[str, Any]
) -> None:
    (one,) = FORMATS[format].rows(record, Options(form))
    assert isinstance(one, Row)
    assert set(one.content) == set(COLUMNS[form])
    prompt = one.content.get("prompt", [])
    alternatives = one.content.get("completions") or [
        one.content[name] for name in ("messages", "chosen", "rejected", "completion") if name in one.content
    ]
    for answer in alternatives:
        sequence = encode_chat(tokenizer, prompt + answer, 1000)
        trained = [token for token, is_trained in zip(sequence.ids, sequence.trained, strict=True) if is_trained]
        expected = "".join(f"{turn['content']}<|end|>" for turn in answer if turn["role"] == "assistant")
        assert tokenizer.decode(trained).replace(" ", "") == expected
        assert len(trained) < len(sequence.ids)
