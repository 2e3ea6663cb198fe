"""Weights & Biases: a run on a server, or in offline files whose steps are read back."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from plumbline.api.stages.tracking import WandbSpec
from plumbline.training.tracking.tracker import PACE, Row, Subject, figures


class Wandb:
    """A run of a project, with the stage's fingerprint as its id."""

    def __init__(self, spec: WandbSpec, subject: Subject) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to its makers
        import wandb

        # Files of a run that is not offline are a copy of what the server has.
        keep = spec.mode == "offline"
        self._scratch = None if keep else tempfile.TemporaryDirectory(prefix="plumbline-wandb-", ignore_cleanup_errors=True)
        folder = Path(self._scratch.name if self._scratch else subject.workspace.root)
        there = _last_offline_step(folder, subject.fingerprint) if keep else 0
        self._run = wandb.init(
            project=spec.project or subject.run,
            entity=spec.entity,
            id=subject.fingerprint,
            name=subject.name,
            group=subject.run,
            mode=spec.mode,
            resume=None if keep else "allow",
            dir=folder,
            config={"run": subject.run, "stage": subject.stage, **subject.parameters},
            reinit="create_new",
            settings=wandb.Settings(
                base_url=spec.uri or os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai",
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                init_timeout=30,
                x_disable_stats=True,  # the driver's machine is not where the work is done
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                x_transaction_log_flush_interval=PACE,
            ),
        )
        self.last = there if keep else max(0, self._run.step - 1) if self._run.resumed else 0

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log(figures(row), step=int(row["step"]), commit=True)
            self.last = int(row["step"])

    def close(self, ok: bool) -> None:
        import wandb

        self._run.finish(exit_code=0 if ok else 1)
        wandb.teardown()  # its own process writes the last records only then
        if self._scratch:
            self._scratch.cleanup()


def _last_offline_step(folder: Path, run: str) -> int:
    """The last step that earlier attempts of a run have left in offline files: a killed one loses its last seconds."""
    from wandb.proto.wandb_internal_pb2 import Record

    last = 0
    for path in folder.glob(f"wandb/offline-run-*-{run}/run-{run}.wandb"):
        for data in log_records(path.read_bytes()):
            record = Record.FromString(data)
            for item in record.history.item:
                if "_step" in (item.key, *item.nested_key):
                    last = max(last, int(json.loads(item.value_json)))
    return last


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a `.wandb` file: seven bytes of header, then LevelDB's log format. A record that is cut off at the end is left out."""
    BLOCK, HEADER, WHOLE_RECORD, LAST_PART = 32768, 7, 1, 4
    at, parts = HEADER, b""
    while at + HEADER <= len(data):
        room = BLOCK - at % BLOCK
        if room < HEADER:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += HEADER
        if at + length > len(data):
            return
        parts += data[at : at + length]
        at += length
        if kind in (WHOLE_RECORD, LAST_PART):
            yield parts
            parts = b""
