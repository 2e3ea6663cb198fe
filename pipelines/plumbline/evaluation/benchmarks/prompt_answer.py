"""`promptAnswer`: your own prompts with one right answer each, exact match."""

from __future__ import annotations

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.benchmarks.benchmark import Item, Score, select, user
from plumbline.evaluation.benchmarks.files import json_rows

EXPECTED = 'one JSON object a line: {"prompt": "…", "answer": "…"}'


def load(task: TaskSpec) -> list[Item]:
    """Each prompt is one user turn.

    Raises:
        InvalidInput: a row has not the two fields, or one of them is empty.
    """
    assert task.uri is not None, "EvaluateSpec.problems asks for it"
    items = []
    for row in json_rows(task.uri, EXPECTED):
        prompt, answer = row.value.get("prompt"), row.value.get("answer")
        if not isinstance(prompt, str) or not isinstance(answer, str) or not prompt.strip() or not answer.strip():
            raise row.refuse(EXPECTED)
        items.append(Item(row.id, user(prompt), answer))
    return select(items, task)


def score(reply: str, item: Item) -> Score:
    """1 if the reply is the answer, blind only to surrounding and repeated white space. An empty reply is unparseable."""
    extracted = " ".join(reply.split())
    return Score(float(extracted == " ".join(item.reference.split())), extracted or None)
