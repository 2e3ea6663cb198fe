"""What a proposed instruction must pass: the filters of Self-Instruct and Alpaca, each with a reason of its own."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable

from plumbline.data.filters.words import count_words
from plumbline.data.rouge import RougePool
from plumbline.data.row import Reject

SHORTEST, LONGEST = 4, 150  # words; Self-Instruct drops 3 and fewer, and more than 150
NOT_TEXT = (
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot", "go to",
    "video", "audio", "music", "flowchart", "diagram",
)  # fmt: skip
"""What a language model can neither see nor make: Self-Instruct's words with Alpaca's additions."""
_NOT_TEXT = re.compile(rf"\b({'|'.join(NOT_TEXT)})\b", re.IGNORECASE)


class Screen:
    """Passes instructions that are well-formed and unlike all before them.

    Args:
        seeds: what new instructions are compared with from the start.
        max_similarity: ROUGE-L F above which two are too alike.
    """

    def __init__(self, seeds: Iterable[str], max_similarity: float) -> None:
        self._pool = RougePool(max_similarity)
        self._ascii = True
        for seed in seeds:
            self._ascii = self._ascii and seed[:1].isascii()
            self._pool.add(seed)

    def check(self, instruction: str) -> None:
        """Raise what is wrong with an instruction; one that passes joins the pool.

        Raises:
            Reject: by the first filter that drops it.
        """
        words = count_words(instruction)
        if words < SHORTEST:
            raise Reject("instruction too short", f"{words} words")
        if words > LONGEST:
            raise Reject("instruction too long", f"{words} words")
        found = _NOT_TEXT.search(instruction)
        if found:
            raise Reject("not a task for text", found[0].lower())
        if instruction.lower().startswith("write a program"):
            raise Reject("asks for a program")  # models write these, and are vague about what goes in and out
        first = instruction[0]
        if first in string.punctuation or unicodedata.category(first).startswith("P"):
            raise Reject("begins with punctuation", first)
        if self._ascii and not first.isascii():  # where the seeds do not either: other languages are no fault
            raise Reject("begins with no ASCII character", first)
        closest = self._pool.closest(instruction)
        if closest is not None:
            raise Reject("similar to an earlier instruction", f"ROUGE-L {closest[1]:.2f}")
        self._pool.add(instruction)
