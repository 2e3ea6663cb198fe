"""The journal of replies: what a killed stage has asked already, it does not ask again."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import BinaryIO, Self

from plumbline.artifacts import Workspace
from plumbline.errors import PlumblineError

REPLIES = "replies"
"""Folder of the workspace where paid answers are kept, outside of checkpoints."""
PART_LINES = 64  # replies in one object of a remote store, which cannot append
PARTS_READ = 1000  # objects fetched at the same time


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        text: the reply.
        finish_reason: `stop`, `length` (cut at max_tokens), `context_length_exceeded` (the prompt alone is too long), or `context_cut` (it lost its
            beginning).
        prompt_tokens, completion_tokens: what the call took; 0 where nobody counts.
        problem: why there is no answer in `text`, where the call was paid and brought none.
    """

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    problem: str | None = None


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
        self._writing = asyncio.Lock()
        self.replies: dict[str, Reply] = {}
        if self._folder.filesystem.exists(self._folder.root):
            paths = sorted(self._folder.filesystem.glob(self._folder.path("*.jsonl")))
            for first in range(0, len(paths), PARTS_READ):
                for path, content in sorted(self._folder.filesystem.cat(paths[first : first + PARTS_READ]).items()):
                    self._read(path, content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._flush()
        if self._stream is not None:
            self._stream.close()

    def add(self, key: str, reply: Reply) -> None:
        """Keep one reply. On a local disk it is safe when this returns, however the process ends."""
        self.replies[key] = reply
        self._pending.append(_line(key, reply))
        if self._folder.is_local or len(self._pending) >= PART_LINES:
            self._flush()

    async def keep(self, key: str, reply: Reply) -> None:
        """Keep one reply, safe when this returns, also in a remote store and when the machine fails.

        Replies that come while one is being written are written together, as the next part.
        """
        self.replies[key] = reply
        self._pending.append(_line(key, reply))
        async with self._writing:
            lines = self._take()
            if lines:
                await asyncio.to_thread(self._write, lines, durable=True)

    def _flush(self) -> None:
        lines = self._take()
        if lines:
            self._write(lines)

    def _take(self) -> bytes:
        lines, self._pending = b"".join(self._pending), []
        return lines

    def _write(self, lines: bytes, durable: bool = False) -> None:
        if not self._folder.is_local:
            self._parts += 1
            self._folder.filesystem.pipe_file(self._folder.path(f"{self._name}-{self._parts:06d}.jsonl"), lines)
            return
        if self._stream is None:
            self._folder.filesystem.makedirs(self._folder.root, exist_ok=True)
            self._stream = open(self._folder.path(f"{self._name}.jsonl"), "ab", buffering=0)  # noqa: SIM115
        try:
            while lines:  # a full disk takes a part of it first
                lines = lines[self._stream.write(lines) :]
            if durable:
                os.fsync(self._stream.fileno())
        except OSError:  # the half line stays the last of its file
            self._stream.close()
            self._stream, self._name = None, uuid.uuid4().hex
            raise

    def _read(self, path: str, content: bytes) -> None:
        for number, line in enumerate(content.split(b"\n")[:-1], 1):  # what follows the last line end was never finished
            try:
                row = json.loads(line)
                key = row.pop("key")
                self.replies[key] = Reply(**row)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise PlumblineError(f"{path}:{number}: not a line of the journal ({error}); delete this file") from error


def _line(key: str, reply: Reply) -> bytes:
    return json.dumps({"key": key, **asdict(reply)}).encode() + b"\n"
