"""Records of one file, at any fsspec URI: JSON array, JSON lines or Parquet, told apart by content; CSV and text by name."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.data.inflate import GZIP, ZSTD, Damaged, Inflated, check_encoding, plain_bytes
from plumbline.data.json_stream import elements
from plumbline.data.lines import Stream, TextUnit, csv_rows, json_lines, text_units
from plumbline.data.records import Broken, Item, plain
from plumbline.data.spans import SPAN_BYTES, Span, Window, spans_of
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.external import Stamp, stamp_of

BadRecords = Literal["fail", "skip"]
Container = Literal["JSON", "CSV", "text", "Parquet"]
BOM = b"\xef\xbb\xbf"
BUFFER = 1 << 20
PARQUET_ROWS = 1000

_ACCEPTED: dict[Container, str] = {
    "JSON": "one JSON object a line is accepted",
    "CSV": "as many fields as the header has, in UTF-8, are accepted",
    "text": "UTF-8 text is accepted",
    "Parquet": "rows are accepted",
}
_COMPRESSED = re.compile(r"\.(gz|gzip|zst|zstd)$", re.IGNORECASE)
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_TEXT = frozenset({".txt", ".text"})


def read_records(
    path: str,
    bad_records: BadRecords,
    shown: str | None = None,
    *,
    text_unit: TextUnit = "line",
    span: Span | None = None,
    stamp: Stamp | None = None,
) -> Iterator[Item]:
    """Yield the records of a file in order, one in memory at a time (of Parquet, one row group).

    Args:
        path: local path or fsspec URI.
        bad_records: `fail` raises at the first broken line; `skip` yields it as `Broken`. A damaged container (truncated
            gzip, JSON array cut off, unreadable Parquet) always raises: how much is missing cannot be told.
        shown: the file's name in messages; default the path.
        text_unit: what a record of a text file is.
        span: read only these lines; see `spans_of`.
        stamp: what the file was when the work began; default what it is now.

    Raises:
        InvalidInput: FILE:LINE and what is wrong there; or there is no file, or not one record in it.
        PlumblineError: the file cannot be reached now, or is another than it was when the work (or reading) began.
    """
    shown = shown or path
    found = False
    with _opened(path, shown, stamp) as stream:
        container, items = _items(stream, path, shown, text_unit, span)
        for index, line, value in items:
            if isinstance(value, Broken) and bad_records == "fail":
                raise InvalidInput(
                    f"{shown}:{line}: {value.reason}: {value.excerpt or '(nothing)'}; {_ACCEPTED[container]}; "
                    "set badRecords: skip to drop and count such lines"
                )
            found = found or not isinstance(value, Broken)
            yield index, line, value
    if not found and span is None:
        raise InvalidInput(f"{shown} holds no record; give a file with at least one, or leave it out of the sources")


@contextmanager
def _opened(path: str, shown: str, stamp: Stamp | None) -> Iterator[BinaryIO]:
    """The raw bytes of a file; what goes wrong while they are read comes out in plain words."""
    try:
        before = stamp or stamp_of(path)
        try:
            with fsspec.open(path, "rb") as stream:
                if stamp is not None:
                    _check_unchanged(path, shown, before)
                yield cast(BinaryIO, stream)
        except InvalidInput:  # what is broken may only be half written
            _check_unchanged(path, shown, before)
            raise
        _check_unchanged(path, shown, before)
    except FileNotFoundError as error:
        raise InvalidInput(f"{shown} does not exist where the stage runs; give a path that all nodes see") from error
    except (IsADirectoryError, PermissionError) as error:
        raise InvalidInput(f"{shown} cannot be read: {error.strerror or error}") from error
    except OSError as error:
        raise PlumblineError(f"{shown} cannot be read now: {error}") from error


def _check_unchanged(path: str, shown: str, before: Stamp) -> None:
    now = stamp_of(path)
    if now != before:
        raise PlumblineError(
            f"{shown} changed while it was read ({before.size:,} bytes, then {now.size:,}; or its time or version); "
            "run again when nothing writes to it"
        )


def spans_of_lines(path: str, text_unit: TextUnit) -> list[Span]:
    """Spans by which tasks can share a file; none where it is no plain file of lines, or too small to be worth it.

    CSV is never shared: a quote that stands alone would shift what a row is in all later spans.

    Raises:
        PlumblineError: the file cannot be reached now.
    """
    with _opened(path, path, None) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        if size < 2 * SPAN_BYTES:
            return []
        text = io.BufferedReader(cast(io.RawIOBase, stream), BUFFER)
        head = text.peek(64)
        first, container = head.removeprefix(BOM).lstrip()[:1], container_of(path, head)
        lines = container == "text" and text_unit == "line" and not head.startswith((GZIP, ZSTD))
        if not lines and (container != "JSON" or first != b"{" or _is_pretty(text)):
            return []
    return spans_of(path, size)


def container_of(path: str, head: bytes) -> Container:
    """What kind of file it is, by its first plain bytes, or by its name where content cannot tell."""
    if head.startswith(b"PAR1"):
        return "Parquet"
    suffix = PurePosixPath(_COMPRESSED.sub("", path)).suffix.lower()
    return "CSV" if suffix in _DELIMITERS else "text" if suffix in _TEXT else "JSON"


def _items(
    stream: BinaryIO, path: str, shown: str, text_unit: TextUnit, span: Span | None
) -> tuple[Container, Iterator[Item]]:
    magic = stream.read(4)
    stream.seek(0)
    if magic == b"PAR1":
        return "Parquet", _parquet(stream, shown)
    raw = plain_bytes(stream, shown)
    if span is not None:
        raw = Window(stream, span)
    buffered: Stream = io.BufferedReader(raw, BUFFER)
    try:
        head = buffered.peek(64)
    except Damaged as error:
        raise _cut_off(shown, 1, cast(Inflated, raw).kind, error) from error
    check_encoding(head, shown)
    skipped = len(BOM) if head.startswith(BOM) else 0
    buffered.read(skipped)
    container = container_of(path, head)
    offset, lines = (skipped, 0) if span is None else (span.start + skipped, span.lines)
    match container:
        case "CSV":
            suffix = PurePosixPath(_COMPRESSED.sub("", path)).suffix.lower()
            items = csv_rows(buffered, shown, _DELIMITERS[suffix])
        case "text":
            items = text_units(buffered, text_unit, offset, lines)
        case _ if head[skipped:].lstrip()[:1] == b"[":
            items = elements(buffered, shown, array=True)
        case _ if span is None and _is_pretty(buffered):
            items = elements(buffered, shown, array=False)
        case _:
            items = json_lines(buffered, offset, lines)
    return container, _inflating(items, raw, shown)


def _inflating(items: Iterator[Item], raw: Any, shown: str) -> Iterator[Item]:
    """The items; data that break say after which line."""
    line = 1
    try:
        for item in items:
            line = item[1]
            yield item
    except Damaged as error:
        raise _cut_off(shown, line, raw.kind, error) from error


def _cut_off(shown: str, line: int, kind: str, error: Damaged) -> InvalidInput:
    return InvalidInput(
        f"{shown}:{line}: the {kind} data end or break after this line ({error}); the file was cut off: fetch it again"
    )


def _is_pretty(text: io.BufferedReader[Any]) -> bool:
    """Whether JSON objects are written over several lines: the first ends open, and the next begins with a name."""
    lines = text.peek(BUFFER).split(b"\n", 2)
    return len(lines) > 1 and lines[0].rstrip()[-1:] in (b"{", b"[", b",") and lines[1].lstrip()[:1] == b'"'


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
            f"{shown}: Parquet that cannot be read after row {index}: {plain(error)}; write it again"
        ) from error
