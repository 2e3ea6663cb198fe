"""Gzip and zstd data as plain bytes, as they come, with a bound on what a small file may grow to."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, BinaryIO

import pyarrow as pa

from plumbline.errors import InvalidInput

MAX_RATIO = 200
"""Bytes out for each byte in. JSON of real text shrinks 3 to 20 times; one repeated byte 1000 times (gzip) or more."""
RATIO_FROM = 256 << 20
"""Bytes out from which on the ratio counts: small files of one repeated record are harmless."""
MAX_INFLATED = 1 << 40
"""Bytes out of one file: 1 TiB."""


class Damaged(Exception):
    """Compressed data that end early or break."""


class Inflated(io.RawIOBase):
    """The plain bytes of a compressed stream; what precedes a cut is given out before `Damaged` is raised.

    Args:
        stream: compressed, at its beginning.
        kind: `gzip` or `zstd`.
        shown: the file's name in messages.
    """

    def __init__(self, stream: BinaryIO, kind: str, shown: str) -> None:
        self.kind = kind
        self._stream, self._shown = stream, shown
        self._file: Any = gzip.GzipFile(fileobj=stream) if self.kind == "gzip" else pa.CompressedInputStream(stream, "zstd")
        self._out = 0

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes.

        Raises:
            Damaged: the data end or break here.
            InvalidInput: they grow beyond all reason.
        """
        size = min(len(buffer), 1 << 16)  # small steps, because a step that meets the cut loses what it had
        try:
            data = self._file.read1(size) if self.kind == "gzip" else self._file.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Damaged(str(error)) from error
        except OSError as error:
            if error.errno is not None or type(error) is not OSError:
                raise  # the file system's own; Arrow's are plain
            raise Damaged(str(error).splitlines()[0]) from error
        buffer[: len(data)] = data
        self._out += len(data)
        self._check()
        return len(data)

    def _check(self) -> None:
        if self._out < RATIO_FROM:
            return
        taken = max(self._stream.tell(), 1)
        if self._out > MAX_INFLATED or self._out / taken > MAX_RATIO:
            raise InvalidInput(
                f"{self._shown}: {taken:,} bytes of {self.kind} data have grown to {self._out:,} and go on; "
                f"at most {MAX_RATIO} times and {MAX_INFLATED >> 40} TiB are accepted (is it a decompression bomb?); "
                "unpack it, or leave it out"
            )
