"""Learning rates and data order as pure functions of the step, so that resuming needs no state for them."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from plumbline.api.stages.training import OptimizerSpec


def learning_rate(step: int, total: int, spec: OptimizerSpec) -> float:
    """Rate of optimizer step `step` (from 0) of `total`: linear warm-up, then constant, linear or cosine decay to zero."""
    warmup = math.ceil(spec.warmup_ratio * total)
    if step < warmup:
        return spec.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)
    match spec.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1.0 - done
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * done))
    return spec.learning_rate * share


def total_steps(rows: int, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a run over `rows` rows, at least one."""
    steps = max(1, math.ceil(epochs * rows / batch_size))
    return min(steps, max_steps) if max_steps is not None else steps


def batch_indices(step: int, rows: int, batch_size: int, seed: int, shuffle: bool = True) -> list[int]:
    """Row numbers of one step: every epoch is its own permutation, or the order of the rows; batches run on across
    epochs."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    if not shuffle:
        return [position % rows for position in positions]
    indices: list[int] = []
    for position in positions:
        epoch, within = divmod(position, rows)
        if not indices or within == 0:
            order = _order(rows, seed, epoch)
        indices.append(int(order[within]))
    return indices


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(rows)
