"""Records of stored files: JSON arrays, JSON lines and CSV with a header, plain or compressed."""

from __future__ import annotations

import csv
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.evaluation.shown import printable, shown
from plumbline.external import expand

_COMPRESSION = (".gz", ".bz2", ".xz", ".zip")


@dataclass(frozen=True)
class Record:
    """One record of a file.

    Attributes:
        file: path or URI.
        place: where in it, such as `line 3`.
        value: the fields.
    """

    file: str
    place: str
    value: dict[str, Any]

    def refuse(self, problem: str) -> InvalidInput:
        """The error for a record that cannot be used."""
        return InvalidInput(printable(f"{self.file}, {self.place}: {problem}"))

    def text(self, *names: str) -> str:
        """The first of these fields that is there, which must be text.

        Raises:
            InvalidInput: none is there, or it is no text.
        """
        for name in names:
            if name in self.value:
                value = self.value[name]
                if not isinstance(value, str):
                    raise self.refuse(f"field '{name}' is {shown(value)}; expected text")
                return value
        raise self.refuse(f"has no field {_either(names)}; it has {_listed(list(self.value))}")


def read_records(uri: str, expected: str) -> list[Record]:
    """All records of a file, or of a folder's or glob's files in the order of their names.

    Args:
        uri: JSON array or object, JSON lines, or CSV with a header (`.csv`); UTF-8 with or without byte order mark; `.gz`, `.bz2`, `.xz`.
        expected: what the file holds, in words, for errors.

    Raises:
        InvalidInput: it cannot be found, opened or read, a record is no object, or there is none.
    """
    found: list[Record] = []
    for file in expand(uri):
        text = _text(file, expected)
        name = file.lower()
        for suffix in _COMPRESSION:
            name = name.removesuffix(suffix)
        for place, value in _csv(file, text, expected) if name.endswith(".csv") else _json(file, text, expected):
            if not isinstance(value, dict):
                raise InvalidInput(f"{file}, {place}: {shown(value)} is no JSON object; expected {expected}")
            found.append(Record(file, place, value))
    if not found:
        raise InvalidInput(f"'{uri}' holds no records; expected {expected}")
    return found


def _text(file: str, expected: str) -> str:
    try:
        with fsspec.open(file, "rb", compression="infer") as stream:
            data: bytes = stream.read()
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise InvalidInput(f"{file}: the compressed file is cut short or damaged ({error}); fetch it again") from error
    except (PermissionError, IsADirectoryError, FileNotFoundError) as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror or error}; give a file that you may read") from error
    except (zipfile.BadZipFile, ValueError) as error:
        raise InvalidInput(f"{file}: cannot be unpacked ({error}); give it as .gz, or not compressed") from error
    except OSError as error:
        if "gzip" in str(error).lower() or "data stream" in str(error).lower():
            raise InvalidInput(f"{file}: not compressed as its name says ({error}); expected {expected}") from error
        raise PlumblineError(f"{file} cannot be read: {error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInput(
            f"{file}, line {line}: not UTF-8 ({error.reason} at byte {error.start}); expected {expected}"
        ) from error


def _json(file: str, text: str, expected: str) -> Iterator[tuple[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidInput(
                f"{file}, line {error.lineno}: not JSON ({error.msg}); expected {expected}. If the file is cut short, write it anew"
            ) from error
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{file}: not JSON ({error}); expected {expected}") from error
        for number, value in enumerate(values, 1):
            yield f"record {number}", value
        return
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines:
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == lines[0][0]:  # one object over several lines
                try:
                    yield f"line {number}", json.loads(text)
                    return
                except (ValueError, RecursionError):
                    pass
            hint = (
                ""
                if number < lines[-1][0] or number == lines[0][0]
                else "; the last line is cut short: remove it, or write the file anew"
            )
            raise InvalidInput(f"{file}, line {number}: not JSON ({error}); expected {expected}{hint}") from error


def _csv(file: str, text: str, expected: str) -> Iterator[tuple[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise InvalidInput(f"{file}, line 1: a column's name stands twice in the header {shown(header)}; name each once")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise InvalidInput(
                    f"{file}, line {reader.line_num}: {len(fields)} fields under a header of {len(header)} ({_listed(header)}); "
                    f"expected {expected}"
                )
            yield f"line {reader.line_num}", dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise InvalidInput(f"{file}, line {reader.line_num}: not CSV ({error}); expected {expected}") from error


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "") if names else "none"
