"""Flat blocks whose one field chooses a method, and whose others are options that only some methods know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.alias_generators import to_camel

Options = Mapping[str, Mapping[str, Any]]
"""Method → its options and what they are where the run does not say."""


def option_rules(choice: str, options: Options) -> list[tuple[str, str]]:
    """CEL rules that say what `foreign_options` says, one for all options that the same methods know.

    Args:
        choice: field that holds the method.
        options: of each method.
    """
    names = sorted({name for known in options.values() for name in known})
    together: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        together.setdefault(_knowing(name, options), []).append(name)
    return [
        (
            f"self.{choice} in [{', '.join(map(repr, methods))}] || !({' || '.join(f'has(self.{to_camel(n)})' for n in group)})",
            f"{', '.join(map(to_camel, group))}: {'an option' if len(group) == 1 else 'options'} of {', '.join(methods)} only",
        )
        for methods, group in together.items()
    ]


def foreign_options(block: BaseModel, method: str, options: Options) -> list[tuple[str, str]]:
    """Options that are set and that the method does not know: (field, sentence)."""
    names = sorted({name for known in options.values() for name in known} - options[method].keys())
    return [
        (to_camel(name), f"{to_camel(name)} is an option of {', '.join(_knowing(name, options))} only")
        for name in names
        if getattr(block, name) is not None
    ]


def option(block: BaseModel, method: str, name: str, options: Options) -> Any:
    """An option of the method, as set or by default."""
    value = getattr(block, name)
    return options[method][name] if value is None else value


def _knowing(name: str, options: Options) -> tuple[str, ...]:
    return tuple(method for method, known in options.items() if name in known)
