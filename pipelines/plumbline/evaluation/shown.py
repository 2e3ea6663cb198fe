"""Values in messages for people."""

from __future__ import annotations

import json
from typing import Any


def shown(value: Any, limit: int = 120) -> str:
    """A value for an error message, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return printable(text if len(text) <= limit else text[: limit - 1] + "…")


def printable(text: str) -> str:
    """A text without what no terminal can be sent: halves of characters, which JSON may hold."""
    return text.encode("utf-8", "replace").decode()
