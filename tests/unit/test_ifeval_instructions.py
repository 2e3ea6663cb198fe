"""Every kind of IFEval's instructions: replies that just follow it, and replies that just do not."""

from __future__ import annotations

from typing import Any

import pytest

from plumbline.evaluation.scoring.instructions import KINDS, capital_words, follows, loosened, sentences

ENGLISH = "the weather was very good and they have been to the lake with their children"
GERMAN = "Das Wetter war sehr gut, und sie sind mit ihren Kindern an den See gefahren, weil es dort schön ist."
HINDI = "मौसम बहुत अच्छा था और वे अपने बच्चों के साथ झील पर गए थे क्योंकि वहाँ बहुत सुंदर है।"

CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["cat", "C++"]}, ["A Cat likes c++."], ["A cat likes C."]),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": "at least"},
        ["War is war.", "warwar"],
        ["War.", "peace"],
    ),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, "relation": "less than"}, ["War."], ["war war"]),
    ("keywords:forbidden_words", {"forbidden_words": ["sleep"]}, ["sleepless nights"], ["They Sleep."]),
    (
        "keywords:letter_frequency",
        {"letter": "O", "let_frequency": 2, "let_relation": "at least"},
        ["Oboe, so"],
        ["one"],
    ),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": "less than"}, ["no"], ["no!"]),
    ("language:response_language", {"language": "de"}, [GERMAN], [ENGLISH, HINDI]),
    ("language:response_language", {"language": "hi"}, [HINDI, f"**{HINDI}**"], [GERMAN, f"{ENGLISH}. " * 20 + HINDI]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["One. Two!", "Dr. Low went. He came", '"One." "Two."'],
        ["Dr. Low went.", "One, e.g. this one.", "well... then it is one"],
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, ["One"], ["One? Two."]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "a***b***"],
        ["a", "a***b***c", "a*** ***b"],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["a b c", "well-known fact"], ["a b"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["a b", "- a -"], ["a b c"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Send"},
        ["a\n\nSend it", 'a\n\n\n\n"send, it"'],
        ["a\n\nb", "send\n\na", "a\n\nsend\n\nc", "a\nsend"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] and [b c]"], ["[a] and (b)", "[a\n]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["x\n\nP.S. y", "x p. s. y"], ["x PS y"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["x\nP.P.S y", "p. p. s"], ["x\nP.S. y"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n\n\n  * b"],
        ["* a", "* a\n* b\n- c", "** a\n* b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is maybe.", "Well: My answer is no."],
        ["my answer is no", "Yes."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* *b*", "**a** and *b*"],
        ["**a**", "** ** *b*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 Section 2"],
        ["Section 1", "SECTION 1\nSECTION 2"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": 1}\n```', "```JSON\n[]```", "3"],
        ['{"a": 1', "a: 1", "[" * 100_000],
    ),
    ("detectable_format:title", {}, ["<<a poem>>\nx"], ["<a poem>", "<<>>", "<< >>"]),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "******a******b"],
        ["a", "a******a", "a******b******c", "a****** ******b"],
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Do it. "}, [" do it. Done."], ["Done. Do it."]),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, ['x. any questions?" '], ["Any questions? No."]),
    ("startend:quotation", {}, ['"a"', ' "a" b "c"\n'], ['"a', '"', "'a'"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["THIS is a WELL-KNOWN fact"],
        ["THIS is Well-Known", "123 45"],
    ),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, ["A b"], ["A B"]),
    ("change_case:english_capital", {}, [ENGLISH.upper(), "YES."], [ENGLISH, GERMAN.upper(), "123"]),
    ("change_case:english_lowercase", {}, [ENGLISH, "yes."], [ENGLISH.capitalize(), GERMAN.lower()]),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
]


@pytest.mark.parametrize(("kind", "arguments", "right", "wrong"), CASES)
def test_kind(kind: str, arguments: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    assert {name: type(value) for name, value in arguments.items()}.keys() == KINDS[kind].arguments.keys()
    assert [follows(kind, arguments, reply) for reply in right] == [True] * len(right)
    assert [follows(kind, arguments, reply) for reply in wrong] == [False] * len(wrong)
    assert not follows(kind, arguments, " \n", loose=True)


def test_every_kind_has_a_case() -> None:
    assert {kind for kind, *_ in CASES} == set(KINDS)
    assert len(KINDS) == 25


def test_loose_reads_eight_ways() -> None:
    assert loosened("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]
    assert not follows("startend:quotation", {}, 'Here:\n*"b"*\nBye')
    assert follows("startend:quotation", {}, 'Here:\n*"b"*\nBye', loose=True)
    assert not follows("punctuation:no_comma", {}, "a, b\nc, d\ne", loose=True)


def test_sentences() -> None:
    text = "Mr. A. Smith paid 3.50 dollars at 5 p.m. on Monday. Did he? Yes! He did, etc. Then he left"
    assert sentences(text) == [
        "Mr. A. Smith paid 3.50 dollars at 5 p.m. on Monday.",
        "Did he?",
        "Yes!",
        "He did, etc.",
        "Then he left",
    ]
    assert sentences(" \n") == []


def test_capital_words() -> None:
    assert capital_words('I saw "NASA" (AND the U.S.) at 10 AM; well-KNOWN') == 5


@pytest.mark.parametrize(
    "text", ["." * 50_000 + "x", "a" * 50_000, "A. " * 20_000, "*" * 20_000, "-\n" * 20_000, "\n" * 20_000 + "x"]
)
def test_no_reply_takes_for_ever(text: str) -> None:
    for kind, arguments, *_ in CASES:
        if kind.split(":")[0] not in ("language", "change_case"):
            follows(kind, arguments, text)
