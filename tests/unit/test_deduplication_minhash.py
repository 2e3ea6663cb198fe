"""Shingles and MinHash bands: what counts as the same, and how well similarity is estimated."""

from __future__ import annotations

import gzip
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from plumbline.api.curation.deduplication import MinHashSpec
from plumbline.data.deduplication.minhash import MinHash, band_hashes, choose_bands, minima, settings_of
from plumbline.data.deduplication.shingles import BLOCK_CHARACTERS, Shingling, shingle


def sets(texts: list[str], how: Shingling) -> list[set[int]]:
    hashes, offsets = shingle(texts, how)
    return [set(hashes[a:b].tolist()) for a, b in pairwise(offsets)]


def jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other)


def plain_shingles(text: str, how: Shingling) -> set[tuple[str, ...]]:
    """The definition, for ASCII."""
    words = re.findall("[a-z0-9]+", text.lower())
    if len(words) >= how.short_words:
        return {tuple(words[i : i + how.words]) for i in range(len(words) - how.words + 1)}
    line = "".join(f"{word} " for word in words)
    return {tuple(line[i : i + how.characters]) for i in range(max(1, len(line) - how.characters + 1))} if line else set()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of one to a few hundred words of a small vocabulary, and edited copies."""
    draw = np.random.default_rng(11)
    vocabulary = np.array([f"w{i}" if i % 3 else f"W{i}," for i in range(400)])
    originals = [vocabulary[draw.integers(0, 400, size)] for size in draw.integers(1, 300, 300)]
    copies = [np.where(draw.random(len(t)) < draw.random() / 10, draw.choice(vocabulary, len(t)), t) for t in originals]
    return [" ".join(t) for t in (*originals, *copies)]


@pytest.mark.parametrize("how", [Shingling(5, 5, 5), Shingling(5, 20, 5), Shingling(1, 1, 3), Shingling(3, 1000, 7)])
def test_shingles_are_those_of_the_definition(texts: list[str], how: Shingling) -> None:
    hashed, plain = sets(texts, how), [plain_shingles(text, how) for text in texts]
    assert sum(len(s) for s in plain) - sum(len(s) for s in hashed) <= 3  # hashes of 32 bits: a collision is a rarity
    n = len(texts) // 2
    found = [jaccard(*pair) for pair in zip(hashed[:n], hashed[n:], strict=True)]
    assert np.allclose(found, [jaccard(*pair) for pair in zip(plain[:n], plain[n:], strict=True)], atol=2e-3, rtol=0)


def test_real_words_and_shingles_do_not_collide_more_than_32_bits_must(shared: Path) -> None:
    with gzip.open(shared / "alpaca" / "alpaca_data_shared.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(4000), strict=False)]
    texts = [row["output"] for row in rows if row["output"].isascii()]
    how = Shingling(5, 5, 5)
    plain = set().union(*(plain_shingles(text, how) for text in texts))
    hashed = set().union(*sets(texts, how))
    expected = len(plain) ** 2 / 2**33
    assert abs(len(plain) - len(hashed) - expected) <= 5 * max(1, expected) ** 0.5


def test_a_text_has_the_same_hashes_in_any_company(texts: list[str]) -> None:
    mixed = [text if i % 3 else f"{text} naïve 中文 ﬁn" for i, text in enumerate(texts)] + [
        "x " * BLOCK_CHARACTERS,
        "",
        "?!",
    ]
    settings = MinHash(shingling=Shingling(4, 12, 6))
    together = band_hashes(mixed, settings)
    alone = np.concatenate([band_hashes([text], settings) for text in mixed])
    backwards = band_hashes(mixed[::-1], settings)[::-1]
    assert np.array_equal(together, alone)
    assert np.array_equal(together, backwards)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is THIS?  A test!", "what is this a test"),
        ("ﬁne ①", "fine 1"),  # NFKC
        ("Straße", "STRASSE"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\0b", "a b"),
        ("请写一首诗。", "请,写一首 诗"),
    ],
)
def test_texts_that_differ_in_form_only_are_the_same(one: str, other: str) -> None:
    first, second = sets([one, other], Shingling(1, 1, 3))
    assert first == second


def test_scripts_without_spaces_are_words_of_one_character() -> None:
    text = "机器学习是人工智能的一个分支"
    (found,) = sets([text], Shingling(5, 5, 5))
    assert len(found) == len(text) - 4
    (mixed,) = sets(["用python写的"], Shingling(1, 1, 3))
    assert mixed == set().union(*sets(["用", "python", "写", "的"], Shingling(1, 1, 3)))
    (thai,) = sets(["ก ข"], Shingling(1, 1, 3))
    assert len(thai) == 2


def test_short_texts_differ_by_their_characters() -> None:
    how = Shingling()
    a, b, c, d = sets(["Name three primary colours", "Name three primary colors", "Give me a poem", "hi"], how)
    assert 0.7 < jaccard(a, b) < 1
    assert jaccard(a, c) == 0
    assert len(d) == 1
    assert sets(["", "?!", " \n"], how) == [set(), set(), set()]
    assert not band_hashes(["", "?!"], MinHash()).any()  # like nothing, not like each other


def test_windows_never_cross_texts() -> None:
    (joined,) = sets(["a b c d e f"], Shingling(3, 3, 3))
    apart = set().union(*sets(["a b c", "d e f"], Shingling(3, 3, 3)))
    assert len(joined) == 4
    assert len(apart) == 2
    assert apart < joined


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_similarity_is_estimated_without_bias_and_with_the_variance_of_theory(seed: int) -> None:
    draw = np.random.default_rng(seed)
    pairs, permutations = 400, 128
    shared, own = draw.integers(1, 60, pairs), draw.integers(0, 30, (pairs, 2))
    exact = shared / (shared + own.sum(1))
    hashes, sizes = [], []
    for common, (left, right) in zip(shared, own, strict=True):
        pool = draw.integers(0, 2**32, common + left + right, dtype=np.uint32)
        hashes += [pool[: common + left], np.concatenate([pool[:common], pool[common + left :]])]
        sizes += [common + left, common + right]
    signatures = minima(np.concatenate(hashes), np.concatenate([[0], np.cumsum(sizes)]), permutations)
    error = (signatures[:, ::2] == signatures[:, 1::2]).mean(0) - exact
    deviation = np.sqrt(exact * (1 - exact) / permutations)
    assert abs(error.mean()) < 4 * np.sqrt((deviation**2).sum()) / pairs
    spread = (error[exact < 1] / deviation[exact < 1]).var()
    assert 0.75 < spread < 1.25  # the permutations are as good as independent


@pytest.mark.parametrize(("similarity", "recall"), [(0.3, 0.5), (0.5, 0.9), (0.8, 0.95), (0.9, 0.999), (1.0, 0.95)])
def test_chosen_bands_reach_the_recall(similarity: float, recall: float) -> None:
    bands, rows = choose_bands(similarity, recall)
    assert bands * rows <= 128
    assert MinHash(similarity, bands, rows).found(similarity) >= recall
    assert bands == 1 or MinHash(similarity, bands - 1, rows).found(similarity) < recall  # no more than needed


def test_the_spec_chooses_or_gives_bands() -> None:
    assert settings_of(MinHashSpec()) == MinHash() == MinHash(0.8, 16, 6, Shingling(5, 20, 5))
    assert settings_of(MinHashSpec(bands=14, rows=8, ngram=3)) == MinHash(0.8, 14, 8, Shingling(3, 20, 5))
    assert MinHash(0.8, 14, 8).found(0.8) == pytest.approx(0.924, abs=1e-3)  # as datatrove states
    assert [where for where, _ in MinHashSpec(bands=3).problems()] == ["bands"]
    assert [where for where, _ in MinHashSpec(ngram=6, short_words=5).problems()] == ["shortWords"]
    with pytest.raises(ValueError, match="more than 128"):
        choose_bands(0.01, 0.99)


def test_hashes_are_the_same_on_every_machine() -> None:
    hashes = band_hashes(["The quick brown fox jumps over the lazy dog"], MinHash(0.8, 13, 7, Shingling(5, 5, 5)))
    assert hashes[0, :2].tolist() == [467908565838093048, 7170635875134416801]
