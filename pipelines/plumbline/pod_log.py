"""What a stage prints, into its Pod's log too.

The Ray Jobs API keeps a driver's output in a file in the head Pod, where `kubectl logs` does not see it. Process 1 of that
container writes to the Pod's log; we may write there as well.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

POD_OUTPUT = Path("/proc/1/fd/1")


class _Mirrored:
    """A text stream whose whole lines also go to a descriptor. A line that does not fit there now is left out."""

    def __init__(self, stream: TextIO, descriptor: int) -> None:
        self._stream, self._descriptor, self._line = stream, descriptor, ""

    def write(self, text: str) -> int:
        lines, newline, self._line = (self._line + text).rpartition("\n")
        if newline:
            with suppress(OSError):
                os.write(self._descriptor, f"{lines}\n".encode(errors="replace"))
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def mirror_output(target: Path = POD_OUTPUT) -> None:
    """Send standard output and error of this process to `target` too, unless they go there already or it cannot be opened."""
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)  # a full pipe must not hold the stage up
    except OSError:
        return
    if os.path.sameopenfile(descriptor, 1):
        os.close(descriptor)
        return
    sys.stdout = _Mirrored(sys.stdout, descriptor)
    sys.stderr = _Mirrored(sys.stderr, descriptor)
