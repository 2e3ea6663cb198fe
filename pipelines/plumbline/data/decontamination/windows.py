"""Runs of n words, characters or program tokens as 64-bit hashes; vectorised over texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from plumbline.data.deduplication.shingles import SINGLE, Letters, fold, mix, offsets_of, random_words, spans

WORDS, CHARACTERS, CODE, OPENING = 1, 2, 3, 4
"""Kinds of windows; two of different kinds never share a hash."""

_DELIMITERS = re.compile(r"[\s.,;:!?\"'`()\[\]{}“”‘’«»…。，、；：！？（）「」『』【】《》]+")
_ENDS = frozenset("\n\r\v\f.;:!?…。；：！？\u2028\u2029")
"""Where a sentence, or what introduces one (`Question:`), may end."""


@dataclass(frozen=True)
class Windows:
    """Hashes of windows, in the order in which they begin.

    Attributes:
        hashes: (m,) uint64; depends on nothing but the window and its kind.
        text: (m,) int64 ordinal of the text.
        place: (m,) int64 where in its text the window begins, in words.
    """

    hashes: np.ndarray
    text: np.ndarray
    place: np.ndarray

    def chosen(self, which: np.ndarray) -> Windows:
        """Some of them, by number or by mask."""
        return Windows(self.hashes[which], self.text[which], self.place[which])

    def shifted(self, texts: int) -> Windows:
        """The same with so many texts before theirs."""
        return Windows(self.hashes, self.text + texts, self.place)


def joined(*parts: Windows) -> Windows:
    """All of them, one part after the other."""
    return Windows(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("hashes", "text", "place")))


@dataclass(frozen=True)
class Words:
    """Hashes of the words of some texts. Every character of a script without spaces is a word; see `shingles`.

    Attributes:
        hashes: (m,) uint64.
        unspaced: (m,) bool, whether the word is such a character.
        offsets: (t + 1,) int64, where each text begins.
    """

    hashes: np.ndarray
    unspaced: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> Words:
        letters = Letters([fold(text) for text in texts])
        unspaced = letters.classes[letters.word_starts] == SINGLE
        return cls(letters.word_hashes(), unspaced, offsets_of(letters.words_in))

    def unspaced_share(self) -> np.ndarray:
        """(t,) share of such characters among the words of each text."""
        before = offsets_of(self.unspaced)
        return (before[self.offsets[1:]] - before[self.offsets[:-1]]) / np.maximum(np.diff(self.offsets), 1)

    def windows(self, n: int, kind: int, which: np.ndarray) -> Windows:
        """All windows of n words.

        Args:
            n: words.
            kind: WORDS or CHARACTERS.
            which: (t,) bool, the texts that are wanted.
        """
        text, place = places(self.offsets, n, which)
        if not len(text):
            return Windows(np.empty(0, np.uint64), text, place)
        weights = window_weights(n, kind)
        size = len(self.hashes) - (n - 1)
        sums = self.hashes[:size] * weights[0]
        for i in range(1, n):
            sums += self.hashes[i : size + i] * weights[i]
        return Windows(mix(sums[self.offsets[text] + place]), text, place)


def places(offsets: np.ndarray, n: int, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The text and the place in it of every window of n units, for texts with these offsets."""
    counts = np.where(which, np.maximum(np.diff(offsets) - (n - 1), 0), 0)
    return np.repeat(np.arange(len(counts)), counts), spans(np.zeros(len(counts), np.int64), counts)


def window_weights(n: int, kind: int) -> np.ndarray:
    """(n,) odd 64-bit factors, other ones for each kind."""
    return random_words(n, kind * 0x2545F4914F6CDD1D) | np.uint64(1)


def union_lengths(group: np.ndarray, place: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many units the windows of each group cover together.

    Args:
        group: (m,) int64, in any order.
        place: (m,) int64 where each window begins.
        n: (m,) length of each window, the same within a group.

    Returns:
        The groups, ascending, and their covered lengths.
    """
    if not len(group):
        return group, place
    order = np.lexsort((place, group))
    group, place, n = group[order], place[order], n[order]
    last = np.append(group[1:] != group[:-1], True)
    step = np.where(last, n, np.minimum(np.append(place[1:], 0) - place, n))
    starts = np.flatnonzero(np.append(True, last[:-1]))
    return group[starts], np.add.reduceat(step, starts)


def whole(text: str) -> str:
    """A text for comparison as a whole: no case, punctuation or extent of white space, but signs such as + - * /."""
    return _DELIMITERS.sub(" ", fold(text)).strip()


def sentences(text: str) -> str:
    """A text as `whole` makes it, but with a newline wherever a sentence or a line may end, and around all of it."""
    told = _DELIMITERS.sub(lambda run: " " if _ENDS.isdisjoint(run[0]) else "\n", fold(text))
    return f"\n{told.strip()}\n"


def is_said(question: str, text: str) -> bool:
    """Whether a question is one or more whole sentences of a text, perhaps after a short label such as `a)` or `-`.

    Args:
        question: from `whole`.
        text: from `sentences`.
    """
    return _said(question).search(text) is not None


@lru_cache(maxsize=1 << 12)
def _said(question: str) -> re.Pattern[str]:
    words = "[ \n]".join(map(re.escape, question.split(" ")))
    return re.compile(rf"\n(?:\S{{1,3}} )?{words}\n")
