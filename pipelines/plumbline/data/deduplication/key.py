"""Which texts of a row are compared."""

from __future__ import annotations

from typing import Literal

from plumbline.data.row import Row

Key = Literal["instruction", "prompt", "answer", "chat"]


def key_texts(row: Row, key: Key) -> list[str]:
    """The texts that two rows are compared by; all texts where the row has none of that sort (plain text has no prompt).

    Args:
        row: the row.
        key: `instruction`: the bare instruction, without the record's input, or the first user turn. `prompt`: all user turns.
            `answer`: all answers. `chat`: every text.
    """
    match key:
        case "instruction":
            first = row.instruction if row.instruction is not None else next(iter(row.prompts), None)
            texts = [] if first is None else [first]
        case "prompt":
            texts = row.prompts
        case "answer":
            texts = row.answers
        case "chat":
            texts = row.texts
    return texts or row.texts
