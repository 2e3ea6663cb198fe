"""`haluEval`: does the model see that an answer is made up (HaluEval, Li et al. 2023, arXiv 2305.11747)? Yes or no, of one answer at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.benchmarks.benchmark import Item, Score, select, user
from plumbline.evaluation.benchmarks.choices import likeliest, shares, values_of
from plumbline.evaluation.benchmarks.files import Row, json_rows

EXPECTED = (
    'one JSON object a line as in HaluEval: general {"user_query": "…", "chatgpt_response": "…", "hallucination": "yes" or "no"}, or question '
    'answering {"knowledge": "…", "question": "…", "right_answer": "…", "hallucinated_answer": "…"}, or dialogue (dialogue_history, right_response, '
    "hallucinated_response) or summarization (document, right_summary, hallucinated_summary)"
)
PAIRS = {
    "qa": ("question", "right_answer", "hallucinated_answer"),
    "dialogue": ("dialogue_history", "right_response", "hallucinated_response"),
    "summarization": ("document", "right_summary", "hallucinated_summary"),
}
"""Rows of a right and a hallucinated answer: kind → what is asked and the two."""
CHOICES = ("Yes", "No")
INSTRUCTION = "Does the answer hold statements that are made up: that contradict what is known, cannot be verified, or do not follow from the question?"
WRITTEN = "Reply with Yes or No and nothing else."
_ASKED = {"dialogue": "Dialogue", "summarization": "Document"}
RIGHT, HALLUCINATED = "right", "hallucinated"


def load(task: TaskSpec) -> list[Item]:
    """One item an answer: of a row other than general there are two, the right and the hallucinated one, which are a cluster.

    Raises:
        InvalidInput: a row has none of these forms.
    """
    assert task.uri is not None, "EvaluateSpec.problems asks for it"
    items = []
    for row in json_rows(task.uri, EXPECTED):
        for own, knowledge, question, answer, hallucinated, kind in _answers(row):
            parts = [
                INSTRUCTION,
                *([f"Knowledge: {knowledge}"] if knowledge else []),
                f"{_ASKED.get(kind, 'Question')}: {question}",
                f"Answer: {answer}",
            ]
            # Whoever has read a general query does not know yet what this answer to it is worth.
            texts = (f"{question}\n{answer}",) if kind == "general" else (question,)
            written = task.answers == "written"
            parts.append(WRITTEN if written else "Made up (Yes or No):")
            items.append(
                Item(
                    own,
                    user("\n\n".join(parts)),
                    CHOICES[0] if hallucinated else CHOICES[1],
                    texts,
                    choices=() if written else tuple(f" {choice}" for choice in CHOICES),
                    groups={"kind": kind, "answer": HALLUCINATED if hallucinated else RIGHT},
                    cluster="" if kind == "general" else row.id,
                )
            )
    return _whole_pairs(select(items, task.model_copy(update={"limit": None})), task.limit)


def _whole_pairs(items: Sequence[Item], limit: int | None) -> list[Item]:
    """The first `limit` items, or one more: what belongs to a pair comes with the other, as `pick` needs both."""
    pairs: dict[str, list[Item]] = {}
    for item in items:
        pairs.setdefault(item.cluster or item.id, []).append(item)
    kept: list[Item] = []
    for pair in pairs.values():
        if limit is not None and len(kept) >= limit:
            break
        kept += pair
    return kept


def score(reply: str, item: Item) -> Score:
    """1 if Yes or No is right. Variants: `found` of hallucinated answers, `believed` of right ones, `suspicion` the share of Yes in the
    likelihood of both."""
    values = values_of(reply, len(CHOICES)) if item.choices else None
    weights = None if values is None else shares(values)
    place = None if values is None else likeliest(values)
    said = _written(reply) if not item.choices else None if place is None else CHOICES[place]
    value = float(said == item.reference)
    variants = {"found" if item.reference == CHOICES[0] else "believed": value}
    return Score(value, said, variants | ({"suspicion": weights[0]} if weights is not None else {}))


def figures(items: Sequence[Item], scores: Sequence[Score]) -> dict[str, float]:
    """`balanced`: mean of found and believed, ½ for a model that always says the same, as general data are four fifths right. `pick`: share
    of the rows with both whose hallucinated answer is more suspicious than the right one, ties counting half."""
    found: dict[str, float] = {}
    rates = [[score.variants[name] for score in scores if name in score.variants] for name in ("found", "believed")]
    if all(rates):
        found["balanced"] = sum(sum(rate) / len(rate) for rate in rates) / len(rates)
    pairs: dict[str, dict[str, float]] = {}
    for item, score in zip(items, scores, strict=True):
        if item.cluster and "suspicion" in score.variants:
            pairs.setdefault(item.cluster, {})[item.groups["answer"]] = score.variants["suspicion"]
    whole = [(pair[HALLUCINATED], pair[RIGHT]) for pair in pairs.values() if len(pair) == 2]
    if whole:
        found["pick"] = sum(1.0 if bad > good else 0.5 if bad == good else 0.0 for bad, good in whole) / len(whole)
    return found


def _answers(row: Row) -> Iterator[tuple[str, str, str, str, bool, str]]:
    """Id, knowledge, question, answer, whether it is hallucinated, kind of the row."""
    kind = next((kind for kind, (asked, *_) in PAIRS.items() if asked in row.value), "general")
    names = PAIRS.get(kind, ("user_query", "chatgpt_response", "hallucination"))
    texts = [row.value.get(name) for name in names]
    knowledge = row.value.get("knowledge", "")
    if not all(isinstance(text, str) and text.strip() for text in texts) or not isinstance(knowledge, str):
        raise row.refuse(EXPECTED)
    question, first, second = texts
    if kind == "general":
        if second.strip().lower() not in ("yes", "no"):
            raise row.refuse(EXPECTED)
        yield row.id, knowledge, question, first, second.strip().lower() == "yes", kind
    else:
        yield f"{row.id} {RIGHT}", knowledge, question, first, False, kind
        yield f"{row.id} {HALLUCINATED}", knowledge, question, second, True, kind


def _written(reply: str) -> str | None:
    """Yes or No at the reply's beginning; elsewhere, where only one of them occurs."""
    first = re.match(r"\W*(yes|no)\b", reply, re.IGNORECASE)
    said = [first.group(1)] if first else re.findall(r"\b(yes|no)\b", reply, re.IGNORECASE)
    words = {word.capitalize() for word in said}
    return words.pop() if len(words) == 1 else None
