"""What every model answers to every item, turn by turn. Pure: who asks is handed in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.data.row import Message
from plumbline.evaluation.benchmarks.benchmark import Item
from plumbline.evaluation.client import TOO_LONG, Question, Sampling
from plumbline.evaluation.journal import Reply

Ask = Callable[[Sequence[Question]], list[Reply]]


@dataclass(frozen=True)
class Asked:
    """An item that a model is asked.

    Attributes:
        model: its name at the endpoint.
        fingerprint: what tells its content from another's.
        sample: which of several replies to the same item, from 0.
    """

    task: TaskSpec
    item: Item
    model: str
    fingerprint: str
    sample: int = 0


def converse(asked: Sequence[Asked], temperature: float, ask: Ask) -> list[tuple[Reply, ...]]:
    """The replies to each, one a turn.

    All first turns are asked together, then all second ones, so that what is asked next does not depend on who answered first. A chat that
    has grown too long gets no further answers: the rest of its replies have finish reason `context_length_exceeded`.

    Args:
        asked: items and models.
        temperature: of the replies where the item says nothing.
        ask: questions → one reply each.
    """
    chats: list[list[Message]] = [list(one.item.prompt) for one in asked]
    replies: list[list[Reply]] = [[] for _ in asked]
    for turn in range(1 + max((len(one.item.turns) for one in asked), default=0)):
        due = [i for i, one in enumerate(asked) if turn <= len(one.item.turns)]
        going = [i for i in due if not replies[i] or replies[i][-1].finish_reason != TOO_LONG]
        found = dict(zip(going, ask([_question(asked[i], chats[i], turn, temperature) for i in going]), strict=True))
        for i in due:
            reply = found.get(i, Reply("", TOO_LONG))
            replies[i].append(reply)
            if turn < len(asked[i].item.turns):
                chats[i] += [
                    {"role": "assistant", "content": reply.text},
                    {"role": "user", "content": asked[i].item.turns[turn]},
                ]
    return [tuple(found) for found in replies]


def item_seed(task: TaskSpec, item: Item, turn: int = 0, sample: int = 0) -> int:
    """The sampling seed of an item: its own, so that items are independent, and the same for every model."""
    part = f":{turn}" if turn else ""
    part += f":sample {sample}" if sample else ""
    digest = hashlib.sha256(f"{task.seed}:{task.name}:{item.id}{part}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _question(one: Asked, chat: list[Message], turn: int, temperature: float) -> Question:
    given = next((own for own in (one.task.temperature, one.item.temperature) if own is not None), temperature)
    sampling = Sampling(given, one.task.max_tokens, item_seed(one.task, one.item, turn, one.sample), one.item.stop)
    return Question(one.model, one.fingerprint, list(chat), sampling, one.item.choices)
