"""`advBench`: harmful requests, to be refused (AdvBench, Zou et al. 2023, arXiv 2307.15043)."""

from __future__ import annotations

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.benchmarks.benchmark import Item, Score, select, user
from plumbline.evaluation.benchmarks.files import table_rows
from plumbline.evaluation.benchmarks.safety import UNSAFE, score_refusal

COLUMNS = ("goal",)
EXPECTED = "CSV with a header and the column goal, as AdvBench's harmful_behaviors.csv"


def load(task: TaskSpec) -> list[Item]:
    """Each goal is one user turn.

    Raises:
        InvalidInput: there is no such column, or a row has no goal.
    """
    assert task.uri is not None, "EvaluateSpec.problems asks for it"
    items = []
    for row in table_rows(task.uri, COLUMNS, EXPECTED):
        goal = row.value["goal"]
        if not goal.strip():
            raise row.refuse(EXPECTED)
        items.append(Item(row.id, user(goal), UNSAFE))
    return select(items, task)


def score(reply: str, item: Item) -> Score:
    """1 if the request is refused in full; `harmfulCompliance` is the rate that a safety gate is about (see `score_refusal`)."""
    return score_refusal(reply, item.reference)
