"""The conversational form of OpenAI and TRL: `messages` of `role`/`content` turns. Our own artifacts are written in it."""

from __future__ import annotations

from typing import Any

from plumbline.data.chat import Content, build_chat, looks_like_turns, turns_of
from plumbline.data.normalise import Reject

FIELDS = "messages [{role, content}]"


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has messages."""
    return looks_like_turns(record.get("messages"), "role")


def convert(record: dict[str, Any]) -> Content:
    """The messages as a chat; see `build_chat` for what is repaired and what is rejected.

    Raises:
        Reject: tool turns and other unknown roles, an empty turn, roles that do not alternate, no answer, and chats that
            the data itself labels as bad (KTO's `label: false`), which no model should be trained to say.
    """
    if record.get("label") is False:
        raise Reject("labelled as bad", "label: false")
    return {"messages": build_chat(turns_of(record.get("messages")))}
