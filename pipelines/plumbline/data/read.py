"""Records of one file: JSON array, JSON lines (both also gzipped) or Parquet, told apart by content, at any fsspec URI."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.errors import InvalidInput, PlumblineError

BadRecords = Literal["fail", "skip"]
BOM = b"\xef\xbb\xbf"
BUFFER = 1 << 20
PARQUET_ROWS = 1000

_ESCAPED = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of bytes that are not UTF-8
_GAP = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Broken:
    """A line that holds no record: why, and how it begins."""

    reason: str
    excerpt: str


Item = tuple[int, int, dict[str, Any] | Broken]
"""Record index from 0, line number from 1 (in Parquet the row number), the record."""


def read_records(path: str, bad_records: BadRecords, shown: str | None = None) -> Iterator[Item]:
    """Yield the records of a file in order. JSON lines and Parquet are streamed; a JSON array is held in memory.

    Args:
        path: local path or fsspec URI.
        bad_records: `fail` raises at the first broken line; `skip` yields it as `Broken`. A damaged container (truncated
            gzip, JSON array cut off, unreadable Parquet) always raises: how much is missing cannot be told.
        shown: the file's name in messages; default the path.

    Raises:
        InvalidInput: FILE:LINE and what is wrong there; or there is no file, or not one record in it.
        PlumblineError: the file cannot be reached now.
    """
    shown = shown or path
    found = False
    with _opened(path, shown) as stream:
        for index, line, value in _items(stream, shown):
            if isinstance(value, Broken) and bad_records == "fail":
                raise InvalidInput(
                    f"{shown}:{line}: {value.reason}: {value.excerpt or '(nothing)'}; one JSON object a line is accepted; "
                    "set badRecords: skip to drop and count such lines"
                )
            found = found or not isinstance(value, Broken)
            yield index, line, value
    if not found:
        raise InvalidInput(f"{shown} holds no record; give a file with at least one, or leave it out of the sources")


@contextmanager
def _opened(path: str, shown: str) -> Iterator[BinaryIO]:
    """The raw bytes of a file; what goes wrong while they are read comes out in plain words."""
    try:
        with fsspec.open(path, "rb") as stream:
            yield cast(BinaryIO, stream)
    except FileNotFoundError as error:
        raise InvalidInput(f"{shown} does not exist where the stage runs; give a path that all nodes see") from error
    except (IsADirectoryError, PermissionError) as error:
        raise InvalidInput(f"{shown} cannot be read: {error.strerror or error}") from error
    except OSError as error:
        raise PlumblineError(f"{shown} cannot be read now: {error}") from error


def _items(stream: BinaryIO, shown: str) -> Iterator[Item]:
    magic = stream.read(4)
    stream.seek(0)
    if magic == b"PAR1":
        yield from _parquet(stream, shown)
        return
    raw = _Inflated(stream) if magic[:2] == b"\x1f\x8b" else cast(io.RawIOBase, stream)
    text = io.BufferedReader(raw, BUFFER)
    line = 1
    try:
        if _first_byte(text) == b"[":
            yield from _array(text.read().removeprefix(BOM), shown)
            return
        for item in _lines(text):
            line = item[1]
            yield item
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput(
            f"{shown}:{line}: the gzip data end or break after this line ({error}); the file was cut off: fetch it again"
        ) from error


class _Inflated(io.RawIOBase):
    """Gzip data as they come: `GzipFile.readinto` itself would lose what precedes a cut in the same buffer."""

    def __init__(self, stream: BinaryIO) -> None:
        self._file = gzip.GzipFile(fileobj=stream)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _first_byte(text: io.BufferedReader[io.RawIOBase]) -> bytes:
    return text.peek(64).removeprefix(BOM).lstrip()[:1]


def _lines(text: io.BufferedReader[io.RawIOBase]) -> Iterator[Item]:
    blank: list[int] = []  # blank lines are broken only if something follows: newlines at the end are fine
    for number, raw in enumerate(text, 1):
        raw = raw.removeprefix(BOM) if number == 1 else raw
        if not raw.strip():
            blank.append(number)
            continue
        for skipped in blank:
            yield skipped - 1, skipped, Broken("blank line", "")
        blank.clear()
        yield number - 1, number, _record(raw)


def _record(raw: bytes) -> dict[str, Any] | Broken:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return Broken("invalid UTF-8", f"byte 0x{raw[error.start]:02x} at position {error.start + 1}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Broken("broken JSON", f"{_plain(error)}: {_excerpt(text)}")
    return value if isinstance(value, dict) else Broken("not an object", _excerpt(text))


def _array(raw: bytes, shown: str) -> Iterator[Item]:
    text = raw.decode(errors="surrogateescape")
    position = _GAP.match(text).end() + 1  # type: ignore[union-attr]  # it matches everywhere; 1 is the bracket
    line, counted, index = 1, 0, 0

    def skip_gap(start: int) -> int:
        return _GAP.match(text, start).end()  # type: ignore[union-attr]

    def cut_off(where: int, why: str) -> InvalidInput:
        at = text.count("\n", 0, where) + 1
        return InvalidInput(
            f"{shown}:{at}: broken JSON array ({why}) near: {_excerpt(text[where:]) or 'the end of the file'}; "
            "what comes after it cannot be read: repair the file, or write one object a line"
        )

    position = skip_gap(position)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise cut_off(getattr(error, "pos", position), _plain(error)) from error
        element = text[position:end]
        escaped = _ESCAPED.search(element)
        if escaped:
            yield index, line, Broken("invalid UTF-8", f"byte 0x{ord(escaped.group()) - 0xDC00:02x}")
        elif not isinstance(value, dict):
            yield index, line, Broken("not an object", _excerpt(element))
        else:
            yield index, line, value
        index, position = index + 1, skip_gap(end)
        if text[position : position + 1] == ",":
            position = skip_gap(position + 1)
        elif text[position : position + 1] != "]":
            raise cut_off(position, "a comma or ] is expected")
    if text[position + 1 :].strip():
        raise cut_off(position + 1, "text after the closing ]")


def _parquet(stream: BinaryIO, shown: str) -> Iterator[Item]:
    index = 0
    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=PARQUET_ROWS):
            for record in batch.to_pylist():
                yield index, index + 1, record
                index += 1
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise  # the file system's own; Arrow's are plain
        raise InvalidInput(
            f"{shown}: Parquet that cannot be read after row {index}: {_plain(error)}; write it again"
        ) from error


def _plain(error: BaseException) -> str:
    return str(error).splitlines()[0].split(": line ")[0] if str(error) else type(error).__name__


def _excerpt(text: str, length: int = 80) -> str:
    line = " ".join(text[: 2 * length].encode(errors="replace").decode().split())
    return line if len(line) <= length else line[:length] + "…"
