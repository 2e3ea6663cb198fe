"""Reading benchmark files row by row, so that every complaint names file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from plumbline.errors import InvalidInput, PlumblineError
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
        return InvalidInput(f"{self.file}:{self.line}: {_shown(self.value)} is not accepted; expected {expected}")


def json_rows(uri: str, expected: str) -> Iterator[Row]:
    """The objects of JSONL files, plain or compressed; blank lines are skipped.

    Args:
        uri: file, glob or folder.
        expected: what a row holds, in words, for errors.

    Raises:
        InvalidInput: a line is not UTF-8 or not a JSON object, or there is no row at all.
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
                raise InvalidInput(f"{file}:{number}: {_shown(value)} is no JSON object; expected {expected}")
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


def _shown(value: Any, limit: int = 120) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"
