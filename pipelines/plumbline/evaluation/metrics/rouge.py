"""ROUGE-L of two texts (Lin 2004)."""

from __future__ import annotations

from functools import cache
from typing import Any

from rapidfuzz.distance import LCSseq

from plumbline.data.rouge import tokens_of


def rouge_l(candidate: str, reference: str) -> float:
    """F of the longest common subsequence of stemmed tokens, 2·LCS/(m + n), in [0, 1]; 0 where a text has no token.

    On ASCII this equals `rougeL` of Google's `rouge_score` 0.1.2 with its stemmer, which Super-NaturalInstructions is scored by. That one
    drops all other letters; here they count, a character each where words are not spaced.
    """
    one, other = stems(candidate), stems(reference)
    return 2 * LCSseq.similarity(one, other) / (len(one) + len(other)) if one and other else 0.0


def stems(text: str) -> list[str]:
    """Lower-case tokens of a text, English ones of more than three letters stemmed (Porter)."""
    return [_stem(token) if len(token) > 3 and token.isascii() else token for token in tokens_of(text)]


@cache
def _stem(token: str) -> str:
    return str(_porter().stem(token))


@cache
def _porter() -> Any:
    # It takes a second to import, and few tasks need it.
    from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]

    return PorterStemmer()
