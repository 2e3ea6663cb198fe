"""Pydantic's errors in plain words: field path, value, what would be accepted."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel

from plumbline.api.run import AlignmentRun
from plumbline.errors import Problem


def field_path(location: tuple[int | str, ...]) -> str:
    """`spec.stages[0].sft.epochs` of pydantic's location."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "(the whole file)"


def problem(details: Any) -> Problem:
    """One pydantic error in plain words: the value and what would be accepted."""
    location = tuple(details["loc"])
    path = field_path(location)
    value = details["input"]
    shown = repr(value) if not isinstance(value, dict | list) else f"a {'mapping' if isinstance(value, dict) else 'list'}"
    match details["type"]:
        case "extra_forbidden":
            options = _siblings(location)
            close = difflib.get_close_matches(str(location[-1]), options, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(options)}"
            return Problem(path, f"unknown field; {hint}")
        case "missing":
            return Problem(path, "required and not given")
        case "literal_error":
            return Problem(path, f"{shown} is not accepted; use one of {details['ctx']['expected']}")
        case "string_pattern_mismatch":
            return Problem(path, f"{shown} does not match {details['ctx']['pattern']}")
        case "model_type" | "dict_type":
            return Problem(path, f"{shown} is not accepted; expected a mapping")
        case _:
            expected = details["msg"].removeprefix("Input should be ").removeprefix("Input should ")
            return Problem(path, f"{shown} is not accepted; expected {expected[0].lower()}{expected[1:]}")


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """Field names that the model at the parent of `location` knows."""
    model: type[BaseModel] | None = AlignmentRun
    for part in location[:-1]:
        if isinstance(part, int) or model is None:
            continue
        found = next((f for n, f in model.model_fields.items() if (f.alias or n) == part), None)
        model = _model_in(found.annotation) if found else None
    return [f.alias or n for n, f in model.model_fields.items()] if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found:
            return found
    return None
