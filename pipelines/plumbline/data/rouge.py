"""The rule of Self-Instruct that keeps instructions apart: ROUGE-L F to every earlier one at most 0.7. Exact, and pruned."""

from __future__ import annotations

import re
from array import array
from fractions import Fraction

import numpy as np
import regex
from rapidfuzz.distance import LCSseq

from plumbline.data.deduplication.shingles import UNSPACED

_ASCII_TOKEN = re.compile("[a-z0-9]+")
_SINGLE = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED)
_TOKEN = regex.compile(rf"(?V1)[[\p{{L}}\p{{M}}\p{{N}}]&&[{_SINGLE}]]|[[\p{{L}}\p{{M}}\p{{N}}]--[{_SINGLE}]]+")
_NONE: array[int] = array("q")


def tokens_of(text: str) -> list[str]:
    """Lower-case runs of letters and digits: on ASCII the tokens of Google's `rouge_score` without stemming, as Self-Instruct uses it.

    Letters of all scripts count, and each character of a script that is written without spaces is a token (`rouge_score` drops them).
    """
    lower = text.lower()
    return _ASCII_TOKEN.findall(lower) if lower.isascii() else _TOKEN.findall(lower)


class RougePool:
    """Texts, and whether a new one is too like any of them.

    F is 2 · LCS / (m + n) of texts with m and n tokens (Lin 2004, β = 1), so F > t asks for more than t(m + n)/2 tokens in common, and
    no more can be common than the shorter text has: this bounds n. An inverted index counts common tokens, whatever their order. The
    commonest tokens of the new text, three quarters of those that a text could lack, are left out of the count and granted to every text. Only
    texts with enough tokens in common get their longest common subsequence computed. None that is near enough is ever missed.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        """Start empty.

        Args:
            threshold: texts with a higher F are too alike; in [0, 1]. Taken as the decimal number that it prints as, so that
                comparing is exact: F = 7/10 is not above 0.7.
        """
        share = Fraction(str(threshold))
        self._over, self._under = share.numerator, share.denominator
        self._exact = np.int64 if share.denominator < 2**31 else object  # products of long numbers pass 64 bits
        self._vocabulary: dict[str, int] = {}
        self._holders: dict[int | tuple[int, int], array[int]] = {}
        """Texts that hold a token, ascending; under (token, 2) those that hold it twice, and so on."""
        self._sequences: list[list[int]] = []
        self._lengths = array("q")

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, text: str) -> None:
        """Put a text into the pool."""
        self._add(self._encode(text))

    def closest(self, text: str) -> tuple[int, float] | None:
        """The text of the pool with the highest F above the threshold, the earliest of equal ones; None where there is none.

        Returns:
            Its number in order of addition, and F.
        """
        return self._closest(self._encode(text))

    def admit(self, text: str) -> tuple[int, float] | None:
        """Put a text into the pool, unless one is there that is too like it, which is returned as by `closest`."""
        sequence = self._encode(text)
        found = self._closest(sequence)
        if found is None:
            self._add(sequence)
        return found

    def _encode(self, text: str) -> list[int]:
        number = self._vocabulary.setdefault
        return [number(token, len(self._vocabulary)) for token in tokens_of(text)]

    def _add(self, sequence: list[int]) -> None:
        for key in _keys(sequence):
            self._holders.setdefault(key, array("q")).append(len(self))
        self._sequences.append(sequence)
        self._lengths.append(len(sequence))

    def _closest(self, sequence: list[int]) -> tuple[int, float] | None:
        best, found = 0.0, None
        for number, needed in self._candidates(sequence):
            common = LCSseq.similarity(sequence, self._sequences[number], score_cutoff=needed)
            score = 2 * common / (len(sequence) + len(self._sequences[number]))
            if score > best:
                best, found = score, number
        return None if found is None else (found, best)

    def _candidates(self, sequence: list[int]) -> list[tuple[int, int]]:
        """Texts that may be near enough, and how many tokens in order each must have in common."""
        m = len(sequence)
        shortest = m * self._over // (2 * self._under - self._over) + 1
        least = (m + shortest) * self._over // (2 * self._under) + 1
        granted = 3 * (least - 1) // 4
        lists = sorted((self._holders.get(key, _NONE) for key in _keys(sequence)), key=len)
        counted = [np.frombuffer(holders, np.int64) for holders in lists[: m - granted] if holders]
        if not counted:
            return []
        common = np.bincount(np.concatenate(counted))
        texts = np.flatnonzero(common >= least - granted)
        n = np.frombuffer(self._lengths, np.int64)[texts].astype(self._exact)
        needed = (m + n) * self._over // (2 * self._under) + 1
        enough = np.minimum(np.minimum(n, m), common[texts] + granted) >= needed
        return list(zip(texts[enough].tolist(), needed[enough].tolist(), strict=True))


def _keys(sequence: list[int]) -> list[int | tuple[int, int]]:
    """Each token, and from its second occurrence on with its ordinal, so that tokens in common count as often as they occur."""
    if len(set(sequence)) == len(sequence):
        return list(sequence)
    times: dict[int, int] = {}
    keys: list[int | tuple[int, int]] = []
    for token in sequence:
        times[token] = times.get(token, 0) + 1
        keys.append(token if times[token] == 1 else (token, times[token]))
    return keys
