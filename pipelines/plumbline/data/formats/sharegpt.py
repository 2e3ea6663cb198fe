"""ShareGPT, FastChat and WizardLM's `V2`: `conversations` of `from`/`value` turns, optional `system`."""

from __future__ import annotations

from typing import Any

from plumbline.data.chat import build_chat, chat_row, looks_like_turns, turns_of
from plumbline.data.html import is_html, to_markdown
from plumbline.data.row import Row

FIELDS = "conversations [{from, value}], optional system"


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has conversations in either spelling of turns."""
    turns = record.get("conversations")
    return looks_like_turns(turns, "from") or looks_like_turns(turns, "role")


def convert(record: dict[str, Any]) -> Row:
    """The conversation as a chat; see `build_chat` for what is repaired and what is rejected.

    Answers that were saved as the web page showed them, in HTML, become Markdown, as FastChat's cleaning does it.

    Raises:
        Reject: tool turns and other unknown roles, an empty turn, roles that do not alternate, no answer.
    """
    turns = turns_of(record.get("conversations"))
    if record.get("system"):
        turns.insert(0, ("system", record["system"]))
    row = chat_row(turns)
    chat = row.content["messages"]
    if not any(turn["role"] == "assistant" and is_html(turn["content"]) for turn in chat):
        return row
    for turn in chat:
        if turn["role"] == "assistant" and is_html(turn["content"]):
            turn["content"] = to_markdown(turn["content"])
    return row.did("html", content={"messages": build_chat((turn["role"], turn["content"]) for turn in chat)})
