"""Contrastive Preference Optimization (Xu et al. 2024, arXiv 2401.08417, equation 5)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics, Objective
from plumbline.training.objectives.pair import sides, summary


def cpo(beta: float, nll_weight: float, label_smoothing: float = 0.0) -> Objective:
    """-log σ(β·(log π_c - log π_r)), mean over pairs, + α·NLL of the chosen answers, mean over their tokens.

    Needs no reference: it is taken to be uniform. Needs `chosenTargets` and `pairs` in `per_step`.

    Args:
        beta: scale of the difference.
        nll_weight: α.
        label_smoothing: ε, the share of pairs thought to be swapped.
    """

    def loss(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        summed = batch.summed(logps)
        chosen, rejected = sides(beta * summed)
        losses = -(1 - label_smoothing) * logsigmoid(chosen - rejected) - label_smoothing * logsigmoid(rejected - chosen)
        nll = -sides(summed)[0] * (batch.per_step["pairs"] / batch.per_step["chosenTargets"])
        pairs, metrics = summary(chosen, rejected)
        metrics["nll"] = (nll.sum(), pairs)
        return (losses + nll_weight * nll).sum(), pairs, metrics

    return loss
