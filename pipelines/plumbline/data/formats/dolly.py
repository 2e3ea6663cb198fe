"""databricks-dolly-15k: `instruction`, optional `context`, `response`, optional `category`."""

from __future__ import annotations

import re
from typing import Any

from plumbline.data.chat import build_chat, instruction_prompt, text_of
from plumbline.data.row import Reject, Row

FIELDS = "instruction, response, optional context, category"

# Passages come from Wikipedia with its marks: [12], [a], [note 3], [citation needed]
_CITATION = re.compile(r"(?<=[\w.,;:!?)\"'”’])\s?\[(?:\d{1,3}|[a-z]|note \d{1,3}|citation needed)\]")


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has an instruction and a response."""
    return "instruction" in record and "response" in record


def convert(record: dict[str, Any]) -> Row:
    """One user turn (instruction, blank line, context) and the response.

    Citation marks are stripped from the context; from the response only those that the context has too, because
    elsewhere `x[1]` is code.

    Raises:
        Reject: an empty instruction or response, or a field that is not text.
    """
    for name in ("instruction", "response"):
        if name not in record:
            raise Reject("missing field", name)
    context, response = text_of(record.get("context") or ""), text_of(record["response"])
    marks = set(_CITATION.findall(context))
    if marks:
        context = _CITATION.sub("", context)
        response = _CITATION.sub(lambda match: "" if match.group() in marks else match.group(), response)
    chat = build_chat([("user", instruction_prompt(record["instruction"], context)), ("assistant", response)])
    category = record.get("category")
    row = Row({"messages": chat}, text_of(record["instruction"]), category=category if isinstance(category, str) else None)
    return row.did("citations") if marks else row
