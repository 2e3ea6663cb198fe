"""Text as it enters a dataset, and the key by which two texts count as the same."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

KEY_BYTES = 16


class Reject(Exception):
    """A record that does not become a row.

    Attributes:
        reason: a fixed phrase; rows are counted by it.
        detail: what exactly, for the examples in the data card.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


def clean(text: str) -> str:
    """Unicode NFC, newlines as `\\n`, no NUL, no white space around.

    Raises:
        Reject: the text holds a lone surrogate (from a JSON escape), so it has no UTF-8 form.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Reject("invalid Unicode", f"lone surrogate U+{ord(text[error.start]):04X}") from error
        text = unicodedata.normalize("NFC", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\0", "").strip()


def fold(text: str) -> str:
    """The text with case and white space folded: what differs only in these is the same text."""
    return " ".join(text.casefold().split())


def row_key(texts: Iterable[str]) -> bytes:
    """BLAKE2b-128 of the folded texts; the unit separator keeps (`ab`, `c`) apart from (`a`, `bc`)."""
    return hashlib.blake2b("\x1f".join(map(fold, texts)).encode(), digest_size=KEY_BYTES).digest()
