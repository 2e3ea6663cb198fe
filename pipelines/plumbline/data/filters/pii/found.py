"""What a finder finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """A value in a text.

    Attributes:
        start, end: its place.
        value: equal for two spellings of the same value.
        example: set aside for examples, and nobody's.
    """

    start: int
    end: int
    value: str
    example: bool = False
