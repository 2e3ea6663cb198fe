"""Rank Responses to align Human Feedback (Yuan et al. 2023, arXiv 2304.05302, equations 1 to 4)."""

from __future__ import annotations

import torch

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics, Objective
from plumbline.training.objectives.ranking import beaten, best, summary


def rrhf(length_penalty: float, nll_weight: float) -> Objective:
    """Σ_{r_i < r_j} max(0, p_i - p_j) + w·NLL(best), mean over rankings; p = Σ log π / tokens^α.

    Needs `ranking` and `score` in `per_sequence`. The NLL is a mean over the answer's own tokens. (The authors' code averages
    over padding and takes the best of the first ranking only; the equations do neither.)

    Args:
        length_penalty: α; 1 is the mean.
        nll_weight: w; the paper's sum has 1.
    """

    def loss(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        p = batch.summed(logps) / batch.lengths() ** length_penalty
        gaps = torch.relu(p[None, :] - p[:, None])[beaten(batch)]
        nll = -batch.averaged(logps)[best(batch)]
        rankings, metrics = summary(p, batch)
        metrics["nll"] = (nll.sum(), rankings)
        return gaps.sum() + nll_weight * nll.sum(), rankings, metrics

    return loss
