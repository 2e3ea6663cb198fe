"""What a benchmark is: items to ask, and a score for each reply."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from plumbline.api.stages.evaluate import TaskSpec

Message = dict[str, str]


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: stable for given files, unique in its task.
        prompt: chat messages with `role` and `content`.
        reference: the right answer.
        texts: what is the question's own, without instructions, in one or more wordings: whoever has read one of them knows
            the question. Without any, it is the last turn of the prompt.
        code: the program that is asked for, if one is.
    """

    id: str
    prompt: list[Message]
    reference: str
    texts: tuple[str, ...] = ()
    code: str = ""


@dataclass(frozen=True)
class Score:
    """What a reply is worth.

    Attributes:
        value: in [0, 1]; 0 when nothing could be extracted.
        extracted: the answer that was found in the reply, None when it has none (unparseable).
        variants: the same reply by other rules, such as `strict`, in [0, 1].
    """

    value: float
    extracted: str | None
    variants: Mapping[str, float] = field(default_factory=dict)


class Benchmark(Protocol):
    """A module with these two pure functions."""

    def load(self, task: TaskSpec) -> list[Item]:
        """The items to ask; the same for the same files and spec.

        Raises:
            InvalidInput: with file and line of what cannot be read.
        """
        ...

    def score(self, reply: str, item: Item) -> Score:
        """Score one reply."""
        ...


def user(text: str) -> list[Message]:
    """A chat of one user turn."""
    return [{"role": "user", "content": text}]


def select(items: list[Item], task: TaskSpec) -> list[Item]:
    """The first `task.limit` items after a shuffle seeded by `task.seed`; all of them without a limit."""
    shuffled = list(items)
    random.Random(task.seed).shuffle(shuffled)
    return shuffled[: task.limit]
