"""The loop that every training stage runs, on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from plumbline.api.stages.training import CheckpointSpec
from plumbline.training.batch import MicroBatch
from plumbline.training.checkpoint import Checkpoint, CheckpointStore
from plumbline.training.engine import Objective, TrainEngine
from plumbline.training.schedule import learning_rate

ReportStep = Callable[[int, int, dict[str, float]], None]


class Source(Protocol):
    """Where a step's data comes from: a dataset, or rollouts of the present policy."""

    def __call__(self, step: int) -> tuple[list[list[MicroBatch]], dict[str, float]]:
        """This rank's micro-batches for each optimizer update of the step, and metrics of the data itself."""
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
) -> None:
    """Train to `steps`, from the newest checkpoint if there is one. The last step always leaves a checkpoint.

    A step's data, order and random numbers follow from its number alone, so an interrupted run ends with the
    weights of an undisturbed one.
    """
    history: list[dict[str, float]] = []
    resumed = _newest(engine, store)
    if resumed is not None:
        engine.restore(resumed.parameters, resumed.optimizer)
        history = resumed.history
    for step in range(len(history), steps):
        torch.manual_seed((seed * 1_000_003 + step) * 4099 + engine.world.rank)  # dropout
        rate = learning_rate(step, steps, engine.spec)
        updates, metrics = source(step)
        for micro_batches in updates:
            metrics = {**metrics, **engine.step(micro_batches, objective, rate)}
        history.append({"step": step + 1, **metrics})
        report(step + 1, steps, metrics)
        if (step + 1) % checkpoints.every_steps == 0 or step + 1 == steps:
            save(engine, history, store)


def _newest(engine: TrainEngine, store: CheckpointStore) -> Checkpoint | None:
    """The newest whole checkpoint, the same on every rank: rank 0 decides."""
    found = store.latest() if engine.world.rank == 0 else None
    step = engine.world.from_first(found.step if found else 0)
    return found if found is not None or step == 0 else store.load(step)


def save(engine: TrainEngine, history: list[dict[str, float]], store: CheckpointStore) -> None:
    """Every rank gathers, rank 0 writes."""
    parameters, adapter, optimizer = engine.full_parameters(), engine.adapter(), engine.optimizer_state()
    if engine.world.rank == 0:
        store.save(Checkpoint(len(history), parameters, adapter, optimizer, history, engine.model.adapter_config()))
