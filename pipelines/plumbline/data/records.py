"""What reading a file gives: records, or what is there instead."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

MAX_RECORD = 64 << 20
"""Bytes of one record (a line, an element, a document). Longer ones are refused without being held in memory."""


EXCERPT = 300
"""Characters of a drop's example in the data card."""
LONG_EXCERPT = 20 * EXCERPT
"""As many are kept until personal data are masked, so that no value is cut in two before it is recognised."""


@dataclass(frozen=True)
class Broken:
    """A line that holds no record: why, and how it begins (up to `LONG_EXCERPT`)."""

    reason: str
    excerpt: str


JSON = json.JSONDecoder(parse_constant=lambda _: None)
"""JSON with NaN and Infinity, which are none of it, as null: they are how pandas and NumPy write that nothing is there."""

Item = tuple[int, int, dict[str, Any] | Broken]
"""Record index from 0, line number from 1 (in Parquet the row number), the record."""


def plain(error: BaseException) -> str:
    """An error of a parser in a few words."""
    return str(error).splitlines()[0].split(": line ")[0] if str(error) else type(error).__name__


def excerpt(text: str, length: int = LONG_EXCERPT) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text[: 2 * length].encode(errors="replace").decode().split())
    return line if len(line) <= length else line[:length] + "…"
