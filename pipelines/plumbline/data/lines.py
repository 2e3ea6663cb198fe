"""Files of lines: JSON lines, CSV and plain text. One line in memory at a time, however long a line there is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from plumbline.data.records import JSON, LONG_EXCERPT, MAX_RECORD, Broken, Item, excerpt, plain
from plumbline.errors import InvalidInput

TextUnit = Literal["line", "paragraph", "document"]
Stream: TypeAlias = "io.BufferedReader[Any]"

_SKIP = 1 << 20


def bounded_lines(stream: Stream, offset: int = 0) -> Iterator[tuple[int, bytes | Broken]]:
    """Yield (byte offset in the file, line with its newline); a line over `MAX_RECORD` as `Broken`, and never held whole.

    Args:
        stream: at the beginning of a line.
        offset: where in the file that is.
    """
    while line := stream.readline(MAX_RECORD + 1):
        length = len(line)
        if length > MAX_RECORD and not line.endswith(b"\n"):
            start = line[:LONG_EXCERPT]
            del line
            while (rest := stream.readline(_SKIP)) and not rest.endswith(b"\n"):
                length += len(rest)
            length += len(rest)
            shown = excerpt(start.decode(errors="replace"))
            yield offset, Broken("line too long", f"{length:,} bytes, of at most {MAX_RECORD:,}: {shown}")
        else:
            yield offset, line
        offset += length


def decode(raw: bytes, offset: int) -> str | Broken:
    """UTF-8 bytes as text; `offset` says where in the file they stand."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        return Broken("invalid UTF-8", f"byte 0x{raw[error.start]:02x} at byte {offset + error.start} of the file")


def json_lines(stream: Stream, offset: int = 0, before: int = 0) -> Iterator[Item]:
    """One JSON object a line.

    Args:
        stream: at the beginning of a line.
        offset: bytes of the file before it.
        before: lines of the file before it.
    """
    blank: list[int] = []  # blank lines are broken only if something follows: newlines at the end are fine
    for number, (at, raw) in enumerate(bounded_lines(stream, offset), before + 1):
        if isinstance(raw, bytes) and not raw.strip():
            blank.append(number)
            continue
        for skipped in blank:
            yield skipped - 1, skipped, Broken("blank line", "")
        blank.clear()
        yield number - 1, number, raw if isinstance(raw, Broken) else _record(raw, at)


def _record(raw: bytes, offset: int) -> dict[str, Any] | Broken:
    text = decode(raw, offset)
    if isinstance(text, Broken):
        return text
    try:
        value = JSON.decode(text)
    except (ValueError, RecursionError) as error:
        return Broken("broken JSON", f"{plain(error)}: {excerpt(text)}")
    return value if isinstance(value, dict) else Broken("not an object", excerpt(text))


def text_units(stream: Stream, shown: str, unit: TextUnit, offset: int = 0, before: int = 0) -> Iterator[Item]:
    """Plain text as records with a `text`: every line that is not blank, every block between blank lines, or the whole file.

    The index of a line is its number in the file from 0; of a paragraph or a document its ordinal.

    Raises:
        InvalidInput: FILE:LINE where a paragraph or a document begins that is too long.
    """
    index, start = 0, before + 1
    block: list[str] = []
    size = 0
    for number, (at, raw) in enumerate(bounded_lines(stream, offset), before + 1):
        line = raw if isinstance(raw, Broken) else decode(raw, at)
        if isinstance(line, Broken):
            yield index if unit != "line" else number - 1, number, line
            index += 1
        elif unit == "line":
            if line.strip():
                yield number - 1, number, {"text": line}
        elif line.strip() or (unit == "document" and block):
            start = start if block else number
            size += len(line)
            if size > MAX_RECORD:
                raise InvalidInput(
                    f"{shown}:{start}: a {unit} of more than {MAX_RECORD >> 20} MiB; set textUnit: line, or write smaller files"
                )
            block.append(line)
        elif block:
            yield index, start, {"text": "".join(block)}
            index, block, size = index + 1, [], 0
    if block:
        yield index, start, {"text": "".join(block)}


def csv_rows(stream: Stream, shown: str, delimiter: str) -> Iterator[Item]:
    """CSV (RFC 4180) with a header: each row as {column: text}; rows of another length are `Broken`.

    One column may have no name: pandas writes its index so. Where the header lacks the delimiter but has another usual one,
    that is the delimiter (a spreadsheet's semicolon). The index is the row's ordinal, from 0; the line is where the row begins.

    Raises:
        InvalidInput: FILE:LINE where a quote is not closed or a line is too long, so that no later row can be told; or
            the header has repeated names, or is not UTF-8.
    """
    csv.field_size_limit(MAX_RECORD)  # the default of 128 kB is less than some documents
    bad: list[Broken] = []

    def text_lines() -> Iterator[str]:
        for at, raw in bounded_lines(stream):
            if isinstance(raw, Broken):
                raise InvalidInput(f"{shown}: {raw.reason}: {raw.excerpt}; is a quote not closed there?")
            line = decode(raw, at)
            if isinstance(line, Broken):
                bad.append(line)
                line = raw.decode(errors="replace")
            yield line

    reader = csv.reader(text_lines(), delimiter=_delimiter(stream.peek(), delimiter), strict=True)
    try:
        header = next(filter(None, reader), [])
        if bad:
            raise InvalidInput(
                f"{shown}:{reader.line_num}: the header has {bad[0].reason} ({bad[0].excerpt}); write it in UTF-8"
            )
        if len({name.strip() for name in header}) < len(header):
            raise InvalidInput(
                f"{shown}:{reader.line_num}: the header {header!r:.200} has repeated or several empty names; "
                "name every column once"
            )
        line = reader.line_num + 1
        for index, row in enumerate(reader):
            if bad:
                yield index, line, bad[0]
                bad.clear()
            elif len(row) != len(header):
                found = f"{len(row)} fields where the header has {len(header)}: {excerpt(delimiter.join(row))}"
                yield index, line, Broken("ragged row", found) if row else Broken("blank line", "")
            else:
                yield index, line, dict(zip(header, row, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        repair = "write newlines (tr '\\r' '\\n')" if "new-line" in str(error) else "repair the quotes there"
        raise InvalidInput(
            f"{shown}:{reader.line_num}: broken CSV ({error}); what comes after it cannot be read: {repair}"
        ) from error


def _delimiter(head: bytes, usual: str) -> str:
    header = next(filter(str.strip, head.decode(errors="replace").split("\n")), "")
    return max((usual, ",", ";", "\t", "|"), key=lambda mark: (mark == usual and mark in header, header.count(mark)))
