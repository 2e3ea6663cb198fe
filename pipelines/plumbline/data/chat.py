"""Canonical chats: clean turns that alternate and end with an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from plumbline.data.normalise import Reject, clean

ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bard", "bing", "chatgpt"), "assistant"),
}
"""Role names seen in the wild → canonical role."""

EMPTY = {"system": "empty system text", "user": "empty prompt", "assistant": "empty answer"}


class Message(TypedDict):
    """One turn; `role` is system, user or assistant."""

    role: str
    content: str


Chat = list[Message]
Content = dict[str, Chat]
"""What a row holds: `messages`, or `prompt`, `chosen` and `rejected`."""


def text_of(value: Any) -> str:
    """A turn's text: a string, or a list of text parts (`{"type": "text", "text" or "value": …}`), cleaned.

    Raises:
        Reject: it is anything else, such as an image.
    """
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list) and value:
        parts = [part.get("text", part.get("value")) if isinstance(part, dict) else None for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return clean("".join(texts))
    raise Reject("not text", f"{type(value).__name__} where text is expected")


def build_chat(turns: Iterable[tuple[Any, Any]]) -> Chat:
    """Turns (role, text) as a canonical chat.

    Repairs that change nothing that was said: an empty system turn, assistant turns before the first user turn, and user
    turns after the last answer are dropped. Two turns of one role in a row are rejected, not merged: which of
    them was meant cannot be known.

    Raises:
        Reject: an unknown role, an empty turn, a system turn that is not the first, roles that do not alternate, no answer.
    """
    chat: Chat = []
    for name, value in turns:
        role = ROLES.get(name.lower()) if isinstance(name, str) else None
        if role is None:
            raise Reject("unknown role", repr(name)[:40])
        text = text_of(value)
        if role == "system" and chat:
            raise Reject("system turn is not the first")
        if role == "assistant" and (not chat or chat[-1]["role"] == "system"):
            continue
        if not text and role == "system":
            continue
        if not text:
            raise Reject(EMPTY[role])
        if chat and chat[-1]["role"] == role:
            raise Reject("roles do not alternate", f"two {role} turns in a row")
        chat.append({"role": role, "content": text})
    if chat and chat[-1]["role"] == "user":
        chat.pop()
    if not chat or chat[-1]["role"] != "assistant":
        raise Reject("no answer")
    return chat


def turns_of(value: Any) -> list[tuple[Any, Any]]:
    """(role, text) of a list of turns in either spelling, `from`/`value` or `role`/`content`.

    Raises:
        Reject: it is not such a list, or a turn calls a tool.
    """
    if not isinstance(value, list) or not value:
        raise Reject("no turns", f"{type(value).__name__} where a list of turns is expected")
    return [_turn(turn) for turn in value]


def _turn(turn: Any) -> tuple[Any, Any]:
    if not isinstance(turn, Mapping):
        raise Reject("no turns", f"a turn is {type(turn).__name__}")
    if turn.get("tool_calls"):
        raise Reject("tool call")
    return (turn["from"], turn.get("value")) if "from" in turn else (turn.get("role"), turn.get("content"))


def looks_like_turns(value: Any, key: str) -> bool:
    """Whether `value` is a list whose first turn has `key` (`from` or `role`)."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and key in value[0]


def instruction_chat(instruction: Any, context: Any, answer: Any, earlier: Iterable[tuple[Any, Any]] = ()) -> Chat:
    """One instruction, its optional context below a blank line, and the answer, after `earlier` turns."""
    prompt, extra = text_of(instruction), text_of(context) if context is not None else ""
    user = "\n\n".join(text for text in (prompt, extra) if text)
    return build_chat([*earlier, ("user", user), ("assistant", answer)])
