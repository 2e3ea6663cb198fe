"""The loop that every training stage runs, on every rank."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Protocol

import torch

from plumbline.api.stages.training import CheckpointSpec
from plumbline.errors import InvalidInput
from plumbline.training.batch import MicroBatch
from plumbline.training.checkpoint import ADAPTER, Checkpoint, CheckpointStore, CheckpointWriter, Piece
from plumbline.training.early_stopping import EarlyStopping, best_step, load_best, reason_to_stop
from plumbline.training.engine import TrainEngine, together
from plumbline.training.objectives import Objective
from plumbline.training.schedule import learning_rate
from plumbline.training.throughput import Meter

ReportStep = Callable[[int, int, dict[str, float]], None]


class Interrupted(Exception):
    """The group was asked to stop; all is in a checkpoint, and a new group goes on from it."""


class Source(Protocol):
    """Where a step's data comes from: a dataset, or rollouts of the present policy."""

    def __call__(self, step: int) -> tuple[list[list[MicroBatch]], dict[str, float]]:
        """This rank's micro-batches for each optimizer update of the step, and metrics of the data itself."""
        ...


class Companion(Protocol):
    """What a source keeps beside the engine, and must find again after an interruption."""

    def pieces(self) -> dict[str, Piece]:
        """Tensors for a checkpoint, beside the engine's. On every rank."""
        ...

    def state(self) -> dict[str, Any]:
        """All else, for JSON. Asked on rank 0."""
        ...

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put back what a checkpoint has. On every rank, before the first step."""
        ...

    def clock(self) -> dict[str, float]:
        """What was measured by the clock in the last step: reported, and no part of the history."""
        ...


def train(
    engine: TrainEngine,
    source: Source,
    objective: Objective,
    steps: int,
    store: CheckpointStore,
    checkpoints: CheckpointSpec,
    seed: int,
    report: ReportStep,
    early: EarlyStopping | None = None,
    companion: Companion | None = None,
) -> None:
    """Train to `steps`, from the newest checkpoint if there is one. The last step always leaves a checkpoint and the adapter.

    With `early`, training may be over sooner; the checkpoint of the best step so far is kept, and the adapter is of that one.

    A step's data, order and random numbers follow from its number alone, so an interrupted run ends with the
    weights of an undisturbed one.

    Raises:
        Interrupted: the world asked for it.
    """
    world = engine.world
    history: list[dict[str, float]] = []
    resumed = _newest(engine, store)
    if resumed is not None:
        engine.restore(resumed)
        history = resumed.history
        if companion is not None:
            companion.restore(resumed)
        del resumed  # and with it a copy on this node's disk
    config, meter = engine.model.adapter_config(), Meter(engine.cost, world)
    writer = CheckpointWriter(store, world.rank, world.size, world.from_first(secrets.randbelow(2**31)))
    try:
        for step in range(len(history), steps):
            if early is not None and reason_to_stop(history, early.spec) is not None:
                break
            torch.manual_seed((seed * 1_000_003 + step) * 4099 + world.rank)  # dropout
            rate = learning_rate(step, steps, engine.spec)
            updates, metrics = source(step)
            told = []
            for micro_batches in updates:
                try:
                    told.append(engine.step(micro_batches, objective, rate))
                except InvalidInput as error:
                    raise InvalidInput(f"step {step + 1}: {error}") from error
            metrics = {**metrics, **together(told)}
            measured = early is not None and early.due(step + 1, steps)
            if early is not None and measured:
                metrics = {**metrics, **early.measure()}
            history.append({"step": step + 1, **metrics})
            timed = meter.read(engine.work) | (companion.clock() if companion is not None else {})
            report(step + 1, steps, metrics | timed)  # what the clock says is no part of the history
            last, asked = step + 1 == steps, bool(world.maximum(int(world.interrupted())))
            if last or asked or measured or (step + 1) % checkpoints.every_steps == 0:
                writer.wait()  # before a second copy of the state is made
                protected = _best_steps(history, store, early) if early is not None and world.rank == 0 else ()
                pieces, extra = engine.pieces(), None
                if companion is not None:
                    pieces |= companion.pieces()
                    extra = companion.state() if world.rank == 0 else None
                writer.save(step + 1, pieces, history, config, protected, extra)
            if asked and not last:
                raise Interrupted
        if early is not None:
            writer.wait()
            world.maximum(0)  # all shards of the best step are there
            engine.restore(load_best(store, history, early.spec))
        adapter = engine.adapter()
        if world.rank == 0:
            store.save_tensors(ADAPTER, adapter)
    finally:
        writer.wait()
    world.maximum(0)  # whoever returns first may look for the shards of all


def _best_steps(history: list[dict[str, float]], store: CheckpointStore, early: EarlyStopping) -> set[int]:
    """The best step as seen from each checkpoint that is kept, since any of them may be the one that training goes on from."""
    seen = (best_step(history[:step], early.spec) for step in [*store.steps()[-store.keep :], len(history)])
    return {best for best in seen if best is not None}


def _newest(engine: TrainEngine, store: CheckpointStore) -> Checkpoint | None:
    """The newest whole checkpoint, the same on every rank: rank 0 decides."""
    found = store.latest() if engine.world.rank == 0 else None
    step = engine.world.from_first(found.step if found else 0)
    return found if found is not None or step == 0 else store.load(step)
