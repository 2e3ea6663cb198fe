"""The terms of AlpacaEval's length-controlled model in files: fitted weights of models, difficulties of instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plumbline.errors import InvalidInput
from plumbline.evaluation.ratings.battles import Floats, Preference
from plumbline.evaluation.ratings.length_control import Anchors, Weights
from plumbline.evaluation.ratings.record import Record, records
from plumbline.external import expand

_MODEL = ("not_gamed_baseline.astype(float)", "not_gamed_baseline")
_LENGTH = ("np.tanh(std_delta_len)", "tanh(std_delta_len)", "std_delta_len")
_DIFFICULTY = "instruction_difficulty"
LARGEST = 1e4
"""Of a weight or a difficulty in logits; published ones are below 100."""


@dataclass(frozen=True)
class Difficulties:
    """How hard instructions are.

    Attributes:
        file: where they stand.
        by_item: in the order of the file, by number of the instruction.
        by_instruction: by its text, if the file has it.
        anchors: judgments of the baseline's own variants, if the file has them.
    """

    file: str
    by_item: dict[int, float]
    by_instruction: dict[str, float]
    anchors: Anchors | None

    def of(self, preferences: Sequence[Preference]) -> Floats:
        """The difficulties of one model's judgments, in their order.

        By the number of the instruction, else by its text, else by the order of both files.

        Raises:
            InvalidInput: which is which cannot be told, or one is missing.
        """
        items = [one.item for one in preferences if one.item is not None]
        if len(items) == len(preferences):
            missing = [item for item in items if item not in self.by_item]
            if missing:
                raise InvalidInput(
                    f"{self.file} has no difficulty for item {missing[0]} of '{preferences[0].model}' "
                    f"({len(missing)} of {len(items)} are missing); give the file that belongs to these judgments"
                )
            return np.array([self.by_item[item] for item in items])
        texts = [self.by_instruction.get(one.instruction or "") for one in preferences]
        known = [value for value in texts if value is not None]
        if len(known) == len(texts):
            return np.array(known)
        if len(preferences) != len(self.by_item):
            raise InvalidInput(
                f"{self.file} has {len(self.by_item)} difficulties, but there are {len(preferences)} judgments of "
                f"'{preferences[0].model}' without `index`, so which belongs to which cannot be told; give all of them in the "
                "order of the file, or add `index` to the judgments"
            )
        return np.array(list(self.by_item.values()))


def read_difficulties(file: str) -> Difficulties:
    """A table with `instruction_difficulty` and the instruction's number (`index`, `item` or a column without name).

    A number may come again with the same difficulty. Rows that say `not_gamed_baseline` False and have `preference` and
    `std_delta_len` are the anchors; so AlpacaEval's own `df_gamed.csv` can be given.

    Raises:
        InvalidInput: FILE:LINE and what is wrong there.
    """
    by_item: dict[int, float] = {}
    by_instruction: dict[str, float] = {}
    anchors: list[tuple[float, float, float]] = []
    for record in records(_only(file), "difficulty"):
        value = _number(record, (_DIFFICULTY,))
        item = record.whole(*(name for name in ("index", "item", "") if name in record.value))
        item = len(by_item) if item is None else item
        if by_item.setdefault(item, value) != value:
            raise InvalidInput(f"{record.where}: item {item} has the difficulties {by_item[item]:g} and {value:g}; give one")
        if isinstance(text := record.value.get("instruction"), str):
            by_instruction[text] = value
        if str(record.value.get("not_gamed_baseline", True)).strip().lower() in ("false", "0", "0.0"):
            preference = _number(record, ("preference",))
            if not 0 <= preference <= 1:
                raise record.refuse("preference", "0 to 1 where not_gamed_baseline is False")
            anchors.append((preference, _number(record, ("std_delta_len",)), value))
    columns = np.array(anchors).T
    return Difficulties(file, by_item, by_instruction, Anchors(*columns) if anchors else None)


def read_weights(file: str) -> dict[str, Weights]:
    """A table with one row a model: its name (`model`, or a column without name) and the three fitted terms.

    Raises:
        InvalidInput: FILE:LINE and what is wrong there.
    """
    found: dict[str, Weights] = {}
    for record in records(_only(file), "weights"):
        model = record.text(next((name for name in ("model", "") if name in record.value), "model"))
        if model in found:
            raise InvalidInput(f"{record.where}: '{model}' has weights already; give one row a model")
        found[model] = Weights(
            model=_number(record, _MODEL), length=_number(record, _LENGTH), difficulty=_number(record, (_DIFFICULTY,))
        )
    return found


def _only(file: str) -> str:
    names = expand(file)
    if len(names) > 1:
        raise InvalidInput(f"'{file}' is {len(names)} files; give the one that holds the table")
    return names[0]


def _number(record: Record, names: Sequence[str]) -> float:
    """A finite number of the first of the columns that is there.

    Raises:
        InvalidInput: none is, or it holds something else.
    """
    name = next((name for name in names if name in record.value), None)
    if name is None:
        raise InvalidInput(
            f"{record.where}: no {names[0]} among its columns ({', '.join(record.value) or 'nothing'}); "
            + ("weights need the model's name and " + ", ".join((_LENGTH[0], _DIFFICULTY, _MODEL[0])) if record.format == "weights"
               else f"difficulties need index and {_DIFFICULTY}")
        )  # fmt: skip
    value = record.number(name, "a number")
    if value is None or abs(value) > LARGEST:
        raise record.refuse(name, f"a number from -{LARGEST:g} to {LARGEST:g}")
    return value
