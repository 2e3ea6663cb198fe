"""A judge's stored verdicts on the answers that people were shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from plumbline.errors import InvalidInput
from plumbline.evaluation.people.figures import GRADES, Unit
from plumbline.evaluation.people.outputs import PLAIN
from plumbline.evaluation.people.sheet import Key
from plumbline.evaluation.scoring.records import Record, read_records
from plumbline.evaluation.shown import shown

EXPECTED: Mapping[str, str] = {
    "pairwise": "judgments: item (or question_id), and model_a, model_b, winner; or model, against and outcome (0 to 1, null where unscored)",
    "acceptability": "judgments: item (or question_id), model, and verdict (A to D) or value (0 to 1), null where unscored",
}


def read_judged(uri: str, key: Key) -> tuple[dict[Unit, str | None], int]:
    """Unit → verdict as `figures.confusion` takes it, and how many judgments are of nothing that the sheet shows.

    Several judgments of one thing, as in both orders or of each turn, are averaged, and one that could not be read leaves it unscored. A mean
    outcome of ½ is a tie. Of A to D a value is the nearest of 1, ⅔, ⅓ and 0, half-way the worse.

    Raises:
        InvalidInput: FILE and line: a record is no judgment.
    """
    units = {
        (row.task, row.item, row.models[0] if key.kind == "acceptability" else "")
        for sheet in key.sheets
        for row in sheet.rows
    }
    by_item: dict[str, list[str]] = {}
    for task, item, _ in sorted(units):
        by_item.setdefault(item, []).append(task)
    found: dict[Unit, list[float | None]] = {}
    passed_over = 0
    for record in read_records(uri, EXPECTED[key.kind]):
        name = next((record.value[n] for n in ("item", "question_id", "id") if record.value.get(n) is not None), None)
        if name is None:
            raise record.refuse(f"has no item; its fields: {', '.join(record.value)}; expected {EXPECTED[key.kind]}")
        tasks = set(by_item.get(str(name), ()))
        task = record.value.get("task") or (next(iter(tasks)) if len(tasks) == 1 else PLAIN)
        model, value = _pair(record, key) if key.kind == "pairwise" else _grade(record)
        unit = (str(task), str(name), model)
        if value is _OTHER or unit not in units:
            passed_over += 1
        else:
            found.setdefault(unit, []).append(value)
    if not found:
        raise InvalidInput(
            f"{uri}: none of its {passed_over} judgments is of an answer on the sheets; they belong by task, item and models"
        )
    return {unit: _one(key, values) for unit, values in found.items()}, passed_over


def _one(key: Key, values: Sequence[float | None]) -> str | None:
    given = [value for value in values if value is not None]
    if len(given) < len(values):
        return None
    mean = math.fsum(given) / len(given)
    if key.kind == "acceptability":
        return GRADES[math.floor((1 - mean) * (len(GRADES) - 1) + 0.5 + 1e-9)]
    return "tie" if math.isclose(mean, 0.5) else key.models[mean < 0.5]


def _pair(record: Record, key: Key) -> tuple[str, Any]:
    """The outcome of the key's model."""
    value = record.value
    if "winner" in value:
        sides = (_named(record, "model_a"), _named(record, "model_b"))
        outcome = _winner(record, sides)
    else:
        sides = (_named(record, "model", "candidate"), _named(record, "against", "opponent", "baseline"))
        outcome = _outcome(record)
    if set(sides) != set(key.models):
        return "", _OTHER
    return "", 1 - outcome if sides[0] != key.models[0] and outcome is not None else outcome


def _named(record: Record, *names: str) -> str | None:
    """A model's name, None where the record has none."""
    found = next((record.value[name] for name in names if name in record.value), None)
    return found if isinstance(found, str) else None


def _winner(record: Record, sides: tuple[str | None, str | None]) -> float | None:
    said = record.value["winner"]
    if said is None:
        return None
    outcomes = {sides[0]: 1.0, sides[1]: 0.0, "model_a": 1.0, "model_b": 0.0}
    if isinstance(said, str) and (said in outcomes or said.casefold().startswith("tie")):
        return outcomes.get(said, 0.5)
    raise record.refuse(f"winner is {shown(said)}; accepted: model_a, model_b, tie, or null where it could not be read")


def _outcome(record: Record) -> float | None:
    name = next((n for n in ("outcome", "score", "value") if n in record.value), None)
    if name is None:
        raise record.refuse(
            f"has no winner and no outcome; its fields: {', '.join(record.value)}; expected {EXPECTED['pairwise']}"
        )
    return _share(record, name)


def _grade(record: Record) -> tuple[str, Any]:
    model = _named(record, "model")
    name = next((n for n in ("verdict", "grade", "value") if n in record.value), None)
    if name is None or model is None:
        fields = ", ".join(record.value)
        raise record.refuse(
            f"has no model, or neither verdict nor value; its fields: {fields}; expected {EXPECTED['acceptability']}"
        )
    if name == "value":
        return model, _share(record, name)
    said = record.value[name]
    if said is None:
        return model, None
    if not isinstance(said, str) or said.strip().upper() not in GRADES:
        raise record.refuse(f"{name} is {shown(said)}; accepted: {', '.join(GRADES)}, or null where it could not be read")
    return model, 1 - GRADES.index(said.strip().upper()) / (len(GRADES) - 1)


def _share(record: Record, name: str) -> float | None:
    said = record.value[name]
    if said is not None and not (isinstance(said, int | float) and not isinstance(said, bool) and 0 <= said <= 1):
        raise record.refuse(f"{name} is {shown(said)}; accepted: 0 to 1, or null where it could not be read")
    return said


_OTHER: Any = object()
