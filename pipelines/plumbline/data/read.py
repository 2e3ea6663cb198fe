"""Records of one file, at any fsspec URI: JSON array, JSON lines or Parquet, told apart by content; CSV and text by name."""

from __future__ import annotations

import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, NoReturn, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.data.inflate import Damaged, Inflated
from plumbline.data.json_stream import LISTS, Shape, elements
from plumbline.data.kinds import HEAD, PARQUET, check_kind, compression, looks_like
from plumbline.data.lines import Stream, TextUnit, csv_rows, json_lines, text_units
from plumbline.data.measured import Progress
from plumbline.data.records import Broken, Item, excerpt, plain
from plumbline.data.spans import SPAN_BYTES, Span, Window, spans_of
from plumbline.errors import InvalidInput, PlumblineError, one_line
from plumbline.external import Stamp, stamp_of

BadRecords = Literal["fail", "skip"]
Container = Literal["JSON", "CSV", "text", "Parquet"]
BOM = b"\xef\xbb\xbf"
BUFFER = 1 << 20
PARQUET_ROWS = 1000
SHOWN = 160  # characters of a broken line in a message

_ACCEPTED: dict[Container, str] = {
    "JSON": "one JSON object a line is accepted",
    "CSV": "as many fields as the header has, in UTF-8, are accepted",
    "text": "UTF-8 text is accepted",
    "Parquet": "rows whose values can be read are accepted",
}
_COMPRESSED = re.compile(r"\.(gz|gzip|zst|zstd)$", re.IGNORECASE)
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_TEXT = frozenset({".txt", ".text"})
_JSON = re.compile(rb'\s*(?:\[\s*)?\{\s*"')
_LISTED = re.compile(
    rb'\s*\{\s*(?:"[^"\\]*"\s*:\s*(?:"(?:[^"\\]|\\.)*+"|[-+.\w]+)\s*,\s*)*+"(?:%s)"\s*:\s*\[\s*\{' % "|".join(LISTS).encode()
)
"""An object that has only plain values before a list of objects with such a name."""


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
        span: read only this stretch; see `spans_of_file`.
        stamp: what the file was when the work began; default what it is now.

    Raises:
        InvalidInput: FILE:LINE and what is wrong there; or there is no file, or not one record in it.
        PlumblineError: the file cannot be reached now, or is another than it was when the work (or reading) began.
    """
    shown = shown or path
    found, first = False, ""
    with _opened(path, shown, stamp) as stream:
        container, guess, items = _items(stream, path, shown, text_unit, span)
        for index, line, value in items:
            if isinstance(value, Broken) and bad_records == "fail":
                hint = (
                    f"it looks like {guess}" if guess and not found else "set badRecords: skip to drop and count such lines"
                )
                raise InvalidInput(
                    f"{shown}:{line}: {value.reason}: {excerpt(value.excerpt, SHOWN) or '(nothing)'}; {_ACCEPTED[container]}; {hint}"
                )
            if not isinstance(value, Broken):
                found = True
            elif not first:
                first = f", only broken ones: line {line}: {value.reason}: {excerpt(value.excerpt, SHOWN) or '(nothing)'}"
            yield index, line, value
    if not found and span is None:
        hint = f"it looks like {guess}" if guess else "give a file with at least one, or leave it out of the sources"
        raise InvalidInput(f"{shown} holds no record{first}; {hint}")


@contextmanager
def _opened(path: str, shown: str, stamp: Stamp | None) -> Iterator[BinaryIO]:
    """The raw bytes of a file; what goes wrong while they are read comes out in plain words."""
    try:
        before = stamp or stamp_of(path)
        try:
            with fsspec.open(path, "rb") if _has_ranges(path) else _copied(path) as stream:
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
    except Exception as error:  # clients of remote file systems pass on whatever their transport raises
        if isinstance(error, PlumblineError) or "://" not in path:
            raise
        raise PlumblineError(f"{shown} cannot be read now: {one_line(error)}") from error


def _has_ranges(path: str) -> bool:
    """Whether a file can be read from any place; some web servers only send the whole."""
    if not path.startswith(("http://", "https://")):
        return True
    filesystem, name = fsspec.core.url_to_fs(path)
    return bool(filesystem.info(name).get("partial"))


@contextmanager
def _copied(path: str) -> Iterator[BinaryIO]:
    filesystem, name = fsspec.core.url_to_fs(path)
    with tempfile.TemporaryFile() as copy:
        filesystem.get_file(name, copy)
        copy.seek(0)
        yield cast(BinaryIO, copy)


def _check_unchanged(path: str, shown: str, before: Stamp) -> None:
    now = stamp_of(path)
    if now != before:
        raise PlumblineError(
            f"{shown} changed while it was read ({before.size:,} bytes, then {now.size:,}; or its time or version); "
            "run again when nothing writes to it"
        )


def spans_of_file(path: str, text_unit: TextUnit, progress: Progress = lambda done, total: None) -> list[Span]:
    """Spans by which tasks can share a file; none where it is neither plain lines nor Parquet, or too small to be worth it.

    CSV is never shared: a quote that stands alone would shift what a row is in all later spans.

    Args:
        path: local path or fsspec URI.
        text_unit: what a record of a text file is.
        progress: see `spans_of`.

    Raises:
        InvalidInput: Parquet whose footer cannot be read.
        PlumblineError: the file cannot be reached now.
    """
    with _opened(path, path, None) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        if size < 2 * SPAN_BYTES or not _has_ranges(path):
            return []
        text = io.BufferedReader(cast(io.RawIOBase, stream), BUFFER)
        head = text.peek(HEAD)
        if head.startswith(PARQUET):
            return _spans_of_groups(stream, path)
        container = container_of(path, head)
        lines = container == "text" and text_unit == "line" and compression(head) is None
        if not lines and (container != "JSON" or _shape(head) is not None or not _JSON.match(head.removeprefix(BOM))):
            return []
    return spans_of(path, size, progress=progress)


def container_of(path: str, head: bytes) -> Container:
    """What kind of file it is, by its first plain bytes, or by its name where content cannot tell."""
    if head.startswith(PARQUET):
        return "Parquet"
    suffix = _suffix(path)
    is_csv = suffix in _DELIMITERS and not _JSON.match(head.removeprefix(BOM))
    return "CSV" if is_csv else "text" if suffix in _TEXT else "JSON"


def _suffix(path: str) -> str:
    """The last part of a name, without that of a compression."""
    if "://" in path:  # the first link of a chain, without the query of a signed URL
        path = path.partition("::")[0].partition("?")[0]
    return PurePosixPath(_COMPRESSED.sub("", path)).suffix.lower()


def _items(
    stream: BinaryIO, path: str, shown: str, text_unit: TextUnit, span: Span | None
) -> tuple[Container, str | None, Iterator[Item]]:
    """What kind of file it is, what it looks like if it is none of JSON, and its items."""
    head = stream.read(HEAD)
    stream.seek(0)
    if head.startswith(PARQUET):
        return "Parquet", None, _parquet(stream, shown, span)
    check_kind(head, shown)
    kind = compression(head)
    raw: Any = Inflated(stream, kind, shown) if kind else Window(stream, span) if span else stream
    buffered: Stream = io.BufferedReader(raw, BUFFER)
    try:
        head = buffered.peek(BUFFER)
    except Damaged as error:
        raise _cut_off(shown, 1, cast(Inflated, raw).kind, error) from error
    if kind:
        check_kind(head, shown, kind)
    skipped = len(BOM) if head.startswith(BOM) else 0
    buffered.read(skipped)
    container = container_of(path, head)
    offset, lines = (skipped, 0) if span is None else (span.start + skipped, span.lines)
    match container:
        case "CSV":
            items = csv_rows(buffered, shown, _DELIMITERS[_suffix(path)])
        case "text":
            items = text_units(buffered, shown, text_unit, offset, lines)
        case _ if span is None and (shape := _shape(head)):
            items = elements(buffered, shown, shape)
        case _:
            items = json_lines(buffered, offset, lines)
    return container, looks_like(head) if container == "JSON" else None, _inflating(items, raw, shown)


def _shape(head: bytes) -> Shape | None:
    """How JSON that is not one object a line is laid out; None for lines."""
    head = head.removeprefix(BOM).lstrip()
    if head.startswith(b"["):
        return "array"
    if _LISTED.match(head):
        return "listed"
    # Over several lines: the first ends open, and the next begins with a name.
    lines = head.split(b"\n", 2)
    is_open = len(lines) > 1 and lines[0].rstrip()[-1:] in (b"{", b"[", b",")
    return "objects" if is_open and lines[1].lstrip()[:1] == b'"' else None


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


def _parquet(stream: BinaryIO, shown: str, span: Span | None) -> Iterator[Item]:
    index, groups = (0, None) if span is None else (span.lines, range(span.start, span.end))
    try:
        file = pq.ParquetFile(stream)
        repeated = [name for name, count in Counter(file.schema_arrow.names).items() if count > 1]
        if repeated:
            raise InvalidInput(f"{shown} has several columns of the name {repeated[0]!r}; name every column once")
        for batch in file.iter_batches(PARQUET_ROWS, groups):
            for record in _records(batch):
                yield index, index + 1, record
                index += 1
    except (pa.ArrowException, OSError) as error:
        _check_parquet(error, shown, index)


def _check_parquet(error: Exception, shown: str, rows: int) -> NoReturn:
    if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
        raise error  # the file system's own; Arrow's are plain
    raise InvalidInput(f"{shown}: Parquet that cannot be read after row {rows}: {plain(error)}; write it again") from error


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Broken]:
    """The rows; one with text that is not UTF-8, or with a date that Python cannot hold, is broken by itself."""
    try:
        yield from batch.to_pylist(maps_as_pydicts="lossy")
    except (ValueError, OverflowError) as error:
        if len(batch) == 1:
            yield Broken("invalid UTF-8" if isinstance(error, UnicodeError) else "unreadable value", plain(error))
        else:
            for i in range(len(batch)):
                yield from _records(batch.slice(i, 1))


def _spans_of_groups(stream: BinaryIO, shown: str) -> list[Span]:
    """Row groups, some together until they are worth a task; none where it would be one."""
    try:
        metadata = pq.ParquetFile(stream).metadata
    except (pa.ArrowException, OSError) as error:
        _check_parquet(error, shown, 0)
    spans: list[Span] = []
    start = size = first = rows = 0
    for group in range(metadata.num_row_groups):
        facts = metadata.row_group(group)
        size, rows = size + facts.total_byte_size, rows + facts.num_rows
        if size >= SPAN_BYTES or group == metadata.num_row_groups - 1:
            spans.append(Span(start, group + 1, first))
            start, size, first = group + 1, 0, rows
    return spans if len(spans) > 1 else []
