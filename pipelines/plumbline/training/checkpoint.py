"""Checkpoints of a training stage: safetensors and JSON, whole or not there."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load, load_file, save, save_file

from plumbline.artifacts import file_digest

logger = logging.getLogger(__name__)
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A stage after `step` optimizer steps.

    Attributes:
        step: steps done.
        parameters: trainable parameters, whole, by parameter name.
        adapter: the same under PEFT's names.
        optimizer: moments as `TrainEngine.optimizer_state` gives them.
        history: metrics of every step so far.
        adapter_config: what PEFT needs to load the adapter.
    """

    step: int
    parameters: dict[str, torch.Tensor]
    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    history: list[dict[str, float]]
    adapter_config: dict[str, Any]


class CheckpointStore:
    """Checkpoints below one folder URI. A damaged or half-written one is passed over for the one before."""

    def __init__(self, uri: str, keep: int = 2) -> None:
        self.uri, self.keep = uri, keep
        self._filesystem, self._root = fsspec.core.url_to_fs(uri)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write, then remove the oldest beyond `keep`."""
        final = f"{self._root}/step-{checkpoint.step:08d}"
        local = isinstance(self._filesystem, LocalFileSystem)
        if local:
            Path(self._root).mkdir(parents=True, exist_ok=True)
            staging = Path(self._root) / f".{uuid.uuid4().hex}"
            staging.mkdir()
        else:
            staging = Path(tempfile.mkdtemp(prefix="plumbline-checkpoint-"))
        try:
            for part in ("parameters", "adapter", "optimizer"):
                save_file(
                    {name: t.contiguous() for name, t in getattr(checkpoint, part).items()}, staging / f"{part}.safetensors"
                )
            digests = {path.name: file_digest(path) for path in staging.iterdir()}
            state = {"step": checkpoint.step, "history": checkpoint.history, "sha256": digests}
            state["adapterConfig"] = checkpoint.adapter_config
            state["self"] = _digest(state)
            (staging / STATE).write_text(json.dumps(state))
            if local:
                shutil.rmtree(final, ignore_errors=True)
                staging.rename(final)
            else:
                for path in sorted(staging.iterdir(), key=lambda path: path.name == STATE):  # the state comes last
                    self._filesystem.put_file(str(path), f"{final}/{path.name}")
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        for old in self._folders()[: -self.keep]:
            self._filesystem.rm(old, recursive=True)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None."""
        for folder in reversed(self._folders()):
            try:
                return self._load(folder)
            except (FileNotFoundError, ValueError, KeyError) as error:  # other errors are not the checkpoint's fault
                logger.warning("checkpoint %s is damaged (%s); trying the one before", folder, error)
        return None

    def load(self, step: int) -> Checkpoint:
        """The checkpoint after `step` steps."""
        return self._load(f"{self._root}/step-{step:08d}")

    def save_tensors(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keep what is computed once, beside the checkpoints."""
        data = save(tensors)
        path = f"{self._root}/{name}.tensors"  # its SHA-256, then safetensors
        self._filesystem.makedirs(self._root, exist_ok=True)
        self._filesystem.pipe_file(f"{path}.part", hashlib.sha256(data).digest() + data)
        self._filesystem.mv(f"{path}.part", path)

    def load_tensors(self, name: str) -> dict[str, torch.Tensor] | None:
        """What `save_tensors` kept; None if there is nothing, or it is damaged."""
        path = f"{self._root}/{name}.tensors"  # its SHA-256, then safetensors
        if not self._filesystem.exists(path):
            return None
        content = self._filesystem.cat_file(path)
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            logger.warning("%s is damaged; computing it again", path)
            return None
        return load(content[32:])

    def _folders(self) -> list[str]:
        if not self._filesystem.exists(self._root):
            return []
        return sorted(name for name in self._filesystem.ls(self._root, detail=False) if Path(name).name.startswith("step-"))

    def _load(self, folder: str) -> Checkpoint:
        with tempfile.TemporaryDirectory(prefix="plumbline-checkpoint-") as copy:
            local = Path(folder) if isinstance(self._filesystem, LocalFileSystem) else Path(copy)
            if local == Path(copy):
                self._filesystem.get(folder.rstrip("/") + "/", copy, recursive=True)
            state: dict[str, Any] = json.loads((local / STATE).read_text())
            if state.pop("self") != _digest(state):
                raise ValueError(f"{STATE} does not have its checksum")
            for name, digest in state["sha256"].items():
                if file_digest(local / name) != digest:
                    raise ValueError(f"{name} does not have its checksum")
            parts = {part: load_file(local / f"{part}.safetensors") for part in ("parameters", "adapter", "optimizer")}
        return Checkpoint(step=state["step"], history=state["history"], adapter_config=state["adapterConfig"], **parts)


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
