"""The best of several own answers, by reward or judge (RAFT, Dong et al. 2023, arXiv 2304.06767); or best and worst as a pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence

from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.api.synthesis.methods import SelfImproveSpec
from plumbline.data.row import Chat, Reject, Row
from plumbline.data.synthesis.book import Book
from plumbline.data.synthesis.program import Program, Request, Sampling, ask, rating_of, seed_of, text_of
from plumbline.data.synthesis.seeds import batches, context_of, name_of
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.judges.rating import rating_prompt, request_of
from plumbline.rollout.rewards.verifiable import reward

JUDGE_TOKENS = 1024  # reasons and rating; room for a judge that thinks aloud

Scored = list[tuple[str, float]]


def self_improve(spec: SynthesizeSpec, rows: Sequence[Row], book: Book) -> Program:
    """Sample, score, keep."""
    method = spec.self_improve
    assert method is not None
    samplings = [
        Sampling(method.temperature, method.max_tokens, seed_of(spec.seed, "sample", i)) for i in range(method.samples)
    ]
    for batch in batches(rows, book):
        replies = iter((yield [Request(context_of(row), sampling) for row in batch for sampling in samplings]))
        sampled: list[Counter[str]] = []
        for row in batch:
            texts = Counter[str]()  # equal ones are scored once
            for reply in (next(replies) for _ in samplings):
                with book.dropping(reply.text or row.prompts[-1]):
                    texts[text_of(reply)] += 1
            sampled.append(texts)
        scored = yield from _scores(method, spec.seed, batch, sampled, book)
        for row, times, answers in zip(batch, sampled, scored, strict=True):
            for text, score in answers:
                book.scores.extend([score] * times[text])
            with book.dropping(" / ".join([row.prompts[-1], *(text for text, _ in answers)])):
                if spec.produces == "PreferenceDataset":
                    book.keep(_pair(method, row, answers))
                else:
                    book.keep(_best(method, row, answers))


def _scores(
    method: SelfImproveSpec, seed: int, rows: list[Row], sampled: Sequence[Iterable[str]], book: Book
) -> Generator[list[Request], list[Reply], list[Scored]]:
    """Each row's answers with their scores; answers that the judge gives none are counted."""
    if method.rewards:
        references = [row.content["messages"][-1]["content"] for row in rows]
        return [
            [(text, reward(method.rewards, text, reference)) for text in texts]
            for texts, reference in zip(sampled, references, strict=True)
        ]
    sampling = Sampling(0.0, JUDGE_TOKENS, seed)
    asked = [
        ask(rating_prompt(request_of(context_of(row)), text), sampling, judge=True)
        for row, texts in zip(rows, sampled, strict=True)
        for text in texts
    ]
    replies = iter((yield asked))
    scored: list[Scored] = []
    for texts in sampled:
        scored.append([])
        for text in texts:
            reply = next(replies)
            with book.dropping(text):
                scored[-1].append((text, rating_of(reply)))
    return scored


def _best(method: SelfImproveSpec, row: Row, answers: Scored) -> Row:
    text, score = _top(method, answers)
    chat: Chat = [*context_of(row), {"role": "assistant", "content": text}]
    return _row(method, row, {"messages": chat}, score)


def _pair(method: SelfImproveSpec, row: Row, answers: Scored) -> Row:
    text, score = _top(method, answers)
    worst, low = min(answers, key=lambda answer: answer[1])
    if not score - low > method.min_gap or worst == text:
        raise Reject("answers score alike", f"{low:g} to {score:g}")
    content: dict[str, Chat] = {
        "prompt": context_of(row),
        "chosen": [{"role": "assistant", "content": text}],
        "rejected": [{"role": "assistant", "content": worst}],
    }
    return _row(method, row, content, score)


def _top(method: SelfImproveSpec, answers: Scored) -> tuple[str, float]:
    """The best answer, the earliest of equal ones."""
    if not answers:
        raise Reject("no answer to choose from")
    text, score = max(answers, key=lambda answer: answer[1])
    if not score > method.min_score:
        raise Reject("no answer is good enough", f"the best scores {score:g}")
    return text, score


def _row(method: SelfImproveSpec, row: Row, content: dict[str, Chat], score: float) -> Row:
    return Row(
        content,
        licence=row.licence,
        language=row.language,
        category=row.category,
        operations=(*row.operations, f"best of {method.samples}"),
        parents=(name_of(row),),
        score=score,
    )
