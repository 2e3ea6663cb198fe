"""Texts as sets of hashed shingles: windows of words, or of characters where a text has few words. Vectorised over a batch.

A text is folded (NFKC, then case folded); words are runs of letters, marks and digits of any script, and every
character of a script that is written without spaces is a word. Everything else only separates.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

BLOCK_CHARACTERS = 1 << 17
"""Texts are worked on in blocks of about so many characters, so that arrays stay in the second-level cache (8 bytes each)."""

UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),
    (0x3041, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # ideographs
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x31FFF),
)
"""Ranges of code points of scripts that are written without spaces."""
SEPARATOR, WORD, SINGLE = 0, 1, 2
CODE_POINTS = 0x32000
"""Above lie only tags, selectors and private use, which separate."""

_BASE = 0x9E3779B97F4A7C15 | 1
_INVERSE = pow(_BASE, -1, 1 << 64)
_WORDS, _CHARACTERS = 0x2545F4914F6CDD1D, 0xD1342543DE82EF95  # word windows and character windows never share a hash


@dataclass(frozen=True)
class Shingling:
    """How texts become sets.

    Attributes:
        words: words in a window.
        short_words: texts with fewer words than this become windows of characters instead.
        characters: characters in such a window, one space after each word; a text with fewer is one window.
    """

    words: int = 5
    short_words: int = 20
    characters: int = 5

    @property
    def of_characters(self) -> Shingling:
        """The same for texts that are all compared by characters."""
        return replace(self, short_words=sys.maxsize)


def shingle(texts: Sequence[str], how: Shingling) -> tuple[np.ndarray, np.ndarray]:
    """Hashed shingles of each text, with repetitions, in no particular order within a text.

    Args:
        texts: n texts.
        how: the shingles.

    Returns:
        hashes (m,) uint32, evenly spread; and offsets (n + 1,) int64: text i has `hashes[offsets[i]:offsets[i + 1]]`.
        A text without any word has none. The hash of a shingle depends on nothing but the shingle.
    """
    parts = [_shingle_block(block, how) for block in _blocks([fold(text) for text in texts])]
    if not parts:
        return np.empty(0, np.uint32), np.zeros(1, np.int64)
    counts = np.concatenate([counts for _, counts in parts])
    return np.concatenate([hashes for hashes, _ in parts]), offsets_of(counts)


def count_words(texts: Sequence[str]) -> np.ndarray:
    """(n,) int64 words of each text."""
    blocks = [Letters(block).words_in for block in _blocks([fold(text) for text in texts])]
    return np.concatenate([np.empty(0, np.int64), *blocks])


def fold(text: str) -> str:
    """NFKC and case folding. ASCII texts, most of them, take the short way."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """Where each of n runs with these lengths begins, and the end: (n + 1,) int64."""
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Indices start, start + 1, …, start + length - 1 of each span, one after the other: (sum of lengths,) int64."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64 bits that looks random."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_words(count: int, seed: int) -> np.ndarray:
    """Random 64-bit words (count,) from a fixed formula: the same whatever the version of NumPy."""
    return mix(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed))


def _blocks(texts: list[str]) -> Iterator[list[str]]:
    start = size = 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= BLOCK_CHARACTERS:
            yield texts[start : i + 1]
            start, size = i + 1, 0
    if start < len(texts):
        yield texts[start:]


def _shingle_block(texts: list[str], how: Shingling) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and their number in each text."""
    letters = Letters(texts)
    long = letters.words_in >= how.short_words
    if long.all():
        return letters.word_windows(long, how.words)
    short = ~long
    few, few_counts = Letters([texts[i] for i in np.flatnonzero(short)]).character_windows(how.characters)
    many, many_counts = letters.word_windows(long, how.words)
    counts = np.empty(len(texts), np.int64)
    counts[long], counts[short] = many_counts[long], few_counts
    starts = offsets_of(counts)[:-1]
    hashes = np.empty(int(counts.sum()), np.uint32)
    hashes[spans(starts[long], counts[long])] = many
    hashes[spans(starts[short], few_counts)] = few
    return hashes, counts


class Letters:
    """The code points of a block of folded texts, one NUL around each, and where words begin and end."""

    def __init__(self, texts: list[str]) -> None:
        self.lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self.starts = offsets_of(self.lengths + 1)[:-1] + 1
        joined = "\0" + "\0".join(texts) + "\0"
        if joined.isascii():
            self.codes = np.frombuffer(joined.encode("ascii"), np.uint8)
        else:  # a lone surrogate is a separator like any other code that is no letter
            self.codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        self.classes = _classes().take(self.codes, mode="clip")
        before, after = self.classes[:-1], self.classes[1:]
        edges = np.flatnonzero((before != after) | (after == SINGLE))
        self.word_starts = edges[after[edges] != SEPARATOR] + 1
        self.word_ends = edges[before[edges] != SEPARATOR] + 1
        first = np.searchsorted(self.word_starts, np.append(self.starts, len(joined)))
        self.first_word, self.words_in = first[:-1], np.diff(first)

    def word_hashes(self) -> np.ndarray:
        """One hash of 64 bits for each word, in order."""
        return mix(range_hashes(self.codes, self.word_starts, self.word_ends))

    def word_windows(self, which: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows of n words of the texts in `which` (all have n words or more); the number of windows of every text."""
        counts = np.where(which, self.words_in - (n - 1), 0)
        if not counts.any():
            return np.empty(0, np.uint32), counts
        words = self.word_hashes()
        weights = random_words(n, _WORDS) | np.uint64(1)
        size = len(words) - (n - 1)
        windows = words[:size] * weights[0]
        for i in range(1, n):
            windows += words[i : size + i] * weights[i]
        return _top(mix(windows[spans(self.first_word, counts)])), counts

    def character_windows(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows of n characters of the words with one separator after each; the number of windows of every text."""
        inside = self.classes != SEPARATOR
        kept = inside.copy()
        kept[1:] |= inside[:-1]
        codes = np.where(inside, self.codes, 32)[kept]
        place = np.searchsorted(np.flatnonzero(kept), np.append(self.starts, len(self.codes)))
        lengths = np.diff(place)
        counts = np.where(lengths >= n, lengths - (n - 1), np.minimum(lengths, 1))
        begin = spans(place[:-1], counts)
        end = begin + np.repeat(np.minimum(lengths, n), counts)
        return _top(mix(range_hashes(codes, begin, end) ^ np.uint64(_CHARACTERS))), counts


def range_hashes(codes: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The polynomial of the codes in each range, modulo 2^64, by prefix sums: sum of codes[begin + i] · base^i."""
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(np.multiply(codes, _powers(_BASE, len(codes)), dtype=np.uint64), out=sums[1:])
    return (sums[end] - sums[begin]) * _powers(_INVERSE, len(codes))[begin]


def _powers(base: int, count: int) -> np.ndarray:
    """base^0 … base^(count - 1) modulo 2^64; remembered for blocks of the usual size, worked out for a longer text."""
    usual = 2 * BLOCK_CHARACTERS
    return _usual_powers(base, usual)[:count] if count <= usual else _usual_powers.__wrapped__(base, count)


@lru_cache(maxsize=2)
def _usual_powers(base: int, count: int) -> np.ndarray:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def _top(x: np.ndarray) -> np.ndarray:
    """The upper half: 32 bits are enough within pairs of texts, and twice as fast to permute."""
    return (x >> np.uint64(32)).astype(np.uint32)


@lru_cache(maxsize=1)
def _classes() -> np.ndarray:
    """SEPARATOR, WORD or SINGLE for each code point; the last entry stands for all above."""
    table = np.frombuffer(bytes(unicodedata.category(chr(code))[0] in "LMN" for code in range(CODE_POINTS)), np.uint8).copy()
    for first, last in UNSPACED:
        table[first : last + 1] *= SINGLE
    table[-1] = SEPARATOR
    return table
