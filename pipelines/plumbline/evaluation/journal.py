"""The journal of replies: what a killed evaluation has asked already, it does not ask again."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import BinaryIO, Self

from plumbline.artifacts import Workspace
from plumbline.errors import PlumblineError

PART_LINES = 64  # replies in one object of a remote store, which cannot append


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        text: the reply.
        finish_reason: `stop`, `length` (cut at max_tokens), or `context_length_exceeded` (the prompt alone is too long).
    """

    text: str
    finish_reason: str


class Journal:
    """Replies by key, in JSON-lines files of a folder. Every attempt writes files of its own, so that a line that
    a killed one left half-written stays the last of its file. Use it as a context manager.

    Args:
        uri: folder, local or any fsspec URI.

    Raises:
        PlumblineError: a file is damaged elsewhere than in its last line.
    """

    def __init__(self, uri: str) -> None:
        self._folder = Workspace(uri)
        self._name, self._parts = uuid.uuid4().hex, 0
        self._stream: BinaryIO | None = None
        self._pending: list[bytes] = []
        self.replies: dict[str, Reply] = {}
        if self._folder.filesystem.exists(self._folder.root):
            for path in sorted(self._folder.filesystem.glob(self._folder.path("*.jsonl"))):
                self._read(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._flush()
        if self._stream is not None:
            self._stream.close()

    def add(self, key: str, reply: Reply) -> None:
        """Keep one reply. On a local disk it is safe when this returns, however the process ends."""
        self.replies[key] = reply
        self._pending.append(json.dumps({"key": key, **asdict(reply)}).encode() + b"\n")
        if self._folder.is_local or len(self._pending) >= PART_LINES:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        lines, self._pending = b"".join(self._pending), []
        if self._folder.is_local:
            if self._stream is None:
                self._folder.filesystem.makedirs(self._folder.root, exist_ok=True)
                self._stream = open(self._folder.path(f"{self._name}.jsonl"), "ab", buffering=0)  # noqa: SIM115
            self._stream.write(lines)
        else:
            self._parts += 1
            self._folder.filesystem.pipe_file(self._folder.path(f"{self._name}-{self._parts:06d}.jsonl"), lines)

    def _read(self, path: str) -> None:
        lines = self._folder.filesystem.cat_file(path).split(b"\n")
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line end was never finished
            try:
                row = json.loads(line)
                self.replies[row["key"]] = Reply(row["text"], row["finish_reason"])
            except (ValueError, KeyError, TypeError) as error:
                raise PlumblineError(f"{path}:{number}: not a line of the journal ({error}); delete this file") from error
