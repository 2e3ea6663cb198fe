"""Stanford Alpaca (Taori et al. 2023): `instruction`, optional `input`, `output`; LLaMA-Factory's `history` and `system` too."""

from __future__ import annotations

import re
from typing import Any

from plumbline.data.chat import Content, instruction_chat
from plumbline.data.normalise import Reject

FIELDS = "instruction, output, optional input, history, system"

_NO_INPUT = re.compile(r"\W*no\W*input(\s+(required|needed))?\W*", re.IGNORECASE)


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has an instruction and an output."""
    return "instruction" in record and "output" in record


def convert(record: dict[str, Any]) -> Content:
    """One user turn (instruction, blank line, input) and the answer. "No input" and "<noinput>" in words mean none.

    Raises:
        Reject: an empty instruction or answer, or a field that is not text.
    """
    if "instruction" not in record or "output" not in record:
        raise Reject("missing field", "instruction" if "instruction" not in record else "output")
    extra = record.get("input")
    if isinstance(extra, str) and _NO_INPUT.fullmatch(extra.strip()):
        extra = None
    earlier: list[tuple[str, Any]] = []
    if record.get("system"):
        earlier.append(("system", record["system"]))
    for exchange in record.get("history") or []:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise Reject("malformed history", "a list of [prompt, answer] is expected")
        earlier += [("user", exchange[0]), ("assistant", exchange[1])]
    return {"messages": instruction_chat(record["instruction"], extra, record["output"], earlier)}
