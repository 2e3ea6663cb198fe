"""Rows by what they are worth: a classifier trained in the stage, and a judge. Both look at what deduplication left, since both cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from plumbline.api.curation.filters import FiltersSpec, TextbookSpec
from plumbline.data.candidates import Candidates
from plumbline.data.filters.judge import Answer, filter_by_rating, label
from plumbline.data.filters.textbook import TextbookModel, filter_textbook, text_of, train
from plumbline.data.row import Reject, Row
from plumbline.errors import InvalidInput

Examples = tuple[Iterable[Row], Iterable[Row]]
"""Rows that are worth keeping, and rows that are not."""


def appraise(
    candidates: Candidates,
    spec: FiltersSpec,
    examples: Examples | None,
    answer: Answer | None,
    where: str,
    say: Callable[[str], None],
    step: Callable[[int, int], None],
) -> dict[str, Any]:
    """Drop rows of little educational value, then rows that the judge rates low.

    Args:
        candidates: the rows.
        spec: the `filters` block.
        examples: for the classifier, where the spec names some.
        answer: asks the judge, where there is one.
        where: field path of the block, for messages.
        say: what is done now.
        step: how many rows of how many are done.

    Returns:
        For the data card: what the classifier was trained on and how well it tells.

    Raises:
        InvalidInput: the classifier cannot be trained well enough, or the judge refuses us.
    """
    card: dict[str, Any] = {}
    if spec.textbook is not None:
        say("training the textbook classifier")
        model, unrated = _classifier(candidates, spec, spec.textbook, examples, answer, f"{where}.textbook")
        negative, positive = model.examples
        card["textbook"] = {"accuracy": round(model.accuracy, 4), "negative": negative, "positive": positive} | unrated
        textbook = spec.textbook
        say("judging rows by the textbook classifier")
        _apply(candidates, "filters.textbook", lambda rows: filter_textbook(rows, textbook, model), step)
    if spec.rating is not None and spec.judge is not None and answer is not None:
        rating, judge, ask = spec.rating, spec.judge, answer
        say(f"{judge.model} rates rows")
        _apply(candidates, "filters.rating", lambda rows: filter_by_rating(rows, rating, judge, ask), step)
    return card


def _classifier(
    candidates: Candidates,
    spec: FiltersSpec,
    block: TextbookSpec,
    examples: Examples | None,
    answer: Answer | None,
    where: str,
) -> tuple[TextbookModel, Counter[str]]:
    """The classifier, and why rows that were to be examples are none."""
    unrated: Counter[str] = Counter()
    if examples is not None:
        labelled = [(row, good) for rows, good in zip(examples, (True, False), strict=True) for row in rows]
    else:
        assert block.annotate is not None and spec.judge is not None and answer is not None, "the contract asks for them"  # noqa: PT018
        kept = candidates.kept()
        count = min(block.annotate.rows, len(kept))
        sample = np.sort(np.random.default_rng(block.seed).choice(kept, count, replace=False))
        labelled, unrated = label(candidates.rows(sample), block.annotate, spec.judge, answer)
    try:
        return train([text_of(row) for row, _ in labelled], [good for _, good in labelled], block, where), unrated
    except InvalidInput as error:
        if not unrated:
            raise
        causes = ", ".join(f"{count} {reason}" for reason, count in unrated.most_common(3))
        raise InvalidInput(f"{error}; of the rows that the judge was asked about, {causes}") from error


def _apply(
    candidates: Candidates, by: str, judge: Callable[[Sequence[Row]], list[Row | Reject]], step: Callable[[int, int], None]
) -> None:
    """Drop what a filter of many rows rejects, and keep the scores that it gives."""
    kept, done = candidates.kept(), 0
    for numbers, rows in candidates.chunks(kept):
        verdicts = judge(rows)
        done += len(rows)
        step(done, len(kept))
        dropped: dict[str, list[int]] = {}
        for number, verdict in zip(numbers.tolist(), verdicts, strict=True):
            if isinstance(verdict, Reject):
                dropped.setdefault(verdict.reason, []).append(number)
        for reason, which in dropped.items():
            candidates.drop(np.array(which), reason, by)
        scored = [
            (n, v.score)
            for n, v in zip(numbers.tolist(), verdicts, strict=True)
            if isinstance(v, Row) and v.score is not None
        ]
        if scored:
            candidates.set_fact("score", np.array([n for n, _ in scored]), np.array([s for _, s in scored]))
