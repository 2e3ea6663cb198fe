"""Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv 2402.01306, equation 8)."""

from __future__ import annotations

import torch

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics, Objective


def kto(beta: float, desirable_weight: float, undesirable_weight: float) -> Objective:
    """λ_D·(1 - σ(β(l - z0))) for good answers, λ_U·(1 - σ(β(z0 - l))) for bad ones, mean over answers; l = log π - log π_ref.

    Needs `reference` and `label` (1 good, 0 bad) in `per_sequence`, and z0 as `kl` in `per_step`: the mean of l over answers
    paired with other prompts, at least 0, over the whole optimizer step; it takes no gradient (section 4.1).
    """

    def loss(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        ratio = batch.summed(logps) - batch.per_sequence["reference"]
        good = batch.per_sequence["label"] > 0.5
        gain = beta * (ratio - batch.per_step["kl"])
        losses = torch.where(
            good, desirable_weight * (1 - torch.sigmoid(gain)), undesirable_weight * (1 - torch.sigmoid(-gain))
        )
        answers = torch.tensor(float(batch.size), device=logps.device)
        metrics: Metrics = {
            "rewardChosen": (beta * ratio[good].sum(), good.sum()),
            "rewardRejected": (beta * ratio[~good].sum(), (~good).sum()),
            "kl": (batch.per_step["kl"] * answers, answers),
        }
        return losses.sum(), answers, metrics

    return loss
