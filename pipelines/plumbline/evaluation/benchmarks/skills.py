"""`skills`: the held-out part of `builtin://skills`, exact match."""

from __future__ import annotations

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.builtin import skills
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks.benchmark import Item, Score, user

COUNT = 400  # what `TaskSpec.limit` promises where it is unset


def load(task: TaskSpec) -> list[Item]:
    """`task.limit` tasks drawn by `task.seed`, the skills taking turns.

    Raises:
        InvalidInput: there are not that many held-out tasks.
    """
    try:
        drawn = list(skills.tasks(task.limit or COUNT, split="heldout", seed=task.seed))
    except ValueError as error:
        raise InvalidInput(f"task '{task.name}': limit {task.limit} is too high, {error}") from error
    return [Item(t.id, user(t.prompt), t.answer) for t in drawn]


def score(reply: str, item: Item) -> Score:
    """1 if the reply is the answer up to white space. An empty reply is unparseable."""
    return Score(float(skills.is_correct(reply, item.reference)), " ".join(reply.split()) or None)
