"""Texts to learn a tokenizer from, and others to measure it on: told apart, and thinned out, by their hashes alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

TEXT = 10_000  # characters; longer ones are cut, since tokens are shorter by far
HELD_OUT = 1_000_000  # characters to measure on

Texts = dict[str, list[str]]
"""Texts by the name of their source."""


class Sample:
    """A share of all texts that are added, such that they have at most `limit` characters together.

    A text stays if its hash is below the share: neither the order of texts nor that of sources matters.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.share = limit, 1.0
        self._kept: list[tuple[float, str, str]] = []
        self._size = 0

    def add(self, source: str, text: str, place: float) -> None:
        """Take a text whose hash is `place`, from 0 to 1."""
        if place < self.share:
            self._kept.append((place, source, text))
            self._size += len(text)
        while self._size > self.limit:
            self.share /= 2
            self._kept = [entry for entry in self._kept if entry[0] < self.share]
            self._size = sum(len(text) for _, _, text in self._kept)

    def texts(self) -> Texts:
        found: Texts = {}
        for _, source, text in self._kept:
            found.setdefault(source, []).append(text)
        return found


def gather(lines: Iterable[tuple[str, str]], held_out: float, limit: int) -> tuple[Texts, Texts]:
    """Texts to learn from, and texts to measure on; equal ones are on one side.

    Args:
        lines: (name of the source, text) each.
        held_out: share of texts to measure on.
        limit: characters to learn from; of more than that, a share is taken.
    """
    learn, measure = Sample(limit), Sample(HELD_OUT)
    for source, line in lines:
        for start in range(0, len(line), TEXT):
            raw = line[start : start + TEXT].encode(errors="replace")  # halves of surrogate pairs are no text
            text, digest = raw.decode(), hashlib.blake2b(raw, digest_size=16).digest()
            side, place = (int.from_bytes(half, "little") / 2**64 for half in (digest[:8], digest[8:]))
            (measure if side < held_out else learn).add(source, text, place)
    return learn.texts(), measure.texts()
