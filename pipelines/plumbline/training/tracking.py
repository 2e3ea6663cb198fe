"""Experiment trackers: the figures of every training step go to TensorBoard, MLflow or Weights & Biases, through their own libraries.

The driver logs, never a worker, and each tracker in a thread of its own: one that fails or hangs holds nothing up. A tracker knows
which step it has last, so an attempt that goes on after another logs no step twice, and takes those that were lost on the way
from the checkpoint's history.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec

from plumbline.api.stages.tracking import MLFLOW_KEY, WANDB_KEY, MlflowSpec, TensorBoardSpec, TrackingSpec, WandbSpec
from plumbline.api.stages.training import TrainingSpec
from plumbline.artifacts import Workspace
from plumbline.data.synthesis.endpoint import key_of
from plumbline.errors import InvalidInput, one_line
from plumbline.progress import Reporter
from plumbline.stage import StageContext
from plumbline.training.throughput import TIMED

logger = logging.getLogger(__name__)

Row = dict[str, float]
"""Figures by name, and the `step` that they are of."""

PACE = 2.0  # seconds between two deliveries, so that a fast loop does not ask a server for every step
RETRY = 60.0  # seconds until a tracker that failed is tried again
PATIENCE = 60.0  # seconds that a finished stage waits for its trackers
KEPT = "throughput.json"
KEEP_EVERY = 30.0  # seconds
FINGERPRINT = "plumbline.fingerprint"
MLFLOW_METRICS, MLFLOW_PARAMETERS = 1000, 100  # most that one request may hold


@dataclass(frozen=True)
class Subject:
    """The stage that is tracked, the same for each of its attempts.

    Attributes:
        run, stage, fingerprint: which.
        parameters: the stage's block as in YAML, and its base model.
        workspace: of the run.
    """

    run: str
    stage: str
    fingerprint: str
    parameters: dict[str, Any]
    workspace: Workspace

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.fingerprint[:8]}"


class Tracker(Protocol):
    """An open run of a tracker.

    Attributes:
        last: the last step that it has; 0 before the first.
    """

    last: int

    def log(self, rows: Sequence[Row]) -> None:
        """Take rows in the order of their steps, all after `last`. Asked again with the same ones where it failed."""
        ...

    def close(self, ok: bool) -> None:
        """No more will come; `ok`: the stage is done."""
        ...


class TensorBoard:
    """Event files in `FOLDER/RUN/STAGE-FINGERPRINT`, one for each attempt."""

    def __init__(self, spec: TensorBoardSpec, subject: Subject) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = f"{spec.folder or f'{subject.workspace.uri}/tensorboard'}/{subject.run}/{subject.name}"
        there = self._last_event(folder)
        self.last = max(0, there - 1)  # of the very last step some figures may be missing
        # Readers drop what earlier files say of this step and later ones.
        self._writer = SummaryWriter(folder, purge_step=self.last + 1 if there else None, flush_secs=5)
        if not there:
            self._writer.add_text("stage", f"```json\n{json.dumps(subject.parameters, indent=1)}\n```")

    @staticmethod
    def _last_event(folder: str) -> int:
        from tensorboard.backend.event_processing.directory_watcher import DirectoryDeletedError
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

        events = EventAccumulator(folder, size_guidance={SCALARS: 1})  # the last one
        try:
            events.Reload()
        except DirectoryDeletedError:
            return 0
        return max((events.Scalars(name)[-1].step for name in events.Tags()[SCALARS]), default=0)

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in _figures(row).items():
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()
        self.last = int(rows[-1]["step"])

    def close(self, ok: bool) -> None:
        self._writer.close()


class Mlflow:
    """A run of an experiment, found again by its tag."""

    def __init__(self, spec: MlflowSpec, subject: Subject) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own seven take minutes; we come back ourselves
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # to its makers
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=spec.uri)
        self._times: dict[int, int] = {}
        name = spec.experiment or subject.run
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        mine = f"tags.`{FINGERPRINT}` = '{subject.fingerprint}'"
        found = self._client.search_runs([number], filter_string=mine, max_results=1)
        tags = {FINGERPRINT: subject.fingerprint, "plumbline.run": subject.run, "plumbline.stage": subject.stage}
        run = found[0] if found else self._client.create_run(number, run_name=subject.name, tags=tags)
        self._id = run.info.run_id
        self._client.update_run(self._id, status="RUNNING")
        if not run.data.params:  # they cannot be changed later, and how work is spread may differ between attempts
            parameters = [Param(key, value) for key, value in flat(subject.parameters).items()]
            for start in range(0, len(parameters), MLFLOW_PARAMETERS):
                self._client.log_batch(self._id, params=parameters[start : start + MLFLOW_PARAMETERS])
        self.last = max((metric.step for metric in self._client.get_metric_history(self._id, "loss")), default=0)

    def log(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        batch: list[Metric] = []
        for i, row in enumerate(rows):
            step = int(row["step"])
            when = self._times.setdefault(step, int(time.time() * 1000))  # an equal point, offered again, is no second one
            batch += [Metric(name, value, when, step) for name, value in _figures(row).items()]
            if i + 1 == len(rows) or len(batch) + len(rows[i + 1]) > MLFLOW_METRICS:
                self._client.log_batch(self._id, metrics=batch)
                self.last, batch = step, []

    def close(self, ok: bool) -> None:
        self._client.set_terminated(self._id, status="FINISHED" if ok else "FAILED")


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
            self._run.log(_figures(row), step=int(row["step"]), commit=True)
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


def flat(block: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A block within blocks as `{"optimizer.learningRate": "0.0002"}`."""
    found: dict[str, str] = {}
    for name, value in block.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def in_order(rows: Iterable[Row], last: int, history: Callable[[], Iterable[Row]]) -> list[Row]:
    """Each step after `last` once, in order; of repeated ones the first counts.

    Args:
        rows: as they were reported: with repeats where a group of workers began again, and gaps where one was lost.
        last: the step before the first.
        history: rows of the newest checkpoint, asked for only where a step is missing.
    """
    wanted: dict[int, Row] = {}
    for row in rows:
        if row["step"] > last:
            wanted.setdefault(int(row["step"]), row)
    end = max(wanted, default=last)
    if len(wanted) < end - last:
        for row in history():
            if last < row["step"] < end:
                wanted.setdefault(int(row["step"]), row)
    return [wanted[step] for step in sorted(wanted)]


class Feed:
    """Rows on their way to one tracker, in a thread of its own. What a tracker does not take is kept, and offered again later.

    Args:
        where: field path of its block.
        open: starts the tracker, or goes on with its run.
        history: rows of the newest checkpoint.
        pace, retry: seconds between two deliveries, and after one that failed.
    """

    def __init__(
        self,
        where: str,
        open: Callable[[], Tracker],
        history: Callable[[], list[Row]],
        pace: float = PACE,
        retry: float = RETRY,
    ) -> None:
        self._where, self._open, self._history, self._pace, self._retry = where, open, history, pace, retry
        self._tracker: Tracker | None = None
        self._pending: list[Row] = []
        self._failure: str | None = None
        self._warned = False
        self._over, self._ok = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name=where, daemon=True)
        self._thread.start()

    def add(self, row: Row) -> None:
        self._pending.append(row)

    @property
    def failure(self) -> str | None:
        """Why it does not take rows now, for people."""
        return self._failure

    def end(self, ok: bool) -> None:
        """Deliver what is left, then end the tracker's run. Does not wait for that."""
        self._ok = ok
        self._over.set()

    def wait(self, patience: float) -> None:
        """Wait for the end that was asked for, some seconds at most."""
        self._thread.join(patience)
        if self._thread.is_alive() or self._failure is not None:
            why, steps = self._failure or f"{self._where} does not answer", {row["step"] for row in self._pending}
            logger.warning("%s; %d steps were not logged there, the artifact's metrics.jsonl has them", why, len(steps))

    def _work(self) -> None:
        pause = 0.0
        while True:
            last = self._over.wait(pause)
            try:
                self._deliver()
                if last and self._tracker is not None:
                    self._tracker.close(self._ok)
                self._failure, pause = None, self._pace
            except Exception as error:  # libraries raise what they like, and none of it may end the training
                self._failure, pause = f"{self._where} fails: {one_line(error, 200)}", self._retry
                if not self._warned:
                    logger.warning("%s; training goes on, and its steps are offered again later", self._failure)
                self._warned = True
            if last:
                return

    def _deliver(self) -> None:
        if self._tracker is None:
            self._tracker = self._open()
        taken = len(self._pending)
        rows = in_order(self._pending[:taken], self._tracker.last, self._history)
        if rows:
            self._tracker.log(rows)
        del self._pending[:taken]


class Clock:
    """What the clock said of each step, kept beside the checkpoints so that an attempt that goes on has that of those before it.

    Attributes:
        rows: step → figures.
    """

    def __init__(self, checkpoints: str) -> None:
        self._filesystem, root = fsspec.core.url_to_fs(checkpoints)
        self._path = f"{root}/{KEPT}"
        self.rows: dict[int, Row] = self._read()
        self._kept = time.monotonic()

    def add(self, step: int, metrics: Row) -> None:
        timed = {name: metrics[name] for name in TIMED if name in metrics}
        if timed:
            self.rows[step] = timed
            if time.monotonic() - self._kept > KEEP_EVERY:
                self.keep()

    def keep(self) -> None:
        """Losing them would cost a curve in the report, so no error of the store is one of the training."""
        try:
            if self.rows:
                self._filesystem.makedirs(self._path.rpartition("/")[0], exist_ok=True)
                self._filesystem.pipe_file(f"{self._path}.part", json.dumps(self.rows).encode())
                self._filesystem.mv(f"{self._path}.part", self._path)
        except Exception as error:
            logger.warning("%s cannot be written: %s", self._path, one_line(error))
        self._kept = time.monotonic()

    def _read(self) -> dict[int, Row]:
        try:
            if not self._filesystem.exists(self._path):
                return {}
            return {int(step): row for step, row in json.loads(self._filesystem.cat_file(self._path)).items()}
        except Exception as error:  # damaged or out of reach
            logger.warning("%s cannot be read: %s", self._path, one_line(error))
            return {}


@contextmanager
def tracked(context: StageContext, spec: TrainingSpec, history: Callable[[], list[Row]]) -> Iterator[dict[int, Row]]:
    """Inside, every step that `context.report` is told of goes to the stage's trackers; at a good end, all of `history`.

    Args:
        context: of the stage.
        spec: its block.
        history: rows of the newest checkpoint; none where there is none yet.

    Yields:
        Step → what the clock said of it, of earlier attempts too.

    Raises:
        InvalidInput: a tracker cannot be used as the block says.
    """
    where = f"{context.where}.tracking"
    block = spec.tracking or TrackingSpec()
    _check(block, context.plan.workspace, where)
    base = context.plan.run.spec.model
    subject = Subject(
        context.plan.name,
        context.node.name,
        context.plan.fingerprints[context.node.name],
        {
            "kind": context.node.kind,
            "model": base.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"token_secret"}),
            "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"tracking"}),
        },
        context.plan.workspace,
    )
    clock = Clock(context.checkpoints)
    feeds = [Feed(f"{where}.{name}", open, history) for name, open in _trackers(block, subject).items()]
    said: dict[Feed, bool] = {}

    def watch(step: int, total: int | None, metrics: Row) -> None:
        clock.add(step, metrics)
        for feed in feeds:
            feed.add({"step": step, **metrics})
            _tell(feed, context.report, said)

    ok = False
    try:
        with context.report.watched(watch):
            yield clock.rows
        ok = True
    finally:
        clock.keep()
        _end(feeds, ok, history)


def _end(feeds: list[Feed], ok: bool, history: Callable[[], list[Row]]) -> None:
    try:
        rows = history() if feeds and ok else []
    except Exception as error:
        logger.warning("the checkpoint's history cannot be read: %s", one_line(error))
        rows = []
    for feed in feeds:
        for row in rows:
            feed.add(row)
        feed.end(ok)
    deadline = time.monotonic() + (PATIENCE if ok else PATIENCE / 2)
    for feed in feeds:
        feed.wait(max(0.0, deadline - time.monotonic()))


def _tell(feed: Feed, report: Reporter, said: dict[Feed, bool]) -> None:
    """Say once in the stage's progress that a tracker fails, and once that it does no longer."""
    if feed.failure is not None and feed not in said:
        said[feed] = True
        report.say(f"training; {feed.failure}")
    elif feed.failure is None and said.get(feed):
        said[feed] = False
        report.say("training")


def _check(block: TrackingSpec, workspace: Workspace, where: str) -> None:
    if block.mlflow is not None:
        key_of(block.mlflow.key_secret, MLFLOW_KEY, f"{where}.mlflow")
    if block.wandb is not None:
        key_of(block.wandb.key_secret, WANDB_KEY, f"{where}.wandb")
        if block.wandb.mode == "offline" and not workspace.is_local:
            raise InvalidInput(
                f"{where}.wandb.mode: offline writes files, and the workspace {workspace.uri} is no folder; set mode: online"
            )


def _trackers(block: TrackingSpec, subject: Subject) -> dict[str, Callable[[], Tracker]]:
    found: dict[str, Callable[[], Tracker]] = {}
    for name, spec, kind in (
        ("tensorboard", block.tensorboard, TensorBoard),
        ("mlflow", block.mlflow, Mlflow),
        ("wandb", block.wandb, Wandb),
    ):
        if spec is not None:
            found[name] = lambda kind=kind, spec=spec: kind(spec, subject)  # type: ignore[misc]
    return found


def _figures(row: Row) -> Row:
    return {name: float(value) for name, value in row.items() if name != "step" and isinstance(value, int | float)}
