"""Rows rated by a judge behind an endpoint (AlpaGasus, Chen et al. 2023, arXiv 2307.08701)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from plumbline.api.curation.filters import AnnotateSpec, JudgeSpec, RatingSpec
from plumbline.api.synthesis.teacher import JUDGE_KEY
from plumbline.data.filters.words import learned
from plumbline.data.row import Reject, Row
from plumbline.data.synthesis.budget import Budget
from plumbline.data.synthesis.calls import Calls
from plumbline.data.synthesis.endpoint import Endpoint, key_of
from plumbline.data.synthesis.pace import Pace
from plumbline.data.synthesis.program import Request, Sampling, ask, rating_of
from plumbline.evaluation.journal import Journal, Reply
from plumbline.evaluation.judges.rating import ACCURACY, EDUCATION, rating_prompt, request_of

Answer = Callable[[Sequence[Request]], list[Reply]]
"""Requests → one reply each."""


@contextmanager
def judge_calls(
    spec: JudgeSpec, journal_uri: str, where: str, on_reply: Callable[[], None] = lambda: None
) -> Iterator[Calls]:
    """Calls to a judge; what the journal knows is not asked again.

    Args:
        spec: which judge.
        journal_uri: folder of paid replies; may be shared by judges and runs.
        where: field path of the block, for messages.
        on_reply: called after each reply.

    Raises:
        InvalidInput: the key is missing, or (on use) the endpoint refuses us for good.
        PlumblineError: (on use) the endpoint does not answer any more; every reply so far is kept.
    """
    key = key_of(spec.key_secret, JUDGE_KEY, where)
    pace = Pace(spec.calls.requests_per_minute, spec.calls.tokens_per_minute)
    endpoint = Endpoint(spec.endpoint, spec.model, where=where, key=key, pace=pace, timeout=spec.calls.timeout_seconds)
    identity = f"{spec.endpoint} {spec.model}"
    with (
        Journal(journal_uri) as journal,
        Calls(
            lambda of_judge: endpoint,
            (identity, identity),
            journal,
            Budget(spec.token_budget),
            spec.calls.concurrency,
            on_reply,
        ) as calls,
    ):
        yield calls


def rate(rows: Sequence[Row], judge: JudgeSpec, answer: Answer, rubric: str = ACCURACY) -> list[float | Reject]:
    """The judge's ratings, 0 to 5, or for a row why there is none.

    Args:
        rows: of any form, each with an answer to imitate; of a preference the better one is rated, of a chat the last one after all
            that comes before.
        judge: how long its verdicts may be.
        answer: asks it.
        rubric: completes "Rate …".
    """
    sampling = Sampling(0.0, judge.max_tokens, seed=0)
    replies = answer([ask(rating_prompt(*_parts(row), rubric), sampling, judge=True) for row in rows])
    return [_rating(reply) for reply in replies]


def filter_by_rating(rows: Sequence[Row], spec: RatingSpec, judge: JudgeSpec, answer: Answer) -> list[Row | Reject]:
    """Rows rated `min_score` or higher, each with its rating as `score`; for the others why they are dropped.

    A row without an answer to imitate (a bad one of KTO) stays as it is, and nothing is asked about it.
    """
    good = [bool(learned(row)) for row in rows]
    ratings = iter(
        rate([row for row, asked in zip(rows, good, strict=True) if asked], judge, answer, spec.rubric or ACCURACY)
    )
    return [_verdict(row, next(ratings), spec) if asked else row for row, asked in zip(rows, good, strict=True)]


def label(
    rows: Sequence[Row], spec: AnnotateSpec, judge: JudgeSpec, answer: Answer
) -> tuple[list[tuple[Row, bool]], Counter[str]]:
    """Rows as examples for the textbook classifier, positive from `good_from` on; and why others have no rating."""
    good = [row for row in rows if learned(row)]
    ratings = rate(good, judge, answer, spec.rubric or EDUCATION)
    rated = [(row, rating >= spec.good_from) for row, rating in zip(good, ratings, strict=True) if isinstance(rating, float)]
    return rated, Counter(rating.reason for rating in ratings if isinstance(rating, Reject))


def _verdict(row: Row, rating: float | Reject, spec: RatingSpec) -> Row | Reject:
    if isinstance(rating, Reject):
        return rating
    return Reject("rated low by the judge", f"{rating:g}") if rating < spec.min_score else replace(row, score=rating)


def _rating(reply: Reply) -> float | Reject:
    try:
        return rating_of(reply)
    except Reject as reject:
        return reject


def _parts(row: Row) -> tuple[str, str]:
    """(request, answer) that are shown to the judge."""
    if "text" in row.content:
        return "", row.content["text"]
    if "messages" in row.content:
        *before, last = row.content["messages"]
        answer = last["content"]
    else:
        before = row.content["prompt"]
        answer = "\n".join(learned(row))
    return request_of(before), answer
