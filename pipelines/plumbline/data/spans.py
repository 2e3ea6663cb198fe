"""One big file as spans of whole lines, or of Parquet's row groups, so that several tasks share it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec

from plumbline.data.measured import Progress

SPAN_BYTES = 64 << 20
"""Size of a span: some seconds of work, so that tasks end evenly and starting one costs nothing in comparison."""
MIB = 1 << 20
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Span:
    """A stretch of a file: bytes from `start` to `end` that are whole lines, after `lines` lines; of a Parquet file row groups
    from `start` to `end`, after `lines` rows."""

    start: int
    end: int
    lines: int


class Window(io.RawIOBase):
    """The bytes of a span of lines."""

    def __init__(self, stream: BinaryIO, span: Span) -> None:
        stream.seek(span.start)
        self._stream, self._left = stream, span.end - span.start

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes of the span."""
        data = self._stream.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


def spans_of(path: str, size: int, target: int = SPAN_BYTES, progress: Progress = lambda done, total: None) -> list[Span]:
    """Spans of about `target` bytes that together are the file; a file of fewer than two is one span.

    The file is read once, to count lines: so every record has its true line number, whoever reads it.

    Args:
        path: a file of lines (JSON lines, or text by lines), not compressed; local path or fsspec URI.
        size: its bytes.
        target: bytes of a span.
        progress: told how many MiB are counted, of how many.
    """
    if size < 2 * target:
        return [Span(0, size, 0)]
    with fsspec.open(path, "rb") as stream:
        spans = []
        for span in _spans(stream, target):
            spans.append(span)
            progress(span.end // MIB, size // MIB)
        return spans


def _spans(stream: BinaryIO, target: int) -> Iterator[Span]:
    text = io.BufferedReader(cast(io.RawIOBase, stream), _CHUNK)
    start = position = first = lines = 0
    while chunk := text.read(_CHUNK):
        position += len(chunk)
        lines += chunk.count(b"\n")
        while position - start >= target and not chunk.endswith(b"\n") and (chunk := text.readline(_CHUNK)):
            position += len(chunk)
            lines += chunk.count(b"\n")
        if position - start >= target:
            yield Span(start, position, first)
            start, first = position, lines
    if position > start:
        yield Span(start, position, first)
