"""Preference pairs, as TRL, LLaMA-Factory and Anthropic HH write them.

- `prompt`, `chosen`, `rejected`: each a string or a list of messages; answers may repeat the prompt (UltraFeedback);
- `conversations` and `chosen`/`rejected` as one `{from, value}` turn each (LLaMA-Factory);
- `chosen` and `rejected` as whole chats: lists of messages, or `\\n\\nHuman: …\\n\\nAssistant: …` transcripts (Anthropic HH).
  The turns that both share are the prompt.
"""

from __future__ import annotations

import re
from typing import Any

from plumbline.data.chat import Content, build_chat, turns_of
from plumbline.data.normalise import Reject

FIELDS = "chosen, rejected, optional prompt or conversations"

_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")

Turns = list[tuple[Any, Any]]


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has a chosen and a rejected answer."""
    return "chosen" in record and "rejected" in record


def convert(record: dict[str, Any]) -> Content:
    """The pair as three lists of messages: `prompt` (up to a user turn), `chosen` and `rejected` (one answer each).

    Raises:
        Reject: an empty prompt or answer, equal answers, an unknown role, roles that do not alternate.
    """
    prompt = _prompt(record)
    chosen = build_chat(_whole(prompt, record.get("chosen"), "chosen"))
    rejected = build_chat(_whole(prompt, record.get("rejected"), "rejected"))
    if chosen == rejected:
        raise Reject("chosen equals rejected")
    if chosen[:-1] != rejected[:-1]:
        raise Reject("prompts differ", "chosen and rejected do not share all turns before the answer")
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _prompt(record: dict[str, Any]) -> Turns:
    """Turns before the answers; none where the answers hold the whole chat."""
    if "conversations" in record:
        turns = turns_of(record["conversations"])
    elif isinstance(record.get("prompt"), str):
        turns = [("user", record["prompt"])]
    elif record.get("prompt") is not None:
        turns = turns_of(record["prompt"])
    else:
        return []
    if record.get("system"):
        turns.insert(0, ("system", record["system"]))
    return turns


def _whole(prompt: Turns, answer: Any, field: str) -> Turns:
    """The chat that ends with this answer."""
    if answer is None:
        raise Reject("missing field", field)
    if isinstance(answer, str):
        if prompt:
            return [*prompt, ("assistant", answer)]
        turns = _transcript(answer)
    else:
        turns = turns_of([answer] if isinstance(answer, dict) else answer)
    return turns if turns[: len(prompt)] == prompt else [*prompt, *turns]


def _transcript(text: str) -> Turns:
    pieces = _HH_TURN.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        raise Reject("empty prompt", "there is no prompt, and the answers are not Human/Assistant transcripts")
    return list(zip(pieces[1::2], pieces[2::2], strict=True))
