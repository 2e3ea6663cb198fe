"""The questions of benchmarks, indexed once, and rows compared with them. Built by the driver, used in every worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa

from plumbline.api.curation.decontamination import DecontaminateSpec
from plumbline.data.decontamination.code import code_windows, programs, tokens, unnamed
from plumbline.data.decontamination.windows import (
    CHARACTERS,
    CODE,
    OPENING,
    WORDS,
    Windows,
    Words,
    is_said,
    joined,
    sentences,
    union_lengths,
    whole,
)
from plumbline.data.deduplication.shingles import BLOCK_CHARACTERS, offsets_of, spans
from plumbline.data.row import Row

COMMON = 10
"""A window in more questions of one benchmark than this is a template of it, and counts for nothing (Curator's number)."""
PHRASE = 1.5
"""Windows that a common phrase may fill; see `_enough`."""
CODE_COVER = 0.8
"""Least share of a program: half of it may be an idiom, such as two nested loops over pairs."""
SENTENCE_WORDS = 4
"""A question of fewer words counts only where it is all of a turn."""
LEAST_TOKENS = 10
"""A program of fewer tokens is an expression, and counts for nothing."""
HITS = pa.list_(pa.struct([("item", pa.int32()), ("cover", pa.float32())]))


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Attributes:
        benchmark: name of the benchmark.
        id: of the question, unique in the benchmark.
        texts: wordings; a row that holds one of them holds the question.
        code: the program that is asked for.
    """

    benchmark: str
    id: str
    texts: tuple[str, ...]
    code: str = ""


@dataclass(frozen=True)
class Hit:
    """A question that a row holds.

    Attributes:
        item: ordinal of the question.
        cover: share of it that is in the row.
    """

    item: int
    cover: float


@dataclass(frozen=True)
class Index:
    """Windows of all questions, by hash. A `view` is one text or program of a question.

    Attributes:
        spec: the rule.
        items: (benchmark, id) of each question.
        keys: (u,) uint64 hashes, ascending; window i has postings `starts[i]:starts[i + 1]`.
        view, place: (p,) int32 of each posting: the view, and where in it the window begins.
        item_of, length, covered, share: (v,) of each view: its question; the units of a window; the units that lie in any
            window; the share of them that makes a row contaminated.
        kinds: of windows that there are.
        wholes: text without a window, to be compared as a whole → questions.
        openings: the hash of the first `SENTENCE_WORDS` words of such a text → the texts.
        brief: characters that a text may have to be all one of those of fewer words; 0 where there are none.
        programs: program without a window, to be compared as a whole → questions.
        likely: (2^k,) bool by the upper k bits of a hash: whether it may be among the keys. Most of rows' windows are not.
    """

    spec: DecontaminateSpec
    items: tuple[tuple[str, str], ...]
    keys: np.ndarray
    starts: np.ndarray
    view: np.ndarray
    place: np.ndarray
    item_of: np.ndarray
    length: np.ndarray
    covered: np.ndarray
    share: np.ndarray
    kinds: frozenset[int]
    wholes: dict[str, tuple[int, ...]]
    openings: dict[int, tuple[str, ...]]
    brief: int
    programs: dict[str, tuple[int, ...]]
    likely: np.ndarray = field(repr=False)

    @classmethod
    def build(cls, items: Iterable[Question], spec: DecontaminateSpec) -> Index:
        """Index questions.

        Args:
            items: of any number of benchmarks.
            spec: the rule.
        """
        questions = list(items)
        views = [(i, text) for i, question in enumerate(questions) for text in question.texts]
        listed = [(i, tokens(question.code)) for i, question in enumerate(questions) if question.code]
        item_of = np.array([i for i, _ in (*views, *listed)], np.int64)
        words = Words.of([text for _, text in views])
        unspaced = words.unspaced_share() > 0.5
        kind = np.append(np.where(unspaced, CHARACTERS, WORDS), np.full(len(listed), CODE))
        length = np.array([0, spec.ngram, spec.characters, spec.code_tokens])[kind]
        found = joined(
            words.windows(spec.ngram, WORDS, ~unspaced),
            words.windows(spec.characters, CHARACTERS, unspaced),
            code_windows([names for _, names in listed], spec.code_tokens).shifted(len(views)),
        )
        benchmark = np.unique([question.benchmark for question in questions], return_inverse=True)[1]
        found = found.chosen(~_common(found.hashes, item_of[found.text], benchmark))
        covered = np.zeros(len(item_of), np.int64)
        view, lengths = union_lengths(found.text, found.place, length[found.text])
        covered[view] = lengths
        found = found.chosen(np.argsort(found.hashes, kind="stable"))
        keys, counts = np.unique(found.hashes, return_counts=True)
        bare = covered == 0
        wholes = _gathered((whole(text), i) for (i, text), alone in zip(views, bare, strict=False) if alone)
        openings = _openings(list(wholes))
        brief = set(wholes).difference(*openings.values())
        return cls(
            spec=spec,
            items=tuple((question.benchmark, question.id) for question in questions),
            keys=keys,
            starts=offsets_of(counts),
            view=found.text.astype(np.int32),
            place=found.place.astype(np.int32),
            item_of=item_of,
            length=length,
            covered=covered,
            share=np.where(kind == CODE, max(spec.cover, CODE_COVER), spec.cover),
            kinds=frozenset(kind.tolist()),
            wholes=wholes,
            openings=openings,
            brief=2 * max(map(len, brief)) + 100 if brief else 0,  # as it is written, with what does not count
            programs=_gathered(
                (unnamed(names), i)
                for (i, names), alone in zip(listed, bare[len(views) :], strict=True)
                if alone and len(names) >= LEAST_TOKENS
            ),
            likely=_likely(keys),
        )

    def check(self, row: Row) -> list[Hit]:
        """The questions that a row holds, the best covered first."""
        _, items, covers = self._found([row])
        order = np.lexsort((items, -covers))
        return [Hit(int(items[i]), float(covers[i])) for i in order]

    def annotate(self, rows: Sequence[Row]) -> pa.Array:
        """`check` of many rows as a column of `HITS`, the questions of each row in their order."""
        counts, items, covers = [], [], []
        for block in _blocks(rows):
            row, item, cover = self._found(block)
            counts.append(np.bincount(row, minlength=len(block)))
            items.append(item)
            covers.append(cover)
        if not counts:
            return pa.nulls(0, HITS)
        fields = [pa.array(np.concatenate(items), pa.int32()), pa.array(np.concatenate(covers), pa.float32())]
        hits = pa.StructArray.from_arrays(fields, fields=list(HITS.value_type))
        return pa.ListArray.from_arrays(pa.array(offsets_of(np.concatenate(counts)), pa.int32()), hits)

    def _found(self, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row, item, cover) of every hit, by row and item."""
        of_rows = [self._texts(row) for row in rows]
        texts, row_of = list(chain.from_iterable(of_rows)), np.repeat(np.arange(len(rows)), list(map(len, of_rows)))
        words = Words.of(texts)
        written = [(i, tokens(program)) for i, row in enumerate(rows) for program in self._programs(row)]
        row, view, found = self._covers(words, row_of, written)
        enough = _enough(found, self.share[view], self.covered[view], self.length[view])
        row, view, found = row[enough], view[enough], found[enough]
        item, cover = self.item_of[view], found / self.covered[view]
        equal = [(int(row_of[i]), which) for i, which in self._equal_texts(texts, words)]
        short = [(i, names) for i, names in written if self.programs and len(names) < self.spec.code_tokens]
        equal += [(i, which) for i, names in short for which in self.programs.get(unnamed(names), ())]
        row = np.append(row, np.array([i for i, _ in equal], np.int64))
        item = np.append(item, np.array([which for _, which in equal], np.int64))
        cover = np.append(cover, np.ones(len(equal)))
        order = np.lexsort((-cover, item, row))
        row, item, cover = row[order], item[order], cover[order]
        first = np.append(True, (row[1:] != row[:-1]) | (item[1:] != item[:-1]))[: len(row)]
        return row[first], item[first], cover[first]

    def _covers(
        self, words: Words, row_of: np.ndarray, written: Sequence[tuple[int, list[str]]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row, view, units of the view that are in the row) wherever there are any."""
        found = [self._look_up(windows, of) for windows, of in self._windows(words, row_of, written)]
        row, view, place = (np.concatenate([part[i] for part in found]) for i in range(3))
        pair, lengths = union_lengths(row * len(self.item_of) + view, place, self.length[view])
        row, view = np.divmod(pair, max(len(self.item_of), 1))
        return row, view, lengths

    def _windows(
        self, words: Words, row_of: np.ndarray, written: Sequence[tuple[int, list[str]]]
    ) -> Iterator[tuple[Windows, np.ndarray]]:
        """Windows of the rows' texts and programs, and the row of each of these."""
        yield words.windows(self.spec.ngram, WORDS, np.ones(len(row_of), bool)), row_of
        if CHARACTERS in self.kinds and words.unspaced.any():
            yield words.windows(self.spec.characters, CHARACTERS, words.unspaced_share() > 0), row_of
        if written:
            windows = code_windows([names for _, names in written], self.spec.code_tokens)
            yield windows, np.array([i for i, _ in written], np.int64)

    def _texts(self, row: Row) -> list[str]:
        return row.texts if self.spec.turns == "all" else row.prompts or row.texts

    def _programs(self, row: Row) -> Iterator[str]:
        if CODE in self.kinds:
            for text in row.texts:
                yield from programs(text)

    def _look_up(self, windows: Windows, row_of: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row, view, place in the view) for each occurrence of a window of the rows in a view."""
        likely = np.flatnonzero(self.likely[windows.hashes >> _shift(self.likely)])
        at = np.searchsorted(self.keys, windows.hashes[likely])
        known = at < len(self.keys)
        known[known] = self.keys[at[known]] == windows.hashes[likely[known]]
        likely, at = likely[known], at[known]
        counts = self.starts[at + 1] - self.starts[at]
        postings = spans(self.starts[at], counts)
        return np.repeat(row_of[windows.text[likely]], counts), self.view[postings], self.place[postings]

    def _equal_texts(self, texts: Sequence[str], words: Words) -> Iterator[tuple[int, int]]:
        """(text, item) where a text is the question, or where the question is one or more whole sentences of it."""
        for i, text in enumerate(texts):
            if len(text) <= self.brief:
                yield from ((i, item) for item in self.wholes.get(whole(text), ()))
        if not self.openings:
            return
        opening = words.windows(SENTENCE_WORDS, OPENING, np.ones(len(texts), bool))
        known = np.isin(opening.hashes, np.fromiter(self.openings, np.uint64, len(self.openings)))
        candidates: dict[int, set[int]] = {}
        for i, key in zip(opening.text[known].tolist(), opening.hashes[known].tolist(), strict=True):
            candidates.setdefault(i, set()).add(key)
        for i, found in candidates.items():
            said = sentences(texts[i])
            for key in found:
                for text in self.openings[key]:
                    if is_said(text, said):
                        yield from ((i, item) for item in self.wholes[text])


def _enough(found: np.ndarray, cover: np.ndarray, covered: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Whether so many units of a view make it contaminated.

    They are the share `cover`, and one window and a half or all: a common phrase fills one window, and would be most of a
    short question.
    """
    return found >= np.maximum(cover * covered, np.minimum(covered, PHRASE * length))


def _gathered(pairs: Iterable[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
    """Text → its questions, each once; empty texts are left out."""
    found: dict[str, dict[int, None]] = {}
    for text, item in pairs:
        if text:
            found.setdefault(text, {})[item] = None
    return {text: tuple(items) for text, items in found.items()}


def _openings(texts: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """The hash of the first words → the texts that begin with them; texts of fewer words are left out."""
    windows = Words.of(texts).windows(SENTENCE_WORDS, OPENING, np.ones(len(texts), bool))
    windows = windows.chosen(windows.place == 0)
    found: dict[int, tuple[str, ...]] = {}
    for key, text in zip(windows.hashes.tolist(), windows.text.tolist(), strict=True):
        found[key] = (*found.get(key, ()), texts[text])
    return found


def _common(hashes: np.ndarray, item: np.ndarray, benchmark: np.ndarray) -> np.ndarray:
    """(m,) bool: windows that occur in more than `COMMON` items of one benchmark."""
    if not len(hashes):
        return np.zeros(0, bool)
    number = np.unique(hashes, return_inverse=True)[1]
    pairs = np.unique(np.stack([number, item], axis=1), axis=0)
    group = pairs[:, 0] * (int(benchmark.max()) + 1) + benchmark[pairs[:, 1]]
    groups, counts = np.unique(group, return_counts=True)
    mine = number * (int(benchmark.max()) + 1) + benchmark[item]
    return counts[np.searchsorted(groups, mine)] > COMMON


def _likely(keys: np.ndarray) -> np.ndarray:
    """A filter that lets one in sixteen unknown hashes pass."""
    bits = max(10, (16 * len(keys)).bit_length())
    table = np.zeros(1 << bits, bool)
    table[keys >> _shift(table)] = True
    return table


def _shift(table: np.ndarray) -> np.uint64:
    return np.uint64(65 - len(table).bit_length())


def _blocks(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows in blocks of bounded size, as far as rows are."""
    block: list[Row] = []
    size = 0
    for row in rows:
        block.append(row)
        size += sum(map(len, row.texts))
        if size >= BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block
