"""What objectives on rankings share: `ranking` in `per_sequence` says which ranking an answer belongs to, `score` how good it is."""

from __future__ import annotations

import torch

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics


def beaten(batch: MicroBatch) -> torch.Tensor:
    """[S, S] whether answer i scores above answer j of the same ranking. Ties beat nobody."""
    ranking, score = batch.per_sequence["ranking"], batch.per_sequence["score"]
    return (ranking[:, None] == ranking[None, :]) & (score[:, None] > score[None, :])


def best(batch: MicroBatch) -> torch.Tensor:
    """[R] indices: of each ranking the first answer with the highest score."""
    ranking, score = batch.per_sequence["ranking"], batch.per_sequence["score"]
    same = ranking[:, None] == ranking[None, :]
    order = torch.arange(batch.size, device=score.device)
    above = same & (
        (score[None, :] > score[:, None]) | ((score[None, :] == score[:, None]) & (order[None, :] < order[:, None]))
    )
    return (~above.any(dim=1)).nonzero()[:, 0]


def summary(values: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, Metrics]:
    """Number of rankings, and how often the higher score has the higher value [S]."""
    better = beaten(batch)
    right = better & (values[:, None] > values[None, :])
    rankings = torch.tensor(float(len(batch.per_sequence["ranking"].unique())), device=values.device)
    return rankings, {"rewardAccuracy": (right.sum().float(), better.sum().float())}
