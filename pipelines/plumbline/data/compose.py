"""Which of the good rows make up the dataset: ratings, selection and the mix. Each drops candidates and tells the data card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from plumbline.api.curation.mixing import MixSpec
from plumbline.api.curation.selection import SelectSpec, TaggerSpec
from plumbline.data.candidates import Candidates
from plumbline.data.mixing import Mixture, mix
from plumbline.data.refine import Measure
from plumbline.data.row import Row
from plumbline.data.scoring import count_tokens
from plumbline.data.selection import Facts, choose, difficulty
from plumbline.data.selection.comparison import compare
from plumbline.data.selection.tagger import tags_of_categories

SAMPLE_ROWS = 2000
"""Rows whose tokens the data card counts."""
NOT_SELECTED, NOT_MIXED = "not selected", "not in the mix"

Tag = Callable[[Sequence[Row], TaggerSpec], np.ndarray]
"""Rows → (n,) array of tuples of tags."""


@dataclass(frozen=True)
class Selected:
    """What selection leaves for mixing.

    Attributes:
        card: for the data card.
        difficulty: by number of candidate, NaN where it was not measured; None where the method measures none.
    """

    card: dict[str, Any]
    difficulty: np.ndarray | None = None


def select(
    candidates: Candidates,
    spec: SelectSpec,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    measure: Measure | None,
    tag: Tag,
) -> Selected:
    """Keep a budget of rows.

    Args:
        candidates: the rows.
        spec: the block of the stage.
        tokenizer: the run's, with its chat template.
        seed: of random choices.
        measure: what models say of rows, for methods that ask some.
        tag: asks for tags.
    """
    kept = candidates.kept()
    tokens, answer_tokens = tokens_of(candidates, kept, tokenizer)
    measured: dict[str, np.ndarray] = {}
    if measure is not None:
        parts = list(measure(_chunks(candidates, kept)))
        measured = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    elif spec.tags is not None and spec.tags.tagger is not None:
        measured["tags"] = np.concatenate([tag(rows, spec.tags.tagger) for rows in _chunks(candidates, kept)])
    elif spec.tags is not None:
        measured["tags"] = tags_of_categories(candidates.take(kept, ["category"])["category"].to_pylist())
    facts = Facts(tokens, answer_tokens, measured)
    choice = choose(spec, facts, seed)
    for reason, rows in choice.refused.items():
        candidates.drop(kept[rows], reason)
    candidates.drop(np.delete(kept, choice.taken), NOT_SELECTED)
    hard = None
    if spec.tells_difficulty:
        hard = np.full(len(candidates), np.nan)
        hard[kept] = difficulty(spec, facts)
    return Selected({"method": spec.method, "comparison": compare(spec, choice, tokens, answer_tokens, seed)}, hard)


def mixed(
    candidates: Candidates,
    spec: MixSpec,
    origin_of: np.ndarray,
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    hard: np.ndarray | None,
    where: str,
) -> Mixture:
    """The rows of the dataset in their order, by number of candidate; the others are dropped.

    Args:
        candidates: with the fact `programming`.
        spec: the block of the stage.
        origin_of: (parts,) ordinal of each part's source.
        names: of the sources.
        tokenizer: the run's.
        seed: of the draw.
        hard: difficulty by number of candidate, for the order `easiest`.
        where: field path of the block, for messages.

    Raises:
        InvalidInput: the shares cannot be met; with what is possible.
    """
    kept = candidates.kept()
    needs_tokens = spec.unit == "tokens" or spec.order == "shortest"
    tokens = tokens_of(candidates, kept, tokenizer)[0] if needs_tokens else np.ones(len(kept), np.int64)
    found = mix(
        origin_of[candidates.fact("part")[kept]],
        candidates.fact("programming")[kept],
        tokens,
        spec,
        names,
        seed,
        None if hard is None else hard[kept],
        where,
    )
    rows, card = kept[found.rows], found.card
    candidates.drop(np.setdiff1d(kept, rows), NOT_MIXED)
    if not needs_tokens:  # nobody counted them
        lines = (card, card["programming"], *card["sources"])
        for line in lines:
            del line["tokens"]
    return Mixture(rows, card)


def tokens_of(candidates: Candidates, rows: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of rows, and of their answers: (m,) and (m,) int64."""
    counts = [count_tokens(chunk, tokenizer) for chunk in _chunks(candidates, rows)]
    if not counts:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([one for one, _ in counts]), np.concatenate([answers for _, answers in counts])


def token_card(candidates: Candidates, tokenizer: PreTrainedTokenizerBase, seed: int) -> dict[str, Any]:
    """Tokens in a row, from a sample of the rows that stay: mean, and a histogram by powers of two."""
    kept = candidates.kept()
    sample = np.sort(np.random.default_rng(seed).choice(kept, min(SAMPLE_ROWS, len(kept)), replace=False))
    tokens, answers = tokens_of(candidates, sample, tokenizer)
    bits = np.bincount([int(count).bit_length() for count in tokens])
    filled = np.flatnonzero(bits)
    return {
        "sampled": len(sample),
        "mean": round(float(tokens.mean()), 1),
        "answerMean": round(float(answers.mean()), 1),
        "total": round(float(tokens.mean()) * len(kept)),
        "histogram": [{"below": 2**n, "rows": int(bits[n])} for n in range(filled[0], filled[-1] + 1)],
    }


def _chunks(candidates: Candidates, numbers: np.ndarray) -> Iterator[list[Row]]:
    return (rows for _, rows in candidates.chunks(numbers))
