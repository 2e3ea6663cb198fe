"""What share of a reply's facts stand in its source? An offline measure of faithfulness: numbers, names and content words, sentence by sentence.

It sees what is added, not what is turned round ("A bought B" for "B bought A"); for that ask a judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import regex

from plumbline.data.rouge import tokens_of
from plumbline.evaluation.metrics.rouge import stems

ENOUGH = 0.5
"""Share of a claim's content words and numbers that must occur in the source, for the words of a summary are not all the source's."""
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]”’]*\s+|(?<=[。！？])|\n+")
_CLAUSE = re.compile(r";\s+|,\s+(?=(?:and|but|while|whereas|although|because|so)\s)|，|；")
_NUMBER = regex.compile(r"(?<![0-9\p{Latin}\p{Greek}\p{Cyrillic}_.])[-−]?[0-9]+(?:[,.][0-9]+)*")
_NAME = regex.compile(r"(?<=[\p{L}\p{N},;'’)] )\p{Lu}[\p{L}\p{M}\p{N}'’-]+")
"""A word with a capital letter that does not begin a sentence."""
_MARKS = re.compile(r"^\s*(?:\d{1,2}[.)]\s+|[-*•–+#>]+\s+)")


@dataclass(frozen=True)
class Claim:
    """One part of a reply that states something.

    Attributes:
        text: as it stands.
        missing: numbers, names and words that the source has not; of words only where too many are.
        supported: whether the source has all numbers, all names and enough words.
    """

    text: str
    missing: tuple[str, ...]
    supported: bool


@dataclass(frozen=True)
class Support:
    """Attributes:
    claims: of the reply in order.
    share: of them that the source supports; None where the reply states nothing.
    """

    claims: tuple[Claim, ...]
    share: float | None


def supported_facts(reply: str, source: str) -> Support:
    """Which claims of a reply its source supports.

    Numbers are compared as values (1,000 is 1000, 3.50 is 3.5), names and words by stem. A part without any of these, such as "Yes.", claims
    nothing. In scripts without spaces each character is a word.
    """
    numbers = {_value(number) for number in _NUMBER.findall(source)}
    known = set(stems(source))
    claims = tuple(claim for text in claims_of(reply) if (claim := _claim(text, numbers, known)) is not None)
    return Support(claims, sum(claim.supported for claim in claims) / len(claims) if claims else None)


def claims_of(reply: str) -> Iterator[str]:
    """The sentences of a reply, cut at semicolons and before "and", "but" and the like that follow a comma; list marks are taken off."""
    for sentence in _SENTENCE.split(reply):
        for part in _CLAUSE.split(_MARKS.sub("", sentence)):
            if part.strip():
                yield part.strip()


def _claim(text: str, numbers: set[str], known: set[str]) -> Claim | None:
    stated = _NUMBER.findall(text)
    lost = [number for number in stated if _value(number) not in numbers]
    names = [name for name in _NAME.findall(text) if not set(stems(name)) <= known]
    words = [word for word in tokens_of(text) if word not in _silent() and not word.isdigit()]
    unknown = [word for word in words if not set(stems(word)) <= known]
    units = len(words) + len(stated)
    if not units:
        return None
    few = units - len(unknown) - len(lost) < ENOUGH * units
    missing = tuple(dict.fromkeys([*lost, *names, *(unknown if few else [])]))
    return Claim(text, missing, not missing)


@cache
def _silent() -> frozenset[str]:
    """Words that claim nothing."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # a second to load, which most processes need not pay

    return frozenset(ENGLISH_STOP_WORDS) | {"yes", "no", "ok", "okay", "sure", "certainly"}


def _value(number: str) -> str:
    plain = re.sub(r",(?=\d{3}(?!\d))", "", number.replace("−", "-")).replace(",", ".")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain
