"""What a judge is asked, as plain values, and what becomes of replies without a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from plumbline.data.row import Message
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.judges.pairwise import Verdict
from plumbline.evaluation.judges.styles.style import Style

SEEDS = 2**31
CUT, UNREADABLE, FAILED, MISSING = "cut off", "unreadable", "failed", "not asked"
"""Why a reply has no verdict; besides, any finish reason of an endpoint, such as `context_length_exceeded`."""
AGAIN = (CUT, UNREADABLE, FAILED)
"""What another try may mend."""

Replies = Mapping[str, Reply]
"""By `Call.key`."""


@dataclass(frozen=True)
class Call:
    """One question to a judge.

    Attributes:
        key: tells it from all others of its list.
        messages: the chat.
        seed: of the sampling. Equal for equal chats of one sample, so that a journal can answer them.
        compares: it asks for a verdict on two answers; else for a grade.
    """

    key: str
    messages: list[Message]
    seed: int
    compares: bool


def read_verdict(style: Style, reply: Reply | None) -> tuple[Verdict | None, str]:
    """The verdict of a reply, told of the places, or None and why there is none."""
    if reply is None:
        return None, MISSING
    if reply.problem is not None:
        return None, FAILED
    cut = reply.finish_reason == "length"
    verdict = None if cut and not style.opens else style.read(reply.text)
    return verdict, "" if verdict is not None else _why(reply)


def read_grade(style: Style, reply: Reply | None) -> tuple[float | None, str]:
    """The grade of a reply on the style's scale, or None and why there is none.

    Raises:
        ValueError: the style only compares.
    """
    if style.grading is None:
        raise ValueError("judges of this style only compare")
    if reply is None:
        return None, MISSING
    if reply.problem is not None:
        return None, FAILED
    grade = None if reply.finish_reason == "length" else style.grading.read(reply.text)
    return grade, "" if grade is not None else _why(reply)


def again(style: Style, calls: Sequence[Call], replies: Replies, attempt: int) -> list[Call]:
    """The calls whose replies have no verdict but might have one the next time, with other seeds. Ask them at a temperature above 0.

    Args:
        attempt: 1 for the second try of all, and so on.
    """
    found = []
    for call in calls:
        reply = replies.get(call.key)
        _, why = read_verdict(style, reply) if call.compares else read_grade(style, reply)
        if why in AGAIN:
            found.append(replace(call, seed=(call.seed + 1_000_003 * attempt) % SEEDS))
    return found


def _why(reply: Reply) -> str:
    if reply.finish_reason == "length":
        return CUT
    return UNREADABLE if reply.finish_reason == "stop" else reply.finish_reason
