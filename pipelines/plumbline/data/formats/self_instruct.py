"""Seed tasks of Self-Instruct (Wang et al. 2023): `instruction`, `instances` [{`input`, `output`}], `is_classification`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plumbline.data.chat import build_chat, instruction_prompt, text_of
from plumbline.data.formats.options import Options
from plumbline.data.row import Reject, Row

FIELDS = "instruction, instances [{input, output}], optional is_classification"


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record is a task with instances."""
    return "instruction" in record and isinstance(record.get("instances"), list)


def convert(record: dict[str, Any], options: Options) -> Iterator[Row | Reject]:
    """One chat an instance; instances with an empty output are rejects.

    Raises:
        Reject: no instruction or no instance.
    """
    instances = record.get("instances")
    if "instruction" not in record or not isinstance(instances, list) or not instances:
        raise Reject("missing field", "instances" if "instruction" in record else "instruction")
    category = "classification" if record.get("is_classification") is True else None
    for instance in instances:
        try:
            if not isinstance(instance, dict):
                raise Reject("not an instance", f"{type(instance).__name__} where input and output are expected")
            prompt = instruction_prompt(record["instruction"], instance.get("input"))
            chat = build_chat([("user", prompt), ("assistant", instance.get("output", ""))])
            yield Row({"messages": chat}, text_of(record["instruction"]), category=category)
        except Reject as reject:
            yield reject
