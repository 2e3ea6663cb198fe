"""Record formats: one file each, one registry line each. The order is the order of recognition, the most specific first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from plumbline.data.chat import Content
from plumbline.data.formats import alpaca, dolly, messages, pairs, sharegpt
from plumbline.errors import InvalidInput

Record = dict[str, Any]
Makes = Literal["messages", "pairs"]


@dataclass(frozen=True)
class Format:
    """One way to write records.

    Attributes:
        name: as in `sources[].format`.
        makes: what its rows hold: `messages` (a chat) or `pairs`.
        fields: its fields in words, for error messages.
        recognise: whether a record looks like it.
        convert: record → row content; raises `Reject` for a record that must be dropped.
    """

    name: str
    makes: Makes
    fields: str
    recognise: Callable[[Record], bool]
    convert: Callable[[Record], Content]


FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format("pairs", "pairs", pairs.FIELDS, pairs.recognise, pairs.convert),
        Format("sharegpt", "messages", sharegpt.FIELDS, sharegpt.recognise, sharegpt.convert),
        Format("messages", "messages", messages.FIELDS, messages.recognise, messages.convert),
        Format("alpaca", "messages", alpaca.FIELDS, alpaca.recognise, alpaca.convert),
        Format("dolly", "messages", dolly.FIELDS, dolly.recognise, dolly.convert),
    )
}


def choose(wanted: str, record: Record, where: str, makes: Makes) -> Format:
    """The format of a file, from its first record.

    Args:
        wanted: a name in `FORMATS`, or `auto`.
        record: the file's first record.
        where: FILE:LINE, for the message.
        makes: what the stage produces.

    Raises:
        InvalidInput: nothing fits, the forced format does not fit, or it makes rows of the other kind.
    """
    seen = ", ".join(repr(name)[:60] for name in list(record)[:20]) or "none"
    found = next((format for format in FORMATS.values() if format.recognise(record)), None)
    known = "; ".join(f"{format.name} ({format.fields})" for format in FORMATS.values())
    if wanted != "auto" and not FORMATS[wanted].recognise(record):
        hint = f"it looks like '{found.name}': set format: {found.name} or auto" if found else f"known formats: {known}"
        raise InvalidInput(
            f"{where}: format '{wanted}' needs {FORMATS[wanted].fields}, but the record has the fields {seen}; {hint}"
        )
    chosen = found if wanted == "auto" else FORMATS[wanted]
    if chosen is None:
        raise InvalidInput(f"{where}: no known format has the fields {seen}; known formats: {known}")
    if chosen.makes != makes:
        product = {"messages": "Dataset", "pairs": "PreferenceDataset"}
        raise InvalidInput(
            f"{where}: '{chosen.name}' records make a {product[chosen.makes]}, but this stage says produces: {product[makes]}; "
            f"set produces: {product[chosen.makes]} or give a source of the other kind"
        )
    return chosen
