"""ShareGPT and FastChat: `conversations` of `from`/`value` turns, optional `system`."""

from __future__ import annotations

from typing import Any

from plumbline.data.chat import Content, build_chat, looks_like_turns, turns_of

FIELDS = "conversations [{from, value}], optional system"


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has conversations in either spelling of turns."""
    turns = record.get("conversations")
    return looks_like_turns(turns, "from") or looks_like_turns(turns, "role")


def convert(record: dict[str, Any]) -> Content:
    """The conversation as a chat; see `build_chat` for what is repaired and what is rejected.

    Raises:
        Reject: tool turns and other unknown roles, an empty turn, roles that do not alternate, no answer.
    """
    turns = turns_of(record.get("conversations"))
    if record.get("system"):
        turns.insert(0, ("system", record["system"]))
    return {"messages": build_chat(turns)}
