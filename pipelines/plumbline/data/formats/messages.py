"""The conversational form of OpenAI and TRL: `messages` of `role`/`content` turns. Our own artifacts are written in it."""

from __future__ import annotations

from typing import Any

from plumbline.data.chat import chat_row, looks_like_turns, turns_of
from plumbline.data.row import Row

FIELDS = "messages [{role, content}]"


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has messages."""
    return looks_like_turns(record.get("messages"), "role")


def convert(record: dict[str, Any]) -> Row:
    """The messages as a chat; see `build_chat` for what is repaired and what is rejected. Weights of turns are ignored.

    Raises:
        Reject: tool turns and other unknown roles, an empty turn, roles that do not alternate, no answer.
    """
    return chat_row(turns_of(record.get("messages")))
