"""Plain text: a `text` field, or a .txt file. What tokenizers are trained on."""

from __future__ import annotations

from typing import Any

from plumbline.data.chat import text_of
from plumbline.data.row import Reject, Row

FIELDS = "text"


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has a text."""
    return isinstance(record.get("text"), str)


def convert(record: dict[str, Any]) -> Row:
    """The text, cleaned.

    Raises:
        Reject: it is empty, or no text.
    """
    text = text_of(record.get("text"))
    if not text:
        raise Reject("empty text")
    return Row({"text": text})
