"""Which of the good rows make up the dataset: ratings, selection and the mix. Each drops candidates and tells the data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plumbline.api.curation.mixing import MixSpec
from plumbline.api.curation.selection import SelectSpec, TaggerSpec
from plumbline.data.candidates import Candidates
from plumbline.data.card import most_frequent
from plumbline.data.measured import Measure, Progress, gather
from plumbline.data.mixing import Mixture, mix
from plumbline.data.row import Row
from plumbline.data.scoring import count_tokens
from plumbline.data.selection import Facts, choose, difficulty
from plumbline.data.selection.comparison import compare
from plumbline.data.selection.tagger import tags_of_categories

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE_ROWS = 2000
"""Rows whose tokens the data card counts."""
NOT_SELECTED, NOT_MIXED = "not selected", "not in the mix"

Tag = Callable[[Sequence[Row], TaggerSpec], tuple[np.ndarray, Counter[str]]]
"""Rows → (n,) array of tuples of tags; reason → how many have none for it."""


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
    scratch: Path,
    progress: Progress,
) -> Selected:
    """Keep a budget of rows. In memory are some numbers of each row, not what is large, such as embeddings.

    Args:
        candidates: the rows.
        spec: the block of the stage.
        tokenizer: the run's, with its chat template.
        seed: of random choices.
        measure: what models say of rows, for methods that ask some.
        tag: asks for tags.
        scratch: local folder for what is large.
        progress: told how many rows are measured, of how many.
    """
    kept = candidates.kept()
    tokens, answer_tokens = tokens_of(candidates, kept, tokenizer)
    card: dict[str, Any] = {"method": spec.method}
    measured: dict[str, np.ndarray] = {}
    if measure is not None:
        measured = gather(measure(_chunks(candidates, kept)), len(kept), scratch, progress)
    elif spec.tags is not None:
        untagged: Counter[str] = Counter()
        measured = gather(_tags(candidates, kept, spec.tags.tagger, tag, untagged), len(kept), scratch, progress)
        card["tags"] = tag_card(measured["tags"], untagged)
    facts = Facts(tokens, answer_tokens, measured)
    choice = choose(spec, facts, seed)
    for reason, rows in choice.refused.items():
        candidates.drop(kept[rows], reason, f"select.{spec.method}")
    candidates.drop(np.delete(kept, choice.taken), NOT_SELECTED, f"select.{spec.budget}")
    hard = None
    if spec.tells_difficulty:
        hard = np.full(len(candidates), np.nan)
        hard[kept] = difficulty(spec, facts)
    return Selected(card | {"comparison": compare(spec, choice, tokens, answer_tokens, seed)}, hard)


def _tags(
    candidates: Candidates, rows: np.ndarray, tagger: TaggerSpec | None, tag: Tag, untagged: Counter[str]
) -> Iterator[dict[str, np.ndarray]]:
    """Chunks of `tags`; why rows have none is counted."""
    for numbers, chunk in candidates.chunks(rows):
        if tagger is None:
            yield {"tags": tags_of_categories(candidates.take(numbers, ["category"])["category"].to_pylist())}
            continue
        tags, problems = tag(chunk, tagger)
        untagged.update(problems)
        yield {"tags": tags}


def tag_card(tags: np.ndarray, untagged: Counter[str]) -> dict[str, Any]:
    """Of the tags: how many there are, how many a row has, the most frequent with their rows, and why rows have none."""
    counts = Counter(tag for of_row in tags for tag in of_row)
    return {
        "distinct": len(counts),
        "meanOfRow": round(counts.total() / max(1, len(tags)), 2),
        "rows": most_frequent(counts),
        "unread": most_frequent(untagged),
    }


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
    candidates.drop(np.setdiff1d(kept, rows), NOT_MIXED, "mix")
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


def token_card(candidates: Candidates, rows: np.ndarray, tokenizer: PreTrainedTokenizerBase, seed: int) -> dict[str, Any]:
    """Tokens in a row, from a sample of the dataset's rows: mean, and a histogram by powers of two."""
    sample = np.sort(np.random.default_rng(seed).choice(rows, min(SAMPLE_ROWS, len(rows)), replace=False))
    tokens, answers = tokens_of(candidates, sample, tokenizer)
    bits = np.bincount([int(count).bit_length() for count in tokens])
    filled = np.flatnonzero(bits)
    return {
        "sampled": len(sample),
        "mean": round(float(tokens.mean()), 1),
        "answerMean": round(float(answers.mean()), 1),
        "total": round(float(tokens.mean()) * len(rows)),
        "histogram": [{"below": 2**n, "rows": int(bits[n])} for n in range(filled[0], filled[-1] + 1)],
    }


def _chunks(candidates: Candidates, numbers: np.ndarray) -> Iterator[list[Row]]:
    return (rows for _, rows in candidates.chunks(numbers))
