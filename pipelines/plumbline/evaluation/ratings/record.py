"""Records of files of judgments, and errors that say which one holds what it may not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plumbline.data.read import read_records
from plumbline.data.records import Broken, excerpt
from plumbline.errors import InvalidInput
from plumbline.evaluation.shown import shown

SHOWN = 120
"""Characters of a value in a message."""
FAILED = frozenset({"error", "invalid", "none", "null", "nan", ""})
"""What stands for a reply that could not be read."""

FIELDS = {
    "alpaca_eval": "generator_2 (or model) and preference, best with generator_1, output_1, output_2 and instruction or index",
    "battles": "model_a, model_b and winner, or model and games (Arena-Hard's judgments)",
    "mt_bench": "question_id with model, score and turn, or with model_1, model_2, g1_winner and g2_winner",
    "vicuna_review": "question_id and score (two grades)",
}
"""What a record of each format holds."""
_NEEDED: dict[str, list[set[str]]] = {
    "alpaca_eval": [{"generator_2", "preference"}, {"model", "preference"}],
    "battles": [{"model_a", "model_b", "winner"}, {"model", "games"}],
    "mt_bench": [{"question_id", "model", "score"}, {"question_id", "model_1", "model_2", "g1_winner", "g2_winner"}],
    "vicuna_review": [{"question_id", "answer1_id", "score"}],
}


@dataclass(frozen=True)
class Record:
    """One record of a file.

    Attributes:
        where: FILE:LINE.
        value: its fields.
        format: what it is read as.
    """

    where: str
    value: Mapping[str, Any]
    format: str

    def refuse(self, name: str, accepted: str) -> InvalidInput:
        """The error for a field that holds something else than it may."""
        return InvalidInput(f"{self.where}: {name} is {shown(self.value.get(name))}; accepted: {accepted}")

    def text(self, *names: str) -> str:
        """The first of the fields that is there, as a name.

        Raises:
            InvalidInput: none is, or it is empty or no text.
        """
        for name in names:
            if name in self.value:
                found = self.value[name]
                if not isinstance(found, str) or not found.strip():
                    raise self.refuse(name, "the name of a model")
                return found.encode(errors="replace").decode()  # half a surrogate pair could not be shown
        raise self.missing(names)

    def missing(self, names: Sequence[str]) -> InvalidInput:
        """The error for a record that has none of the fields; it tells the format that the record does fit."""
        there = ", ".join(name for name in self.value if name) or "nothing"
        others = [other for other in _NEEDED if other != self.format and _fits(self.value, other)]
        hint = f"; it looks like --format {others[0]}" if others else ""
        reads = f"; --format {self.format} reads {FIELDS[self.format]}" if self.format in FIELDS else ""
        return InvalidInput(f"{self.where}: no {' or '.join(names)} among its fields ({excerpt(there, SHOWN)}){reads}{hint}")

    def number(self, name: str, accepted: str) -> float | None:
        """A number, also one written as text (CSV); None where there is none: null, NaN, empty.

        Raises:
            InvalidInput: it is something else.
        """
        value = self.value.get(name)
        if isinstance(value, str):
            try:
                value = float(value) if value.strip().lower() not in FAILED else None
            except ValueError:
                raise self.refuse(name, accepted) from None
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(name, accepted)
        try:
            return float(value) if math.isfinite(value) else None
        except OverflowError:
            raise self.refuse(name, accepted) from None

    def whole(self, *names: str) -> int | None:
        """A whole number in the first of the fields that is there; None where none is.

        Raises:
            InvalidInput: it is something else.
        """
        for name in names:
            if name in self.value:
                number = self.number(name, "a whole number")
                if number is None or number != int(number):
                    raise self.refuse(name, "a whole number")
                return int(number)
        return None

    def question(self) -> str:
        """Which question it is about.

        Raises:
            InvalidInput: it does not say.
        """
        for name in ("question_id", "uid"):
            value = self.value.get(name)
            if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
                return str(value)
        raise self.missing(("question_id",))


def records(file: str, format: str) -> Iterator[Record]:
    """The records of a file, in order.

    Raises:
        InvalidInput: a line holds none, or the file does not.
    """
    for _, line, value in read_records(file, "skip"):
        if not isinstance(value, Broken):
            yield Record(f"{file}:{line}", value, format)
        elif value.reason != "blank line":
            raise InvalidInput(
                f"{file}:{line}: {value.reason}: {excerpt(value.excerpt, SHOWN) or '(nothing)'}; accepted are one JSON object a "
                "line, a JSON array of objects, CSV with a header, or Parquet; if the file was cut off, write it again"
            )


def _fits(value: Mapping[str, Any], format: str) -> bool:
    """Whether a record has what the format needs."""
    there = set(value)
    return any(needed <= there for needed in _NEEDED[format])
