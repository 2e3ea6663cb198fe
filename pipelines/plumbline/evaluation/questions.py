"""Whom a task's items are asked, and with whose answers a pairwise task compares. Pure but for reading files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks import QUESTIONS
from plumbline.evaluation.benchmarks.benchmark import Item
from plumbline.evaluation.benchmarks.open_questions import stored_answers
from plumbline.evaluation.judges.length_controlled import difficulties_of

STORED = "stored answers"
"""Name of whoever gave the answers of `opponents`; no stage can have it."""


@dataclass(frozen=True)
class Questions:
    """A task's items and whom they are asked.

    Attributes:
        items: of a pairwise task with stored answers only those that have one.
        models: names of those who are asked.
        opponent: of a pairwise task, whom the candidate is compared with.
        stored: the opponent's answers, where they are not asked for.
        remarks: what a reader of the figures must know.
        difficulty: of each item's instruction, by item id, where the length-controlled win rate is asked for.
    """

    items: list[Item]
    models: list[str]
    opponent: str | None = None
    stored: Mapping[str, tuple[str, ...]] | None = None
    remarks: tuple[str, ...] = ()
    difficulty: Mapping[str, float] | None = None

    @classmethod
    def of(cls, task: TaskSpec, models: Sequence[str], where: str) -> Questions:
        """The items of a task's files.

        Args:
            task: what is asked.
            models: names, the candidate first.
            where: field path of the task.

        Raises:
            InvalidInput: a file is not what it should be, or there is nobody to compare with.
        """
        items = QUESTIONS[task.benchmark].load(task)
        candidate, *baselines = models
        difficulty = difficulties_of(task.difficulties, items, f"{where}.difficulties") if task.difficulties else None
        if not task.pairwise:
            return cls(items, list(models))
        if task.opponents is None:
            against = task.against or next(iter(baselines), None)
            if against is None or against not in baselines:
                problem = f"'{against}' is no baseline" if against else "there is nobody to compare with"
                raise InvalidInput(
                    f"{where}.against: {problem}; baselines: {', '.join(baselines) or 'none but the candidate itself'}; "
                    "name another in inputs.baselines, or give stored answers as opponents"
                )
            return cls(items, [candidate, against], against, difficulty=difficulty)
        stored = stored_answers(task.opponents, items, f"{where}.opponents")
        known = [item for item in items if item.id in stored]
        for item in known:
            if len(stored[item.id]) != 1 + len(item.turns):
                raise InvalidInput(
                    f"{where}.opponents: the answer to question {item.id} has {len(stored[item.id])} turns, the question {1 + len(item.turns)}"
                )
        missing = len(items) - len(known)
        remark = (
            (f"{task.name}: {missing} of {len(items)} questions have no stored answer to compare with and are left out",)
            if missing
            else ()
        )
        return cls(known, [candidate], STORED, stored, remark, difficulty)
