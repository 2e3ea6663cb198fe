"""Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from plumbline.training.batch import MicroBatch
from plumbline.training.engine import Metrics, Objective


def dpo(beta: float, label_smoothing: float) -> Objective:
    """-log σ(β·[(log π_c - log π_ref,c) - (log π_r - log π_ref,r)]), mean over pairs.

    Sequences come in pairs, chosen then rejected; `reference` in `per_sequence` is the reference model's
    log-probability of each answer (summed over its tokens).

    Args:
        beta: strength of the tie to the reference.
        label_smoothing: ε of conservative DPO: (1 - ε)·loss + ε·loss with the pair swapped.
    """

    def loss(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        summed = torch.zeros(batch.size, device=logps.device).index_add(0, batch.sequence, logps)
        rewards = beta * (summed - batch.per_sequence["reference"])
        chosen, rejected = rewards[0::2], rewards[1::2]
        margin = chosen - rejected
        losses = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
        pairs = torch.tensor(float(len(margin)), device=logps.device)
        metrics: Metrics = {
            "rewardMargin": (margin.sum(), pairs),
            "rewardAccuracy": ((margin > 0).float().sum(), pairs),
            "rewardChosen": (chosen.sum(), pairs),
            "rewardRejected": (rejected.sum(), pairs),
        }
        return losses.sum(), pairs, metrics

    return loss
