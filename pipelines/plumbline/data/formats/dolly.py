"""databricks-dolly-15k: `instruction`, optional `context`, `response`, optional `category`."""

from __future__ import annotations

from typing import Any

from plumbline.data.chat import Content, instruction_chat
from plumbline.data.normalise import Reject

FIELDS = "instruction, response, optional context, category"


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has an instruction and a response."""
    return "instruction" in record and "response" in record


def convert(record: dict[str, Any]) -> Content:
    """One user turn (instruction, blank line, context) and the response.

    Raises:
        Reject: an empty instruction or response, or a field that is not text.
    """
    if "instruction" not in record or "response" not in record:
        raise Reject("missing field", "instruction" if "instruction" not in record else "response")
    return {"messages": instruction_chat(record["instruction"], record.get("context"), record["response"])}
