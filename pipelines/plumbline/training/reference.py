"""Log-probabilities of the input model, computed once for every row that training will see, and kept for a resumed run."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from plumbline.training.batch import Sequence, micro_batches
from plumbline.training.checkpoint import CheckpointStore
from plumbline.training.engine import TrainEngine

CHUNK = 512  # rows laid out at a time
NAME = "reference"

LogProbs = dict[int, list[float]]
"""Row number → the summed log-probability of each of its sequences."""


def reference_log_probs(
    engine: TrainEngine,
    unit: Callable[[int], list[Sequence] | None],
    rows: list[int],
    micro_batch_tokens: int,
    store: CheckpointStore,
) -> LogProbs:
    """What the policy that the engine starts from says of each row; from the store, where an earlier attempt has left it.

    Every rank must call it with the same rows, before a checkpoint is restored.

    Args:
        engine: at its first step.
        unit: row number → its sequences; None for rows that are left out.
        rows: row numbers, each once.
        micro_batch_tokens: bound of one forward pass.
        store: where they are kept: a resumed run must read the same bits, whatever its number of workers.
    """
    world = engine.world
    kept = store.load_tensors(NAME) if world.rank == 0 else None
    if world.from_first(int(kept is not None)):
        return _unpack(kept or store.load_tensors(NAME) or {})
    mine = rows[world.rank :: world.size]
    found: LogProbs = {}
    for start in range(0, world.maximum(len(mine)), CHUNK):
        chunk = mine[start : start + CHUNK]
        sequences: list[list[Sequence]] = []
        places: list[int] = []
        for row in chunk:
            for sequence in unit(row) or []:
                sequence.values = {"place": float(len(places))}
                sequences.append([sequence])
                places.append(row)
        by_place = [0.0] * len(places)
        batches = micro_batches(sequences, micro_batch_tokens=micro_batch_tokens)
        for batch, logps in zip(batches, engine.log_probs(batches), strict=True):
            for place, value in zip(batch.per_sequence["place"].tolist(), batch.summed(logps).tolist(), strict=True):
                by_place[int(place)] = value
        for row, value in zip(places, by_place, strict=True):
            found.setdefault(row, []).append(value)
    if world.size > 1:
        shares: list[LogProbs] = [{} for _ in range(world.size)]
        dist.all_gather_object(shares, found)
        found = {row: values for share in shares for row, values in share.items()}
    if world.rank == 0:
        store.save_tensors(NAME, _pack(found))
    return found


def _pack(found: LogProbs) -> dict[str, torch.Tensor]:
    rows = sorted(found)
    return {
        "rows": torch.tensor([row for row in rows for _ in found[row]], dtype=torch.long),
        "values": torch.tensor([value for row in rows for value in found[row]], dtype=torch.float64),
    }


def _unpack(kept: dict[str, torch.Tensor]) -> LogProbs:
    found: LogProbs = {}
    for row, value in zip(kept["rows"].tolist(), kept["values"].tolist(), strict=True):
        found.setdefault(row, []).append(value)
    return found
