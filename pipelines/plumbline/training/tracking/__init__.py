"""Experiment trackers: the figures of every training step go to TensorBoard, MLflow or Weights & Biases, through their own libraries.

The driver logs, never a worker, and each tracker in a thread of its own: one that fails or hangs holds nothing up. A tracker knows
which step it has last, so an attempt that goes on after another logs no step twice, and takes those that were lost on the way
from the checkpoint's history.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from plumbline.api.stages.tracking import MLFLOW_KEY, WANDB_KEY, TrackingSpec
from plumbline.api.stages.training import TrainingSpec
from plumbline.artifacts import Workspace
from plumbline.errors import InvalidInput, one_line
from plumbline.progress import Reporter
from plumbline.stage import StageContext
from plumbline.training.tracking.clock import Clock
from plumbline.training.tracking.feed import Feed
from plumbline.training.tracking.mlflow import Mlflow
from plumbline.training.tracking.tensorboard import TensorBoard
from plumbline.training.tracking.tracker import Row, Subject, Tracker
from plumbline.training.tracking.wandb import Wandb

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds that a finished stage waits for its trackers


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
    from plumbline.data.synthesis.endpoint import key_of

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
