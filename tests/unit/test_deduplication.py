"""Exact, near and semantic duplicates: which rows go, and which stay."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from plumbline.data.deduplication import semantic
from plumbline.data.deduplication.clusters import Duplicates, Keep, drop_repeats, merge, ranks, split
from plumbline.data.deduplication.exact import exact_groups
from plumbline.data.deduplication.key import key_texts
from plumbline.data.deduplication.minhash import MinHash, band_hashes, border_hashes
from plumbline.data.deduplication.near import REACH, near_duplicates, similarities
from plumbline.data.deduplication.semantic import semantic_duplicates
from plumbline.data.deduplication.shingles import Shingling, count_words
from plumbline.data.row import Row

SHINGLES = Shingling(3, 3, 5)


def words(count: int, seed: int) -> list[str]:
    return [f"x{i}" for i in np.random.default_rng(seed).integers(0, 10**6, count)]


class Texts:
    """A corpus that remembers what was asked for."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.lengths = np.array([len(text) for text in texts])
        self.asked: list[np.ndarray] = []

    def __call__(self, rows: np.ndarray) -> list[str]:
        self.asked.append(rows)
        return [self.texts[row] for row in rows]

    def groups(self, settings: MinHash, batch: int = 1000) -> np.ndarray:
        batches = [band_hashes(self.texts[i : i + batch], settings) for i in range(0, len(self.texts), batch)]
        border = border_hashes(self.texts, settings)
        return near_duplicates(np.concatenate(batches), self.lengths, self, settings, border).groups


def brute_groups(texts: Texts, settings: MinHash) -> np.ndarray:
    pairs = np.array(list(itertools.combinations(range(len(texts.texts)), 2)))
    few = count_words(texts.texts) < settings.shingling.short_words
    mixed = few[pairs[:, 0]] != few[pairs[:, 1]]
    by_characters = similarities(pairs, texts.lengths, texts, settings.shingling.of_characters)
    found = np.where(mixed, by_characters, similarities(pairs, texts.lengths, texts, settings.shingling))
    alike = found >= settings.similarity
    return merge(np.arange(len(texts.texts)), pairs[alike])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exact_groups_are_those_of_a_dictionary(seed: int) -> None:
    draw = np.random.default_rng(seed)
    keys = draw.integers(0, 3, (200, 16), dtype=np.uint8)
    keys[:, 2:] = keys[:, :1]  # many repeats, some that differ in one half only
    first: dict[bytes, int] = {}
    expected = [first.setdefault(key.tobytes(), i) for i, key in enumerate(keys)]
    assert exact_groups(keys).tolist() == expected
    assert len(set(expected)) < 20


def test_no_keys_and_one_key() -> None:
    assert exact_groups(np.empty((0, 16), np.uint8)).tolist() == []
    assert exact_groups(np.zeros((1, 16), np.uint8)).tolist() == [0]


@pytest.mark.parametrize("short_words", [3, 12])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_near_groups_are_those_of_all_pairs(seed: int, short_words: int) -> None:
    """With bands of one row nearly every pair that shares a shingle is compared."""
    draw = np.random.default_rng(seed)
    originals = [words(size, seed * 100 + i) for i, size in enumerate(draw.integers(3, 60, 40))]
    copies = [[w if draw.random() > 0.04 else "y" for w in originals[i]] for i in draw.integers(0, 40, 120)]
    texts = Texts([" ".join(t) for t in (*originals, *copies)])
    settings = MinHash(0.7, 40, 1, Shingling(3, short_words, 5))
    groups = texts.groups(settings)
    assert np.array_equal(groups, brute_groups(texts, settings))
    assert 40 <= len(set(groups.tolist())) < 150


def test_the_batches_make_no_difference() -> None:
    texts = Texts([" ".join(words(30, i % 17)[: 20 + i % 11]) for i in range(100)])
    expected = texts.groups(MinHash(shingling=SHINGLES))
    assert len(set(expected.tolist())) < 60
    for batch in (1, 7, 64):
        assert np.array_equal(texts.groups(MinHash(shingling=SHINGLES), batch), expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_pairs_are_found_as_theory_says(seed: int) -> None:
    """A pair of 103 and 103 words whose first 103 - k agree shares 101 - k of 101 + k shingles of three words."""
    pairs, k, settings = 600, 11, MinHash(0.8, 5, 8, SHINGLES)  # s = 90/112 = 0.804
    rows = []
    for i in range(pairs):
        text = words(103, seed * 10_000 + i)
        rows += [" ".join(text), " ".join([*text[:-k], *(f"z{i}q{j}" for j in range(k))])]
    texts = Texts(rows)
    both = np.arange(2 * pairs).reshape(-1, 2)
    s = similarities(both, texts.lengths, texts, SHINGLES)
    assert np.allclose(s, 90 / 112, atol=1e-3)
    groups = texts.groups(settings)
    found = (groups[::2] == groups[1::2]).mean()
    theory = settings.found(90 / 112)
    assert abs(found - theory) < 4 * (theory * (1 - theory) / pairs) ** 0.5
    assert 0.5 < theory < 0.8
    assert len(set(groups.tolist())) == 2 * pairs - round(found * pairs)  # and nothing else was joined


def test_candidates_below_the_threshold_are_refused_and_asked_about_once() -> None:
    text = words(60, 5)
    texts = Texts([" ".join(text), " ".join([*text[:40], *words(20, 6)])])  # s = 38/78
    bands = band_hashes(texts.texts, MinHash(0.8, 64, 1, SHINGLES))
    assert (bands[0] == bands[1]).sum() > 10
    near = near_duplicates(bands, texts.lengths, texts, MinHash(0.8, 64, 1, SHINGLES))
    assert near.groups.tolist() == [0, 1]
    assert (near.compared, near.similar, len(texts.asked)) == (1, 0, 1)


def test_a_false_candidate_hides_no_true_one_in_its_bucket() -> None:
    """Every row has the same bands, so that only comparing within the bucket can tell the three kinds apart."""
    kinds = [" ".join(words(40, kind)) for kind in range(3)]
    texts = Texts([kinds[i % 3] + f" t{i // 3}" for i in range(REACH + 1)])
    bands = np.ones((len(texts.texts), 2), np.uint64)
    near = near_duplicates(bands, texts.lengths, texts, MinHash(0.8, 2, 1, SHINGLES))
    assert near.groups.tolist() == [i % 3 for i in range(REACH + 1)]


def test_a_bucket_of_strangers_costs_a_bounded_number_of_comparisons() -> None:
    texts = Texts([" ".join(words(8, i)) for i in range(500)])
    near = near_duplicates(np.ones((500, 3), np.uint64), texts.lengths, texts, MinHash(0.8, 3, 1, SHINGLES))
    assert near.compared <= REACH * 500  # the other bands ask nothing again
    assert near.groups.tolist() == list(range(500))


def test_texts_are_fetched_in_bounded_chunks() -> None:
    long = [" ".join(words(60_000, i // 2)) for i in range(40)]
    texts = Texts(long)
    assert texts.groups(MinHash(shingling=SHINGLES)).tolist() == [i // 2 * 2 for i in range(40)]
    assert len(texts.asked) > 1
    assert max(texts.lengths[rows].sum() for rows in texts.asked) < 6_000_000


@pytest.mark.parametrize(
    ("keep", "stays"),
    [("first", [0, 2]), ("longest", [1, 4]), ("best", [3, 5])],
)
def test_keep_rules(keep: Keep, stays: list[int]) -> None:
    groups = np.array([0, 0, 2, 0, 2, 2, 6])
    lengths = np.array([5, 9, 1, 9, 7, 7, 1])
    scores = np.array([1.0, np.nan, np.nan, 2.0, np.nan, -1.0, 0.0])
    found = drop_repeats(groups, ranks(keep, lengths, scores))
    expected = {row: stays[0 if groups[row] == 0 else 1] for row in range(6) if row not in stays}
    assert dict(zip(found.dropped.tolist(), found.instead.tolist(), strict=True)) == expected
    assert found.sizes() == {3: 2}


def test_rows_of_a_reference_set_stay_and_win() -> None:
    reference = np.array([False, True, True, False, False])
    rank = ranks("longest", np.array([9, 1, 2, 9, 9]), reference=reference)
    found = drop_repeats(np.array([0, 0, 0, 3, 3]), rank, reference)
    assert found.dropped.tolist() == [0, 4]
    assert found.instead.tolist() == [2, 3]


def test_nothing_to_drop() -> None:
    found = drop_repeats(np.arange(3), ranks("first", np.ones(3)))
    assert found.dropped.tolist() == []
    assert found.sizes() == {}
    assert found.largest(3) == []
    assert drop_repeats(np.arange(0), ranks("first", np.ones(0))).dropped.tolist() == []


def test_largest_clusters() -> None:
    found = Duplicates(np.array([1, 4, 5, 7]), np.array([0, 3, 3, 6]))
    assert found.largest(2) == [[3, 4, 5], [0, 1]]


def test_merging_follows_chains() -> None:
    groups = merge(np.arange(7), np.array([[5, 6], [3, 5]]))
    assert groups.tolist() == [0, 1, 2, 3, 4, 3, 3]
    assert merge(groups, np.array([[6, 1]])).tolist() == [0, 1, 2, 1, 4, 1, 1]


def test_groups_are_cut_by_kind() -> None:
    kinds = np.array([True, False, True, False, True, False])
    assert split(np.array([0, 0, 0, 3, 3, 0]), kinds).tolist() == [0, 1, 0, 3, 4, 1]
    assert split(np.arange(0), np.array([], bool)).tolist() == []


def brute_semantic(vectors: np.ndarray, similarity: float, rank: np.ndarray) -> dict[int, int]:
    kept: list[int] = []
    instead: dict[int, int] = {}
    for row in np.argsort(rank).tolist():
        near = [other for other in kept if vectors[row] @ vectors[other] >= similarity]
        if near:
            instead[row] = near[0]
        else:
            kept.append(row)
    return instead


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_semantic_duplicates_are_near_to_the_row_that_stays(seed: int) -> None:
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(60, 16))
    vectors = np.repeat(centres, 5, axis=0) + draw.normal(size=(300, 16)) * 0.25
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    rank = ranks("best", draw.integers(1, 9, 300), draw.random(300))
    found = semantic_duplicates(vectors, 0.95, rank)
    assert dict(zip(found.dropped.tolist(), found.instead.tolist(), strict=True)) == brute_semantic(vectors, 0.95, rank)
    assert 50 < len(found.dropped) < 250
    clustered = semantic_duplicates(vectors, 0.95, rank, clusters=10, seed=seed)
    assert np.array_equal(clustered.dropped, semantic_duplicates(vectors, 0.95, rank, clusters=10, seed=seed).dropped)
    assert 0.8 * len(found.dropped) < len(clustered.dropped) <= len(found.dropped) + 5
    assert ((vectors[clustered.dropped] * vectors[clustered.instead]).sum(1) >= 0.95 - 1e-6).all()


@pytest.mark.parametrize("block", [1, 700, 5000])
def test_semantic_duplicates_do_not_depend_on_how_many_are_compared_at_a_time(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    draw = np.random.default_rng(block)
    vectors = np.repeat(draw.normal(size=(40, 8)), 4, axis=0) + draw.normal(size=(160, 8)) * 0.3
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    rank = ranks("longest", draw.integers(1, 99, 160))
    monkeypatch.setattr(semantic, "BLOCK_SIMILARITIES", block)
    found = semantic_duplicates(vectors, 0.9, rank)
    assert dict(zip(found.dropped.tolist(), found.instead.tolist(), strict=True)) == brute_semantic(vectors, 0.9, rank)
    assert 20 < len(found.dropped) < 140


def test_a_cluster_of_like_rows_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def counting(near: np.ndarray, axis: int) -> np.ndarray:
        compared.append(near.size)
        return near.sum(axis=axis)

    monkeypatch.setattr(semantic, "BLOCK_SIMILARITIES", 10_000)
    monkeypatch.setattr(np, "count_nonzero", counting)
    vectors = np.tile(np.float32([0.6, 0.8]), (5000, 1))
    found = semantic_duplicates(vectors, 0.99, ranks("first", np.ones(5000)), clusters=1)
    assert len(found.dropped) == 4999
    assert compared == [10_000]


def test_equal_rows_have_a_similarity_of_one() -> None:
    vectors = np.random.default_rng(3).normal(size=(50, 384))
    vectors = np.repeat((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), 2, axis=0)
    assert len(semantic_duplicates(vectors, 1, ranks("first", np.ones(100))).dropped) == 50


def test_rows_of_another_kind_mean_something_else() -> None:
    kinds = np.array([True, False, True, False])
    found = semantic_duplicates(np.ones((4, 1), np.float32), 0.9, ranks("first", np.ones(4)), kinds=kinds)
    assert (found.dropped.tolist(), found.instead.tolist()) == ([2, 3], [0, 1])


def test_semantic_reference_rows_stay() -> None:
    vectors = np.ones((4, 1), np.float32)
    reference = np.array([False, True, True, False])
    found = semantic_duplicates(vectors, 0.9, ranks("first", np.ones(4), reference=reference), reference=reference)
    assert (found.dropped.tolist(), found.instead.tolist()) == ([0, 3], [1, 1])


CHAT = {
    "messages": [
        {"role": r, "content": c}
        for r, c in (("system", "s"), ("user", "u1\n\nin"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2"))
    ]
}


@pytest.mark.parametrize(
    ("row", "key", "texts"),
    [
        (Row(CHAT, instruction="u1"), "instruction", ["u1"]),
        (Row(CHAT), "instruction", ["u1\n\nin"]),
        (Row(CHAT), "prompt", ["u1\n\nin", "u2"]),
        (Row(CHAT), "answer", ["a1", "a2"]),
        (Row(CHAT), "chat", ["s", "u1\n\nin", "a1", "u2", "a2"]),
        (Row({"text": "t"}), "prompt", ["t"]),
        (Row({"text": "t"}), "instruction", ["t"]),
    ],
)
def test_keys(row: Row, key: str, texts: list[str]) -> None:
    assert key_texts(row, key) == texts
