"""What a benchmark is: items to ask, and a score for each reply."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.data.row import Message


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
        choices: continuations of which the likeliest is the answer. With them nothing is written: the prompt is one user turn, taken as plain
            text without a chat template, and the reply holds the log-likelihood of each (`likelihoods`).
        turns: user turns that follow, each after the reply to the one before.
        references: of what a judge scores, a good answer to each turn, or none; else all texts that are right, where there are several.
        rubrics: what a judge grades apart, each completing the sentence "Rate …", by name; without any it grades the whole.
        groups: what the item belongs to, such as `{"subject": "anatomy"}`; figures are told by group too.
        temperature: of its replies, where the benchmark says.
        stop: what ends a reply, besides its own end.
        number: its place in the file, from 0, where one asks for that.
        cluster: items that are not independent, such as those of one task, have the same; empty: the item stands alone.
    """

    id: str
    prompt: list[Message]
    reference: str
    texts: tuple[str, ...] = ()
    code: str = ""
    choices: tuple[str, ...] = ()
    turns: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    rubrics: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    temperature: float | None = None
    cluster: str = ""
    stop: tuple[str, ...] = ()
    number: int | None = None


@dataclass(frozen=True)
class Score:
    """What a reply is worth.

    Attributes:
        value: in [0, 1]; 0 when nothing could be extracted.
        extracted: the answer that was found in the reply, None when it has none (unparseable).
        variants: the same reply by other rules, such as `strict`, in [0, 1]. A rule may leave items out.
        longer: of a comparison, by how many characters the answer is longer than the other.
    """

    value: float
    extracted: str | None
    variants: Mapping[str, float] = field(default_factory=dict)
    longer: int = 0


class Source(Protocol):
    """Whatever has questions."""

    def load(self, task: TaskSpec) -> list[Item]:
        """The items to ask; the same for the same files and spec.

        Raises:
            InvalidInput: with file and line of what cannot be read.
        """
        ...


class Benchmark(Source, Protocol):
    """A module with these two pure functions."""

    def score(self, reply: str, item: Item) -> Score:
        """Score one reply: the last one where the item has turns."""
        ...


def likelihoods(reply: str) -> list[float]:
    """The natural log-likelihood of each of an item's choices, in order."""
    return [float(value) for value in json.loads(reply)]


def user(text: str) -> list[Message]:
    """A chat of one user turn."""
    return [{"role": "user", "content": text}]


def select(items: list[Item], task: TaskSpec) -> list[Item]:
    """The first `task.limit` items after a shuffle seeded by `task.seed`; all of them without a limit."""
    shuffled = list(items)
    random.Random(task.seed).shuffle(shuffled)
    return shuffled[: task.limit]
