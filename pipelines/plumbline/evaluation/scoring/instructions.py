"""The 25 kinds of verifiable instructions of IFEval (Zhou et al. 2023, arXiv 2311.07911). Pure: a reply and the instruction's arguments in,
followed or not out.

The rules are the benchmark's. Where its program has a fault, such as keywords read as regular expressions or a random letter in place of one
that is no letter, the rule that the prompt states counts. Its tokenizers need data from the network; `sentences` and `capital_words` here
do without and may differ from them by one at abbreviations and contractions. The language is told by `data.filters.language`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]

UNDETERMINED = "und"
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
# A sentence does not end behind the first ones, and behind the others only before a capital letter.
_ABBREVIATIONS = frozenset(
    (
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "rev",
        "capt",
        "lt",
        "sgt",
        "vs",
        "e.g",
        "i.e",
        "cf",
        "vol",
        "fig",
        "al",
        "approx",
        "dept",
    )
)
_LAST_ABBREVIATIONS = frozenset(
    ("etc", "inc", "ltd", "co", "corp", "jr", "sr", "a.m", "p.m", "u.s", "u.k", "ph.d", "b.a", "m.a")
)
_END = re.compile(r"(?<![.!?])([.!?]+)[\"'”’)\]*_»]*(?=\s|$)")


@dataclass(frozen=True)
class Kind:
    """A kind of instruction.

    Attributes:
        follows: (reply, arguments) → whether the reply follows it.
        arguments: their names and types.
    """

    follows: Check
    arguments: Mapping[str, type | tuple[type, ...]]


def sentences(text: str) -> list[str]:
    """Sentences: they end at `.`, `!` or `?` before white space, but for abbreviations, initials, and dots that a small letter follows."""
    found, start = [], 0
    for end in _END.finditer(text):
        before = text[max(start, end.start() - 20) : end.start()]
        last = "" if not before.strip() or before[-1].isspace() else before.split()[-1].lower().lstrip("\"'“‘([*_")
        after = text[end.end() :].lstrip()[:1]
        initial = len(last) == 1 and last.isalpha() and last != "i"
        if end[1] == "." and (last in _ABBREVIATIONS or initial or (last in _LAST_ABBREVIATIONS and not after.isupper())):
            continue
        if len(end[1]) > 1 and set(end[1]) == {"."} and after.islower():
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    return [one for one in [*found, text[start:].strip()] if one]


def capital_words(text: str) -> int:
    """Words without a small letter; a hyphenated word is one."""
    return sum(word.isupper() for word in re.findall(r"[^\s,;:!?()\[\]{}<>\"“”…]+", text))


def language(text: str) -> str:
    """Language of most of a text, `und` if none can be told."""
    from plumbline.data.filters.language import READ, detect  # loads slowly, and few instructions need it

    votes: Counter[str] = Counter()
    for start in range(0, len(text), READ):
        part = text[start : start + READ]
        code, confidence = detect(part.lower())  # the model knows few texts in capitals
        if code != UNDETERMINED and confidence > 0:
            votes[code] += len(part)
    return votes.most_common(1)[0][0] if votes else UNDETERMINED


def _is(text: str, code: str) -> bool:
    """Whether a text is in a language. What cannot be told is not held against it."""
    return language(text) in (UNDETERMINED, code.split("-")[0])


def _compare(count: int, relation: str, limit: float) -> bool:
    return count < limit if relation == "less than" else count >= limit


def _occurs(word: str, text: str) -> int:
    return len(re.findall(re.escape(word), text, re.IGNORECASE))


def _highlights(text: str, _: Arguments) -> int:
    single = sum(bool(one.strip("*").strip()) for one in re.findall(r"\*[^\n*]*\*", text))
    return single + sum(bool(one.strip("*").strip()) for one in re.findall(r"\*\*[^\n*]*\*\*", text))


def _bullets(text: str, arguments: Arguments) -> bool:
    stars, dashes = re.findall(r"^[^\S\n]*\*[^*].*$", text, re.MULTILINE), re.findall(r"^[^\S\n]*-.*$", text, re.MULTILINE)
    return bool(len(stars) + len(dashes) == arguments["num_bullets"])


def _sections(text: str, arguments: Arguments) -> bool:
    mark = rf"\s?{re.escape(arguments['section_spliter'].strip())}\s?\d+\s?"
    return bool(len(re.findall(mark, text)) >= arguments["num_sections"])


def _separated(text: str, mark: str) -> list[str] | None:
    """The parts between marks, None if one within is empty; an empty one at either end is none."""
    parts = re.split(mark, text)
    if any(not part.strip() for part in parts[1:-1]):
        return None
    return [part for part in parts if part.strip()]


def _paragraphs(text: str, arguments: Arguments) -> bool:
    parts = _separated(text, r"\s?\*\*\*\s?")
    return parts is not None and len(parts) == arguments["num_paragraphs"]


def _two_responses(text: str, _: Arguments) -> bool:
    parts = _separated(text, re.escape("******"))
    return parts is not None and len(parts) == 2 and parts[0].strip() != parts[1].strip()


def _first_word(text: str, arguments: Arguments) -> bool:
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    place = int(arguments["nth_paragraph"])
    if len(paragraphs) != arguments["num_paragraphs"] or not 1 <= place <= len(paragraphs):
        return False
    word = re.split(r"[.,?!'\"]", paragraphs[place - 1].split()[0].lstrip("'\""))[0]
    return bool(word.lower() == arguments["first_word"].strip().lower())


def _postscript(text: str, arguments: Arguments) -> bool:
    marker = arguments["postscript_marker"].strip()
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(patterns.get(marker, re.escape(marker)), text, re.IGNORECASE) is not None


def _json(text: str, _: Arguments) -> bool:
    inner = re.sub(r"\A```(?:json)?|```\Z", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str, _: Arguments) -> bool:
    return any(one.strip("<>").strip() for one in re.findall(r"<<[^\n]+>>", text))


def _quoted(text: str, _: Arguments) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _forbidden(text: str, arguments: Arguments) -> bool:
    return not any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in arguments["forbidden_words"]
    )


_COUNT = (int, float)
KINDS: Mapping[str, Kind] = {
    "keywords:existence": Kind(lambda text, a: all(_occurs(word, text) for word in a["keywords"]), {"keywords": list}),
    "keywords:frequency": Kind(
        lambda text, a: _compare(_occurs(a["keyword"].strip(), text), a["relation"], a["frequency"]),
        {"keyword": str, "frequency": _COUNT, "relation": str},
    ),
    "keywords:forbidden_words": Kind(_forbidden, {"forbidden_words": list}),
    "keywords:letter_frequency": Kind(
        lambda text, a: _compare(text.lower().count(a["letter"].lower()), a["let_relation"], a["let_frequency"]),
        {"letter": str, "let_frequency": _COUNT, "let_relation": str},
    ),
    "language:response_language": Kind(lambda text, a: _is(text, a["language"]), {"language": str}),
    "length_constraints:number_sentences": Kind(
        lambda text, a: _compare(len(sentences(text)), a["relation"], a["num_sentences"]),
        {"num_sentences": _COUNT, "relation": str},
    ),
    "length_constraints:number_paragraphs": Kind(_paragraphs, {"num_paragraphs": _COUNT}),
    "length_constraints:number_words": Kind(
        lambda text, a: _compare(len(re.findall(r"\w+", text)), a["relation"], a["num_words"]),
        {"num_words": _COUNT, "relation": str},
    ),
    "length_constraints:nth_paragraph_first_word": Kind(
        _first_word, {"num_paragraphs": _COUNT, "nth_paragraph": _COUNT, "first_word": str}
    ),
    "detectable_content:number_placeholders": Kind(
        lambda text, a: len(re.findall(r"\[.*?\]", text)) >= a["num_placeholders"], {"num_placeholders": _COUNT}
    ),
    "detectable_content:postscript": Kind(_postscript, {"postscript_marker": str}),
    "detectable_format:number_bullet_lists": Kind(_bullets, {"num_bullets": _COUNT}),
    "detectable_format:constrained_response": Kind(lambda text, _: any(option in text for option in OPTIONS), {}),
    "detectable_format:number_highlighted_sections": Kind(
        lambda text, a: _highlights(text, a) >= a["num_highlights"], {"num_highlights": _COUNT}
    ),
    "detectable_format:multiple_sections": Kind(_sections, {"section_spliter": str, "num_sections": _COUNT}),
    "detectable_format:json_format": Kind(_json, {}),
    "detectable_format:title": Kind(_title, {}),
    "combination:two_responses": Kind(_two_responses, {}),
    "combination:repeat_prompt": Kind(
        lambda text, a: text.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()), {"prompt_to_repeat": str}
    ),
    "startend:end_checker": Kind(
        lambda text, a: text.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower()), {"end_phrase": str}
    ),
    "startend:quotation": Kind(_quoted, {}),
    "change_case:capital_word_frequency": Kind(
        lambda text, a: _compare(capital_words(text), a["capital_relation"], a["capital_frequency"]),
        {"capital_frequency": _COUNT, "capital_relation": str},
    ),
    "change_case:english_capital": Kind(lambda text, _: text.isupper() and _is(text, "en"), {}),
    "change_case:english_lowercase": Kind(lambda text, _: text.islower() and _is(text, "en"), {}),
    "punctuation:no_comma": Kind(lambda text, _: "," not in text, {}),
}


def loosened(reply: str) -> list[str]:
    """The eight readings of the loose rule: as it is, without its first line, its last, or both, each also without `*`."""
    lines = reply.split("\n")
    cut = [reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return cut + [one.replace("*", "") for one in cut]


def follows(kind: str, arguments: Arguments, reply: str, loose: bool = False) -> bool:
    """Whether a reply follows an instruction of one of `KINDS`; an empty one follows none. `loose`: whether any of its readings does."""
    readings = loosened(reply) if loose else [reply]
    return any(bool(one.strip()) and KINDS[kind].follows(one, arguments) for one in readings)
