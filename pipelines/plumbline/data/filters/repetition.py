"""Answers that repeat themselves: loops, repeated phrases, repeated lines."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np

from plumbline.api.curation.filters import RepetitionSpec
from plumbline.data.filters.programming import is_code
from plumbline.data.filters.words import learned, tokens
from plumbline.data.row import Reject, Row

LONGEST_PHRASE, FEWEST_ROUNDS, FEWEST_LOOPED = 32, 5, 20  # of a loop: words in its phrase, times, words in all
PHRASE, FEWEST_WORDS = 5, 50  # words of a repeated phrase; of an answer that is looked at
LINE_CHARACTERS = 20
LONG_WORD = 50  # characters, from which on a word may be a loop itself: "hahaha…"


def check_repetition(row: Row, spec: RepetitionSpec) -> Row:
    """Drop a row with an answer that repeats itself.

    Raises:
        Reject: a loop, repeated phrases, or repeated lines or paragraphs.
    """
    for answer in learned(row):
        words = tokens(answer)
        if len(words) >= FEWEST_LOOPED:
            # What repeats phrases repeats pairs of words: these are cheap to count, and few good answers have as many.
            pairs = 1 - len(set(pairwise(words))) / len(words)
            if pairs >= 0.8 * min(spec.max_loop_share, spec.max_ngram_share) - 1 / len(words):
                _check_phrases(answer, words, spec)
        for word in words:
            if len(word) >= LONG_WORD and (share := loop_share([*word])[0]) * len(word) > spec.max_loop_share * len(answer):
                raise Reject("answer loops", f"{share:.0%} of '{word[:60]}…'")
        share = max(repeated_share(answer.split("\n")), repeated_share(answer.split("\n\n")))
        if share > spec.max_line_share and not is_code(answer):
            raise Reject("answer repeats lines", f"{share:.0%} of its characters")
    return row


def _check_phrases(answer: str, words: list[str], spec: RepetitionSpec) -> None:
    share, phrase = loop_share(words)
    if share > spec.max_loop_share:
        raise Reject("answer loops", f"{share:.0%} of it is '{' '.join(phrase)[:60]}'")
    if len(words) >= FEWEST_WORDS and (share := ngram_share(words, PHRASE)) > spec.max_ngram_share and not is_code(answer):
        raise Reject("answer repeats phrases", f"{share:.0%} of its words")


def loop_share(words: list[str]) -> tuple[float, list[str]]:
    """Share of words in the longest stretch that says one phrase again and again, and the phrase.

    A phrase has up to `LONGEST_PHRASE` words, a stretch at least `FEWEST_ROUNDS` of it.
    """
    numbers: dict[str, int] = {}
    a = np.array([numbers.setdefault(word, len(numbers)) for word in words])
    longest, start, size = 0, 0, 1
    for period in range(1, min(LONGEST_PHRASE, len(a) // FEWEST_ROUNDS) + 1):
        breaks = np.concatenate([[-1], np.flatnonzero(a[period:] != a[:-period]), [len(a) - period]])
        runs = np.diff(breaks) - 1
        best = int(runs.argmax())
        stretch = int(runs[best]) + period
        if stretch >= max(FEWEST_LOOPED, FEWEST_ROUNDS * period) and stretch > longest:
            longest, start, size = stretch, int(breaks[best]) + 1, period
    return longest / len(a), words[start : start + size]


def ngram_share(words: list[str], n: int) -> float:
    """Share of words inside an n-gram that occurred before."""
    seen: set[tuple[str, ...]] = set()
    covered, end = 0, 0  # words up to `end` are counted
    for i in range(len(words) - n + 1):
        phrase = tuple(words[i : i + n])
        if phrase in seen:
            covered += i + n - max(i, end)
            end = i + n
        seen.add(phrase)
    return covered / len(words)


def repeated_share(parts: list[str]) -> float:
    """Share of characters in parts that are there before; parts of fewer than `LINE_CHARACTERS` are none."""
    if len(set(parts)) == len(parts):
        return 0.0
    long = Counter(stripped for part in parts if len(stripped := part.strip()) >= LINE_CHARACTERS)
    return sum(len(part) * (count - 1) for part, count in long.items()) / max(1, sum(map(len, parts)))
