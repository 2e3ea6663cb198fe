"""Canonical chats: clean turns that alternate and end with an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from plumbline.data.normalise import clean
from plumbline.data.row import Chat, Reject, Row

ROLES = {
    "system": "system",
    "developer": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bard", "bing", "chatgpt", "claude", "model", "ai", "bot", "chatbot"), "assistant"),
}
"""Role names seen in the wild → canonical role."""

TOOL_ROLES = frozenset(
    {"tool", "tool_call", "tool_response", "function", "function_call", "function_response", "observation", "ipython"}
)
EMPTY = {"system": "empty system text", "user": "empty prompt", "assistant": "empty answer"}

_NO_INPUT = re.compile(r"\W*no\W*input(\s+(required|needed))?\W*", re.IGNORECASE)

Turns = list[tuple[Any, Any]]
"""(role, text) as a record has them."""


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
    chat = _alternating(turns)
    if chat and chat[-1]["role"] == "user":
        chat.pop()
    if not chat or chat[-1]["role"] != "assistant":
        raise Reject("no answer")
    return chat


def build_prompt(turns: Iterable[tuple[Any, Any]]) -> Chat:
    """Turns (role, text) as a canonical chat that ends where the assistant is to answer.

    Raises:
        Reject: as `build_chat`; or the last turn is not the user's.
    """
    chat = _alternating(turns)
    if not chat or chat[-1]["role"] == "system":
        raise Reject("empty prompt")
    if chat[-1]["role"] == "assistant":
        raise Reject("roles do not alternate", "the prompt ends with an answer")
    return chat


def chat_row(turns: Turns) -> Row:
    """The row of `build_chat`; the operation `turns` says that some were dropped.

    Raises:
        Reject: see `build_chat`.
    """
    chat = build_chat(turns)
    row = Row({"messages": chat})
    return row if len(chat) == len(turns) else row.did("turns")


def answer_turn(value: Any) -> Chat:
    """One answer as a chat of one turn; `value` is text, a turn or a list of one turn.

    Raises:
        Reject: it is empty, or no answer.
    """
    turns = said_by("assistant", value)
    if len(turns) != 1 or _role(turns[0][0]) != "assistant":
        raise Reject("not one answer", "one assistant turn is expected")
    text = text_of(turns[0][1])
    if not text:
        raise Reject(EMPTY["assistant"])
    return [{"role": "assistant", "content": text}]


def _alternating(turns: Iterable[tuple[Any, Any]]) -> Chat:
    chat: Chat = []
    for name, value in turns:
        role = _role(name)
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
    return chat


def _role(name: Any) -> str:
    lower = name.strip().lower().replace("-", "_") if isinstance(name, str) else ""
    if lower in TOOL_ROLES:
        raise Reject("tool call")
    if lower not in ROLES:
        raise Reject("unknown role", repr(name)[:40])
    return ROLES[lower]


def turns_of(value: Any) -> Turns:
    """(role, text) of a list of turns, spelled `from`/`value` or `role`/`content`; the list may be JSON text.

    Raises:
        Reject: it is not such a list, or a turn calls a tool.
    """
    value = _decoded(value)
    if not isinstance(value, list) or not value:
        raise Reject("no turns", f"{type(value).__name__} where a list of turns is expected")
    return [_turn(turn) for turn in value]


def said_by(role: str, value: Any) -> Turns:
    """(role, text) of a text that this role says, of one turn, or of a list of turns.

    Raises:
        Reject: see `turns_of`.
    """
    value = _decoded(value)
    if isinstance(value, str):
        return [(role, value)]
    return turns_of([value] if isinstance(value, Mapping) else value)


def _turn(turn: Any) -> tuple[Any, Any]:
    if not isinstance(turn, Mapping):
        raise Reject("no turns", f"a turn is {type(turn).__name__}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise Reject("tool call")
    return _first(turn, "from", "role"), _first(turn, "value", "content")


def _first(turn: Mapping[str, Any], *names: str) -> Any:
    """The first that is there: turns of both spellings in one Parquet column have the fields of both."""
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def looks_like_turns(value: Any, key: str) -> bool:
    """Whether `value` is a list whose first turn has `key` (`from` or `role`), or such a list as JSON text."""
    value = _decoded(value)
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and key in value[0]


def _decoded(value: Any) -> Any:
    """CSV, and columns of some Parquet files, hold lists of turns as JSON text."""
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return turns if "role" in turns[0] or "from" in turns[0] else value


def instruction_prompt(instruction: Any, context: Any) -> str:
    """An instruction with its optional context below a blank line. "No input" and "<noinput>" in words mean none."""
    prompt, extra = text_of(instruction), text_of(context) if context is not None else ""
    if _NO_INPUT.fullmatch(extra):
        extra = ""
    return "\n\n".join(text for text in (prompt, extra) if text)


def history_turns(history: Any, system: Any = None) -> Turns:
    """Turns before an instruction, as LLaMA-Factory writes them: `history` [[prompt, answer], …] and `system`.

    Raises:
        Reject: the history has another shape.
    """
    turns: Turns = [("system", system)] if system else []
    if history and not isinstance(history, list):
        raise Reject("malformed history", f"{type(history).__name__} where a list is expected")
    for exchange in history or []:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise Reject("malformed history", "a list of [prompt, answer] is expected")
        turns += [("user", exchange[0]), ("assistant", exchange[1])]
    return turns
