"""BLEU (Papineni et al. 2002) by sacreBLEU (Post 2018, arXiv 1804.08771)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sacrebleu.metrics.bleu import BLEU

Tokenizer = Literal["13a", "zh", "char", "intl"]


@dataclass(frozen=True)
class Bleu:
    """A score of a corpus.

    Attributes:
        value: in [0, 1].
        signature: sacreBLEU's, which says how it was computed; only scores of equal signatures compare.
    """

    value: float
    signature: str


def corpus_bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], tokenizer: Tokenizer = "13a") -> Bleu:
    """BLEU of a corpus, which is no mean over its texts.

    Args:
        candidates: texts.
        references: of each text, one or more.
        tokenizer: `13a` of WMT; `zh` for Chinese, `char` for scripts without spaces, `intl` for mixed ones.

    Raises:
        ValueError: there is no text, a text has no reference, or the lists differ in length.
    """
    if not candidates or len(candidates) != len(references) or not all(references):
        raise ValueError(f"each of {len(candidates)} texts needs references; {len(references)} lists are given")
    metric = BLEU(tokenize=tokenizer)
    most = max(len(some) for some in references)
    # sacreBLEU wants one list per reference, as long as the texts; None where a text has fewer.
    columns: Any = [[some[i] if i < len(some) else None for some in references] for i in range(most)]
    score = metric.corpus_score(list(candidates), columns)
    return Bleu(score.score / 100, str(metric.get_signature()))


def sentence_bleu(candidate: str, references: Sequence[str], tokenizer: Tokenizer = "13a") -> float:
    """BLEU of one text in [0, 1], smoothed exponentially: short texts have no common 4-grams.

    Raises:
        ValueError: there is no reference.
    """
    if not references:
        raise ValueError("a text needs at least one reference")
    return float(BLEU(tokenize=tokenizer, effective_order=True).sentence_score(candidate, list(references)).score) / 100
