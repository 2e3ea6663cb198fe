"""Log-probabilities of the input model, computed once for every row that training will see, and kept for a resumed run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from plumbline.training.batch import MicroBatch, Sequence, ask_in_order
from plumbline.training.checkpoint import CheckpointStore

if TYPE_CHECKING:
    from plumbline.training.engine import TrainEngine

CHUNK = 512  # rows laid out at a time
SEQUENCES = 2  # of a row: the answers of a pair, or an answer and KTO's other one
NAME = "reference"


def reference_log_probs(
    engine: TrainEngine,
    unit: Callable[[int], list[Sequence] | None],
    rows: list[int],
    micro_batch_tokens: int,
    store: CheckpointStore,
) -> torch.Tensor:
    """What the policy that the engine starts from says of each row; from the store, where an earlier attempt has left it.

    Every rank must call it with the same rows, before a checkpoint is restored.

    Args:
        engine: at its first step.
        unit: row number → its two sequences; None for rows that are left out.
        rows: row numbers, each once.
        micro_batch_tokens: bound of one forward pass.
        store: where they are kept: a resumed run must read the same bits, whatever its number of workers.

    Returns:
        [largest row + 1, 2] summed log-probabilities, float32, the same on every rank; 0 for rows that are left out.
    """
    world = engine.world
    table = torch.zeros(max(rows) + 1, SEQUENCES)
    kept = store.load_tensors(NAME) if world.rank == 0 else None
    known = world.from_first(int(kept is not None))
    if kept is not None:
        table = kept[NAME]
    mine = [] if known else rows[world.rank :: world.size]

    def summed(batches: list[MicroBatch]) -> list[torch.Tensor]:
        return [batch.summed(logps) for batch, logps in zip(batches, engine.log_probs(batches), strict=True)]

    for start in range(0, world.maximum(len(mine)), CHUNK):
        units = [(row, unit(row) or []) for row in mine[start : start + CHUNK]]
        places = [(row, number) for row, sequences in units for number in range(len(sequences))]
        asked = [sequence for _, sequences in units for sequence in sequences]
        found = ask_in_order(asked, summed, micro_batch_tokens=micro_batch_tokens)
        for place, value in zip(places, found, strict=True):
            table[place] = value
    table = world.sum(table.to(world.device)).cpu()  # one rank has a row, the others zeros: exact
    if world.rank == 0 and not known:
        store.save_tensors(NAME, {NAME: table})
    return table
