"""Preference pairs in the fields of TRL, LLaMA-Factory and Stack Exchange.

- `prompt`, `chosen`, `rejected`: each a string or a list of messages; answers may repeat the prompt (UltraFeedback);
- `conversations` and `chosen`/`rejected` as one `{from, value}` turn each (LLaMA-Factory);
- `chosen` and `rejected`, or `chosen_messages` and `rejected_messages`, as whole chats: what both share is the prompt;
- `question`, `response_j` (the better one), `response_k` (Stack Exchange).
"""

from __future__ import annotations

from typing import Any

from plumbline.data.chat import Turns, build_chat, said_by, turns_of
from plumbline.data.row import Reject, Row

FIELDS = (
    "chosen, rejected, optional prompt or conversations; or chosen_messages, rejected_messages; or response_j, response_k"
)

_SPELLINGS = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"), ("response_j", "response_k"))


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has a better and a worse answer."""
    return any(better in record and worse in record for better, worse in _SPELLINGS)


def convert(record: dict[str, Any]) -> Row:
    """The pair as three lists of messages: `prompt` (up to a user turn), `chosen` and `rejected` (one answer each).

    Raises:
        Reject: an empty prompt or answer, equal answers, an unknown role, roles that do not alternate.
    """
    better, worse = next((names for names in _SPELLINGS if names[0] in record), _SPELLINGS[0])
    prompt = _prompt(record)
    return pair(*(_whole(prompt, record.get(name), name) for name in (better, worse)))


def pair(chosen: Turns, rejected: Turns) -> Row:
    """The row of two whole chats that differ in the last answer.

    Raises:
        Reject: they are equal, differ earlier, or one is no chat.
    """
    good, bad = build_chat(chosen), build_chat(rejected)
    if good == bad:
        raise Reject("chosen equals rejected")
    if good[:-1] != bad[:-1]:
        raise Reject("prompts differ", "chosen and rejected do not share all turns before the answer")
    return Row({"prompt": good[:-1], "chosen": good[-1:], "rejected": bad[-1:]})


def _prompt(record: dict[str, Any]) -> Turns:
    """Turns before the answers; none where the answers hold the whole chat."""
    question = record.get("prompt", record.get("question"))
    if "conversations" in record:
        turns = turns_of(record["conversations"])
    elif question is not None:
        turns = said_by("user", question)
    else:
        return []
    if record.get("system"):
        turns.insert(0, ("system", record["system"]))
    return turns


def _whole(prompt: Turns, answer: Any, field: str) -> Turns:
    """The chat that ends with this answer."""
    if answer is None:
        raise Reject("missing field", field)
    turns = said_by("assistant", answer)
    if not prompt and len(turns) == 1:
        raise Reject("empty prompt", "there is no prompt, and the answers hold none")
    return turns if turns[: len(prompt)] == prompt else [*prompt, *turns]
