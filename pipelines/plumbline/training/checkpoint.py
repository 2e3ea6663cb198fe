"""Checkpoints of a training stage: every rank writes its own rows, behind the training's back; whole or not there.

STEP/state.json                        step, history, and how many shards there are
STEP/shard-SAVER-RANK.safetensors      rows of tensors that the rank keeps
STEP/shard-SAVER-RANK.json             which rows these are, and the file's checksum

`torch.distributed.checkpoint` would do the same, but for its metadata, which is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import safe_open
from safetensors.torch import load, save, save_file

from plumbline.artifacts import file_digest

logger = logging.getLogger(__name__)
STATE = "state.json"
PARAMETERS, OPTIMIZER = "parameters/", "optimizer/"
ADAPTER = "adapter"
"""Name of the finished adapter among the tensors that a store keeps."""


@dataclass(frozen=True)
class Piece:
    """What one rank keeps of a tensor.

    Attributes:
        rows: [n, …] on the CPU; the whole tensor where that has no dimension.
        start: number of the first row.
        shape: of the whole tensor.
    """

    rows: torch.Tensor
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A stage after `step` optimizer steps.

    Attributes:
        step: steps done.
        history: metrics of every step so far.
        adapter_config: what PEFT needs to load the adapter; None where whole weights are trained.
        shards: local file → what it holds: tensor's name → first row and the whole tensor's shape.
        extra: what the stage's source of data said of itself.
        copy: keeps a downloaded copy alive.
    """

    step: int
    history: list[dict[str, Any]]
    adapter_config: dict[str, Any] | None
    shards: dict[Path, dict[str, dict[str, Any]]]
    extra: dict[str, Any] | None = None
    copy: tempfile.TemporaryDirectory[str] | None = None

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every whole tensor: `parameters/NAME`, `optimizer/NAME|KEY`."""
        return {name: tuple(held["shape"]) for tensors in self.shards.values() for name, held in tensors.items()}

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of a tensor, whichever ranks wrote them; the whole tensor where it has no dimension.

        Raises:
            KeyError: no such tensor.
        """
        shape = self.shapes[name]
        end = shape[0] if stop is None and shape else stop or 0
        found = []
        for path, tensors in self.shards.items():
            if name not in tensors:
                continue
            first = tensors[name]["start"]
            with safe_open(path, framework="pt") as file:
                if not shape:
                    return file.get_tensor(name)
                part = file.get_slice(name)
                low, high = max(start, first), min(end, first + part.get_shape()[0])
                if low < high or start == end:
                    found.append((low, part[max(0, low - first) : max(0, high - first)]))
        return torch.cat([rows for _, rows in sorted(found, key=lambda pair: pair[0])])

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """Trained parameters, whole, by parameter name."""
        return self._whole(PARAMETERS)

    @property
    def optimizer(self) -> dict[str, torch.Tensor]:
        """The optimizer's state, whole: `NAME|exp_avg`, `NAME|exp_avg_sq`, `NAME|step`."""
        return self._whole(OPTIMIZER)

    def _whole(self, part: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(part): self.rows(name) for name in sorted(self.shapes) if name.startswith(part)}


class CheckpointStore:
    """Checkpoints below one folder URI. A damaged or half-written one is passed over for the one before."""

    def __init__(self, uri: str, keep: int = 2) -> None:
        self.uri, self.keep = uri, keep
        self._filesystem, self._root = fsspec.core.url_to_fs(uri)
        self._is_local = isinstance(self._filesystem, LocalFileSystem)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None."""
        for folder in reversed(self._folders()):
            try:
                return self._load(folder)
            except (FileNotFoundError, ValueError, KeyError) as error:  # other errors are not the checkpoint's fault
                logger.warning("checkpoint %s is damaged (%s); trying the one before", folder, error)
        return None

    def history(self) -> list[dict[str, Any]]:
        """Metrics of every step up to the newest checkpoint whose files are all there; only they are read."""
        for folder in reversed(self._folders()):
            if self._is_there(folder):
                history: list[dict[str, Any]] = _opened(self._filesystem.cat_file(f"{folder}/{STATE}"), STATE)["history"]
                return history
        return []

    def steps(self) -> list[int]:
        """Of all checkpoints, whole or not."""
        return [int(folder.rpartition("-")[2]) for folder in self._folders()]

    def load(self, step: int) -> Checkpoint:
        """The checkpoint after `step` steps.

        Raises:
            FileNotFoundError, ValueError, KeyError: it is not there, or not whole.
        """
        return self._load(self._folder(step))

    def prune(self, protected: Collection[int] = ()) -> None:
        """Remove all that is older than the newest `keep` whole checkpoints, but for the protected steps."""
        whole = 0
        for folder in reversed(self._folders()):
            if whole >= self.keep and int(folder.rpartition("-")[2]) not in protected:
                with suppress(FileNotFoundError):  # another group was quicker
                    self._filesystem.rm(folder, recursive=True)
            elif whole < self.keep:
                whole += self._is_there(folder)

    def save_tensors(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keep what is computed once, beside the checkpoints."""
        data = save({key: tensor.contiguous() for key, tensor in tensors.items()})
        self._write(f"{name}.tensors", hashlib.sha256(data).digest() + data)  # its SHA-256, then safetensors

    def load_tensors(self, name: str) -> dict[str, torch.Tensor] | None:
        """What `save_tensors` kept; None if there is nothing, or it is damaged."""
        path = f"{self._root}/{name}.tensors"
        if not self._filesystem.exists(path):
            return None
        content = self._filesystem.cat_file(path)
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            logger.warning("%s is damaged; computing it again", path)
            return None
        return load(content[32:])

    def put_shard(self, step: int, name: str, pieces: dict[str, Piece]) -> None:
        """Write one rank's rows, then the note that makes them count."""
        folder = self._folder(step)
        self._filesystem.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder if self._is_local else None) as scratch:
            file = Path(scratch) / f"{name}.safetensors"
            save_file({key: piece.rows.contiguous() for key, piece in pieces.items()}, file)
            note = {
                "sha256": file_digest(file),
                "tensors": {key: {"start": piece.start, "shape": piece.shape} for key, piece in pieces.items()},
            }
            if self._is_local:
                file.rename(Path(folder) / file.name)
            else:
                self._filesystem.put_file(str(file), f"{folder}/{file.name}")
        self._write(f"{Path(folder).name}/{name}.json", _sealed(note))

    def put_state(
        self,
        step: int,
        shards: list[str],
        history: list[dict[str, Any]],
        config: dict[str, Any] | None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Say what makes up the checkpoint. It is whole when all shards are there."""
        state = {"step": step, "shards": shards, "history": history, "adapterConfig": config, "extra": extra}
        self._write(f"{Path(self._folder(step)).name}/{STATE}", _sealed(state))

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._filesystem.pipe_file(f"{path}.part", data)
        self._filesystem.mv(f"{path}.part", path)

    def _folder(self, step: int) -> str:
        return f"{self._root}/step-{step:08d}"

    def _folders(self) -> list[str]:
        self._filesystem.invalidate_cache()
        if not self._filesystem.exists(self._root):
            return []
        return sorted(name for name in self._filesystem.ls(self._root, detail=False) if Path(name).name.startswith("step-"))

    def _is_there(self, folder: str) -> bool:
        """Whether all files of a checkpoint are there; their content is not looked at."""
        try:
            names = {Path(name).name for name in self._filesystem.ls(folder, detail=False)}
            shards = _opened(self._filesystem.cat_file(f"{folder}/{STATE}"), STATE)["shards"]
        except (FileNotFoundError, ValueError):
            return False
        return all(f"{name}.json" in names for name in shards)

    def _load(self, folder: str) -> Checkpoint:
        copy = None if self._is_local else tempfile.TemporaryDirectory(prefix="plumbline-checkpoint-")
        local = Path(copy.name) if copy else Path(folder)
        if copy:
            self._filesystem.get(folder.rstrip("/") + "/", copy.name, recursive=True)
        state = _opened((local / STATE).read_bytes(), STATE)
        shards = {}
        for name in state["shards"]:
            note = _opened((local / f"{name}.json").read_bytes(), f"{name}.json")
            file = local / f"{name}.safetensors"
            if file_digest(file) != note["sha256"]:
                raise ValueError(f"{file.name} does not have its checksum")
            shards[file] = note["tensors"]
        return Checkpoint(state["step"], state["history"], state["adapterConfig"], shards, state.get("extra"), copy)


class CheckpointWriter:
    """Writes one rank's part of checkpoints in the background: training goes on while they reach the disk.

    Args:
        store: where to.
        rank, size: of this process.
        saver: names this group of processes, so that shards of two groups are never mixed.
    """

    def __init__(self, store: CheckpointStore, rank: int, size: int, saver: int) -> None:
        self._store, self._rank = store, rank
        self._names = [f"shard-{saver:010d}-{i:05d}" for i in range(size)]
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self,
        step: int,
        pieces: dict[str, Piece],
        history: Iterable[dict[str, Any]],
        adapter_config: dict[str, Any] | None,
        protected: Collection[int] = (),
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Begin to write; the one before must be done first, so at most one copy of the state waits in memory.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        self._pending = self._thread.submit(self._put, step, pieces, list(history), adapter_config, set(protected), extra)

    def wait(self) -> None:
        """Until what was begun is written.

        Raises:
            OSError: it could not be.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _put(
        self,
        step: int,
        pieces: dict[str, Piece],
        history: list[dict[str, Any]],
        config: dict[str, Any] | None,
        protected: set[int],
        extra: dict[str, Any] | None,
    ) -> None:
        self._store.put_shard(step, self._names[self._rank], pieces)
        if self._rank == 0:
            self._store.put_state(step, self._names, history, config, extra)
            self._store.prune(protected)


def _sealed(content: dict[str, Any]) -> bytes:
    """JSON that carries its own checksum."""
    return json.dumps(content | {"self": _digest(content)}).encode()


def _opened(data: bytes, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(data)
    if content.pop("self") != _digest(content):
        raise ValueError(f"{name} does not have its checksum")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
