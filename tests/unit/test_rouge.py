"""ROUGE-L above a threshold, pruned, against the definition."""

from __future__ import annotations

import gzip
import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.data.rouge import RougePool, tokens_of


def rouge_l(one: list[str], other: list[str]) -> Fraction:
    """F of ROUGE-L by the textbook table."""
    if not one or not other:
        return Fraction(0)
    row = [0] * (len(other) + 1)
    for a in one:
        above = row[:]
        for j, b in enumerate(other):
            row[j + 1] = above[j] + 1 if a == b else max(above[j + 1], row[j])
    return Fraction(2 * row[-1], len(one) + len(other))


def brute_force(text: str, pool: list[str], threshold: str) -> tuple[int, float] | None:
    scores = [rouge_l(tokens_of(text), tokens_of(other)) for other in pool]
    best = max(scores, default=Fraction(0))
    return (scores.index(best), float(best)) if best > Fraction(threshold) and best else None


TEXTS = st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g"]), max_size=12).map(" ".join), max_size=25)


@given(texts=TEXTS, threshold=st.sampled_from(["0", "0.3", "0.5", "0.7", "0.95", "1.0"]))
@settings(max_examples=300, deadline=None)
def test_the_closest_text_is_that_of_brute_force(texts: list[str], threshold: str) -> None:
    pool = RougePool(float(threshold))
    for i, text in enumerate(texts):
        assert pool.closest(text) == brute_force(text, texts[:i], threshold)
        pool.add(text)


def test_real_instructions_with_edits_are_admitted_as_by_brute_force(shared: Path) -> None:
    with gzip.open(shared / "alpaca" / "alpaca_data_shared.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["instruction"] for line, _ in zip(lines, range(150), strict=False)]
    edited = [" ".join(word for k, word in enumerate(t.split()) if k % (3 + i % 9)) for i, t in enumerate(texts)]
    pool, plain = RougePool(), list[str]()
    refused = 0
    for text in [*texts, *edited]:
        expected = brute_force(text, plain, "0.7")
        assert pool.admit(text) == expected
        if expected is None:
            plain.append(text)
        refused += expected is not None
    assert 50 < refused < len(edited)
    assert len(pool) == len(plain)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Don't STOP: 3.5 e-mails_now!", ["don", "t", "stop", "3", "5", "e", "mails", "now"]),
        ("写一首诗, please", ["写", "一", "首", "诗", "please"]),
        ("Où est le café?", ["où", "est", "le", "café"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("?!", []),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    assert tokens_of(text) == tokens


def test_exactly_the_threshold_is_not_above_it() -> None:
    pool = RougePool(0.7)
    pool.add("a b c d e f g h i j")
    assert pool.closest("a b c d e f g x y z") is None  # F = 14/20
    assert pool.closest("a b c d e f g h y z") == (0, 0.8)


def test_thresholds_of_many_digits_and_long_texts() -> None:
    words = [f"w{i}" for i in range(3000)]
    pool = RougePool(0.7000000000000001)
    pool.add(" ".join(words[:2000]))
    assert pool.closest(" ".join(words[600:2600])) is None  # F = 1400/2000 = 0.7
    assert pool.closest(" ".join(words[599:2599])) == (0, 0.7005)


def test_chinese_is_compared_by_characters() -> None:
    pool = RougePool()
    pool.add("请写一首关于春天的诗")
    assert pool.closest("请写一首关于秋天的诗") == (0, 0.9)
    assert pool.closest("今天股票市场怎么样") is None
