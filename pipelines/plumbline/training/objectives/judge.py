"""Training a pairwise judge (PandaLM, Wang et al. 2023, arXiv 2306.05087): cross-entropy on its verdicts."""

from __future__ import annotations

import torch

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics


def judge(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
    """-Σ log p(right verdict), normalised by the number of sequences: a verdict of more tokens does not count for more.

    Each two sequences in a row are one comparison, its answers in one order and in the other.

    Metrics: `sureAndRight`, the share of verdicts with p > ½, which no other verdict can then have; `orderGap`, the mean
    difference of log p between the orders.
    """
    verdicts = batch.summed(logps)
    count = torch.tensor(float(batch.size), device=logps.device)
    one, other = verdicts.detach().view(-1, 2).unbind(1)
    metrics = {
        "sureAndRight": ((verdicts.detach().exp() > 0.5).sum(), count),
        "orderGap": ((one - other).abs().sum(), count / 2),
    }
    return -verdicts.sum(), count, metrics
