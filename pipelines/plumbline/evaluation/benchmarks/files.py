"""Reading benchmark files row by row, so that every complaint names file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.evaluation.shown import shown
from plumbline.external import expand


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        file: path or URI.
        line: from 1; the last one of a row that spans several.
        id: `FILE:LINE` with the file relative to the folder that all files of the task share.
        value: the fields.
    """

    file: str
    line: int
    id: str
    value: Any

    def refuse(self, expected: str) -> InvalidInput:
        """The error for a row that is not what the benchmark reads."""
        return InvalidInput(f"{self.file}:{self.line}: {shown(self.value)} is not accepted; expected {expected}")


def json_rows(uri: str, expected: str) -> Iterator[Row]:
    """The objects of JSONL files, plain or compressed; blank lines are skipped.

    Args:
        uri: file, glob or folder.
        expected: what a row holds, in words, for errors.

    Raises:
        InvalidInput: a line is not UTF-8, not a JSON object or holds half of a character, or there is no row at all.
    """

    def parse(stream: BinaryIO, file: str) -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
                raise InvalidInput(f"{file}:{number}: not JSON ({error}); expected {expected}") from error
            if not isinstance(value, dict):
                raise InvalidInput(f"{file}:{number}: {shown(value)} is no JSON object; expected {expected}")
            _refuse_halves(line, value, f"{file}:{number}")
            yield number, value

    return _rows(uri, parse, expected)


def csv_rows(uri: str, expected: str) -> Iterator[Row]:
    """The rows of CSV files without header, plain or compressed; blank lines are skipped.

    Args:
        uri: file, glob or folder.
        expected: what a row holds, in words, for errors.

    Raises:
        InvalidInput: a file is not UTF-8 or not CSV, or there is no row at all.
    """

    def parse(stream: BinaryIO, file: str) -> Iterator[tuple[int, Any]]:
        reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
        try:
            for fields in reader:
                if fields:
                    yield reader.line_num, fields
        except (csv.Error, UnicodeDecodeError) as error:
            raise InvalidInput(f"{file}:{reader.line_num + 1}: not CSV in UTF-8 ({error}); expected {expected}") from error

    return _rows(uri, parse, expected)


def table_rows(uri: str, columns: Sequence[str], expected: str) -> Iterator[Row]:
    """The rows of CSV files with a header, as objects; other columns than those asked for are kept too.

    Args:
        uri: file, glob or folder.
        columns: names that the header must hold, in any case of letters; the objects have them as written here.
        expected: what a row holds, in words, for errors.

    Raises:
        InvalidInput: a file is not UTF-8 or not CSV, its header lacks a column or holds one twice, a row is longer or shorter than
            its header, or there is no row at all.
    """
    header: list[str] = []
    file, found = None, False
    for row in csv_rows(uri, expected):
        if row.file != file:
            file, header = row.file, _header(row, columns, expected)
            continue
        if len(row.value) != len(header):
            raise InvalidInput(
                f"{row.file}:{row.line}: {len(row.value)} fields under a header of {len(header)}; expected {expected}"
            )
        found = True
        yield replace(row, value=dict(zip(header, row.value, strict=True)))
    if not found:
        raise InvalidInput(f"{file}:1: '{uri}' holds no rows below its header; expected {expected}")


def _header(row: Row, columns: Sequence[str], expected: str) -> list[str]:
    wanted = {name.casefold(): name for name in columns}
    header = [wanted.get(name.strip().casefold(), name.strip()) for name in row.value]
    missing = [name for name in columns if name not in header]
    if missing:
        raise InvalidInput(
            f"{row.file}:{row.line}: the header {shown(row.value)} has no column {', '.join(missing)}; expected {expected}"
        )
    twice = [name for name in columns if header.count(name) > 1]
    if twice:
        raise InvalidInput(f"{row.file}:{row.line}: the header names {', '.join(twice)} twice; name each column once")
    return header


def json_documents(uri: str, expected: str) -> Iterator[Row]:
    """Files of one JSON object each, plain or compressed.

    Args:
        uri: file, glob or folder.
        expected: what a file holds, in words, for errors.

    Raises:
        InvalidInput: a file is not UTF-8, not JSON or no object.
    """

    def parse(stream: BinaryIO, file: str) -> Iterator[tuple[int, Any]]:
        content = stream.read()
        try:
            value = json.loads(content.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", 1)
            raise InvalidInput(f"{file}:{line}: not JSON ({error}); expected {expected}") from error
        if not isinstance(value, dict):
            raise InvalidInput(f"{file}:1: {shown(value)} is no JSON object; expected {expected}")
        _refuse_halves(content, value, f"{file}:1")
        yield 1, value

    return _rows(uri, parse, expected)


def _refuse_halves(content: bytes, value: Any, where: str) -> None:
    """JSON can write half of a character, which no request and no report can hold."""
    if b"\\ud" in content.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"{where}: holds half of a character ({error.object[error.start]!a}); write the text anew, in UTF-8"
            ) from error


def _rows(uri: str, parse: Callable[[BinaryIO, str], Iterator[tuple[int, Any]]], expected: str) -> Iterator[Row]:
    files = expand(uri)
    root = os.path.commonpath([str(Path(file).parent) for file in files])
    found = False
    for file in files:
        name = os.path.relpath(file, root)
        try:
            with fsspec.open(file, "rb", compression="infer") as stream:
                for line, value in parse(stream, file):
                    found = True
                    yield Row(file, line, f"{name}:{line}", value)
        except (EOFError, zlib.error) as error:
            raise InvalidInput(f"{file}: the compressed file is cut short or damaged ({error}); fetch it again") from error
        except gzip.BadGzipFile as error:
            raise InvalidInput(f"{file}:1: not compressed as its name says ({error}); expected {expected}") from error
        except OSError as error:
            raise PlumblineError(f"{file} cannot be read: {error}") from error
    if not found:
        raise InvalidInput(f"{files[0]}:1: '{uri}' holds no rows; expected {expected}")
