"""Record formats: one file each, one registry line each. The order is the order of recognition, the most specific first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from plumbline.data.formats import (
    alpaca,
    completion,
    dolly,
    hh,
    judgments,
    kto,
    messages,
    oasst,
    pairs,
    pandalm,
    rankings,
    self_instruct,
    sharegpt,
    super_natural_instructions,
    text,
)
from plumbline.data.formats.options import Options
from plumbline.data.formats.refused import is_prediction, why_refused
from plumbline.data.forms import REACHES, reform
from plumbline.data.row import Form, Reject, Row
from plumbline.errors import InvalidInput

Record = dict[str, Any]
Convert = Callable[[Record, Options], Iterable[Row | Reject]]

SAMPLE = 20
"""Records by which a file's format is recognised: a few odd ones at the beginning do not decide."""


@dataclass(frozen=True)
class Format:
    """One way to write records.

    Attributes:
        name: as in `sources[].format`.
        native: forms that its rows come in.
        fields: its fields in words, for error messages.
        recognise: whether a record looks like it.
        convert: record → rows in a native form, and rejects of parts of it; raises `Reject` for a record dropped whole.
    """

    name: str
    native: frozenset[Form]
    fields: str
    recognise: Callable[[Record], bool]
    convert: Convert

    @property
    def makes(self) -> frozenset[Form]:
        """Forms that its rows can be turned into."""
        return frozenset().union(*(REACHES[form] for form in self.native))

    def rows(self, record: Record, options: Options) -> Iterator[Row | Reject]:
        """Rows of the form that is asked for, and rejects of parts of the record.

        Raises:
            Reject: the record is dropped whole.
        """
        for row in self.convert(record, options):
            if isinstance(row, Reject):
                yield row
            else:
                yield from reform(row, options.form)


def _one(name: str, form: Form, module: Any) -> Format:
    """A format with one row a record."""
    convert: Callable[[Record], Row] = module.convert
    return Format(name, frozenset({form}), module.FIELDS, module.recognise, lambda record, options: (convert(record),))


def _many(name: str, forms: set[Form], module: Any) -> Format:
    """A format with several rows a record."""
    return Format(name, frozenset(forms), module.FIELDS, module.recognise, module.convert)


FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        _one("hh", "pairs", hh),
        _one("pairs", "pairs", pairs),
        _one("rankings", "rankings", rankings),
        _one("pandalm", "rankings", pandalm),
        _one("kto", "labels", kto),  # before judgments: where no judgment is asked for, records without one will do
        _one("judgments", "judgments", judgments),
        _one("sharegpt", "messages", sharegpt),
        _one("messages", "messages", messages),
        _many("oasst", {"messages", "rankings"}, oasst),
        _many("superNaturalInstructions", {"messages"}, super_natural_instructions),
        _many("selfInstruct", {"messages"}, self_instruct),
        _one("alpaca", "messages", alpaca),
        _one("dolly", "messages", dolly),
        _one("completion", "messages", completion),
        _one("text", "text", text),
    )
}


def choose(wanted: str, records: Sequence[Record], where: str, form: Form) -> Format:
    """The format of a file, from its first records: the one that most of them look like.

    Args:
        wanted: a name in `FORMATS`, or `auto`.
        records: the file's first records, at least one.
        where: FILE:LINE of the first, for the message.
        form: what the rows are to hold.

    Raises:
        InvalidInput: nothing fits, the forced format does not fit, or it cannot make rows of this form.
    """
    votes = Counter(found.name for record in records if (found := _recognised(record, form)))
    likely = FORMATS[votes.most_common(1)[0][0]] if votes else None
    if wanted != "auto":
        chosen = FORMATS[wanted]
        if not any(chosen.recognise(record) or _fits(chosen, record, form) for record in records):
            raise InvalidInput(f"{where}: format '{wanted}' needs {chosen.fields}, but {_seen(records[0], likely)}")
    elif likely is None:
        raise InvalidInput(f"{where}: {_unknown(records[0])}")
    else:
        chosen = likely
    if form not in chosen.makes:
        able = ", ".join(name for name, format in FORMATS.items() if form in format.makes)
        hint = why_refused(records[0])
        if hint:
            raise InvalidInput(f"{where}: {hint}")
        raise InvalidInput(
            f"{where}: '{chosen.name}' records cannot become {form}, only {', '.join(sorted(chosen.makes))}; "
            f"let the stage produce those, or give a source in a format that can: {able}"
        )
    return chosen


def _recognised(record: Record, form: Form) -> Format | None:
    """The first format that the record looks like; one that makes the form goes before others, also where only its content
    shows that it does."""
    if is_prediction(record):
        return None
    found = [format for format in FORMATS.values() if format.recognise(record)]
    able = [format for format in found if form in format.makes]
    able = able or [format for format in FORMATS.values() if found and _fits(format, record, form)]
    return next(iter(able or found), None)


def _fits(format: Format, record: Record, form: Form) -> bool:
    """Whether the record gives a row of this form."""
    try:
        return form in format.makes and any(isinstance(row, Row) for row in format.rows(record, Options(form)))
    except Reject:
        return False


def _seen(record: Record, likely: Format | None) -> str:
    fields = ", ".join(repr(name)[:60] for name in list(record)[:20]) or "none"
    if likely is None:
        return f"the record has the fields {fields}; {_known()}"
    return f"the record has the fields {fields}; it looks like '{likely.name}': set format: {likely.name} or auto"


def _unknown(record: Record) -> str:
    if is_prediction(record):
        return (
            "these are a model's answers (response) beside reference answers (target); "
            "rename the one to train on to output, and leave out the other"
        )
    return why_refused(record) or f"no known format has this record; {_seen(record, None)}"


def _known() -> str:
    return "known formats: " + "; ".join(f"{format.name} ({format.fields})" for format in FORMATS.values())
