"""Super-NaturalInstructions (Wang et al. 2022): `Definition`, `Instances` [{`input`, `output`}], one task a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from plumbline.data.chat import build_chat, instruction_prompt, text_of
from plumbline.data.formats.options import Options
from plumbline.data.row import Reject, Row

FIELDS = "Definition, Instances [{input, output}]"

_CODES = {
    "arabic": "ar", "bengali": "bn", "chinese": "zh", "english": "en", "french": "fr", "german": "de", "gujarati": "gu",
    "hindi": "hi", "indonesian": "id", "italian": "it", "japanese": "ja", "korean": "ko", "marathi": "mr", "persian": "fa",
    "polish": "pl", "portuguese": "pt", "russian": "ru", "spanish": "es", "swedish": "sv", "tamil": "ta", "telugu": "te",
    "turkish": "tr", "urdu": "ur", "vietnamese": "vi",
}  # fmt: skip


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record is a task file."""
    return "Definition" in record and isinstance(record.get("Instances"), list)


def convert(record: dict[str, Any], options: Options) -> Iterator[Row | Reject]:
    """One chat an instance: definition, blank line, input; of several reference outputs the first.

    Of more than `options.per_task` instances evenly spaced ones are taken. Category, language of the outputs and
    the licence of the instances are kept.

    Raises:
        Reject: the task has no definition (its inputs alone do not say what to do), or no instances.
    """
    definition, instances = _joined(record.get("Definition")), record.get("Instances")
    if not definition:
        raise Reject("task without a definition")
    if not isinstance(instances, list) or not instances:
        raise Reject("task without instances")
    task = Row(
        {},
        definition,
        category=_first(record.get("Categories")),
        licence=_first(record.get("Instance License")),
        language=_CODES.get((_first(record.get("Output_language")) or "").lower()),
    )
    count = min(options.per_task, len(instances))
    for i in range(count):
        try:
            yield _row(task, definition, instances[i * len(instances) // count])
        except Reject as reject:
            yield reject


def _row(task: Row, definition: str, instance: Any) -> Row:
    if not isinstance(instance, dict):
        raise Reject("not an instance", f"{type(instance).__name__} where input and output are expected")
    output = instance.get("output", "")
    answer = output[0] if isinstance(output, list) and output else output or ""
    chat = build_chat([("user", instruction_prompt(definition, instance.get("input"))), ("assistant", answer)])
    name = instance.get("id")
    return replace(task, content={"messages": chat}, record_id=name if isinstance(name, str) else None)


def _joined(value: Any) -> str:
    """The definition is a list of paragraphs, in old files a string."""
    return "\n\n".join(map(text_of, value)) if isinstance(value, list) else text_of(value or "")


def _first(value: Any) -> str | None:
    value = value[0] if isinstance(value, list) and value else value
    return value.strip() if isinstance(value, str) and value.strip() else None
