"""Anthropic HH-RLHF (Bai et al. 2022): `chosen` and `rejected` as transcripts, `\\n\\nHuman: …\\n\\nAssistant: …`."""

from __future__ import annotations

import re
from typing import Any

from plumbline.data.chat import Turns, text_of
from plumbline.data.formats.pairs import pair
from plumbline.data.row import Reject, Row

FIELDS = "chosen, rejected as 'Human: … Assistant: …' transcripts"

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has two transcripts and nothing that is a prompt."""
    both = [record.get(name) for name in ("chosen", "rejected")]
    return not record.get("prompt") and all(isinstance(text, str) and _TURN.match(text.lstrip()) for text in both)


def convert(record: dict[str, Any]) -> Row:
    """The pair; the turns that both transcripts share are the prompt.

    Raises:
        Reject: see `pair`; or a field is no transcript.
    """
    return pair(*(_transcript(record.get(name), name) for name in ("chosen", "rejected")))


def _transcript(text: Any, field: str) -> Turns:
    if text is None:
        raise Reject("missing field", field)
    pieces = _TURN.split(text_of(text))
    if len(pieces) < 3 or pieces[0].strip():
        raise Reject("not a transcript", f"{field} does not begin with 'Human:'")
    return list(zip(pieces[1::2], pieces[2::2], strict=True))
