"""What a method is: a generator that yields rounds of requests and is sent their replies. Pure: it never sees the network.

A round is decided before its first reply is there, and replies come in the order of requests, so what a method makes depends on
the replies alone: not on which came first, on how many were in flight, or on how often the job was killed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from plumbline.data.normalise import clean
from plumbline.data.row import Chat, Reject
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.judges.rating import read_rating


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn; fields are named as in OpenAI's API."""

    temperature: float
    max_tokens: int
    seed: int
    top_p: float = 1.0
    presence_penalty: float = 0.0


@dataclass(frozen=True)
class Request:
    """One call.

    Attributes:
        messages: the chat so far.
        sampling: how to draw the reply.
        judge: ask the judge, not the teacher.
    """

    messages: Chat
    sampling: Sampling
    judge: bool = False

    @property
    def seed(self) -> int:
        """The seed that is sent: the sampling's, mixed with the messages. With one seed for all prompts a model that hardly heeds them
        would give the same answer to each."""
        return seed_of(self.sampling.seed, *(f"{turn['role']}: {turn['content']}" for turn in self.messages))


SPENT = "token budget spent"
"""The problem of a reply that was never asked for."""
Program = Generator[list[Request], list[Reply], None]


def ask(prompt: str, sampling: Sampling, system: str | None = None, judge: bool = False) -> Request:
    """A request of one user turn."""
    head: Chat = [{"role": "system", "content": system}] if system else []
    return Request([*head, {"role": "user", "content": prompt}], sampling, judge)


def drive(program: Program, answer: Callable[[Sequence[Request]], list[Reply]]) -> None:
    """Run a program to its end, or until the budget has no room for a whole round.

    Args:
        program: the method at work.
        answer: requests → one reply each.
    """
    spent = False
    try:
        requests = next(program)
        while not (spent and requests):
            replies = answer(requests)
            spent = all(reply.problem == SPENT for reply in replies) and (spent or bool(replies))
            requests = program.send(replies)
    except StopIteration:
        return
    program.close()


def text_of(reply: Reply, whole: bool = True) -> str:
    """The text of a reply, cleaned.

    Args:
        reply: of a teacher.
        whole: whether one that was cut off is rejected.

    Raises:
        Reject: there is none: the call brought nothing, or the reply is empty, cut off or withheld.
    """
    if reply.problem is not None:
        raise Reject(reply.problem, reply.text)
    if reply.finish_reason == "content_filter":
        raise Reject("withheld by the teacher's content filter", reply.text)
    text = clean(reply.text)
    if whole and reply.finish_reason == "length":
        raise Reject("truncated reply", text[-200:])
    if not text:
        raise Reject("empty reply")
    return text


def rating_of(reply: Reply) -> float:
    """The rating that a judge's reply closes with.

    Raises:
        Reject: there is no reply, or it has no rating that can be read, such as one that was cut off.
    """
    try:
        verdict = text_of(reply, whole=False)
    except Reject as reject:
        raise Reject(f"not judged: {reject.reason}", reject.detail) from None
    rating = None if reply.finish_reason == "length" else read_rating(verdict)
    if rating is None:
        raise Reject("unreadable verdict", f"…{verdict[-80:]}")
    return rating


def seed_of(*parts: object) -> int:
    """A seed in [0, 2³¹) that follows from its place: the same in every attempt."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4]) >> 1


def random_of(*parts: object) -> random.Random:
    """A random stream of a place's own; Python's generator gives the same numbers on every platform."""
    return random.Random(seed_of(*parts))
