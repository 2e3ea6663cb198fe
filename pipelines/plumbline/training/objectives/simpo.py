"""Simple Preference Optimization (Meng et al. 2024, arXiv 2405.14734, equation 6)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics, Objective
from plumbline.training.objectives.pair import sides, summary


def simpo(beta: float, gamma: float) -> Objective:
    """-log σ(β·(mean log π_c - mean log π_r) - γ), mean over pairs. Needs no reference.

    Args:
        beta: scale of the length-normalised reward.
        gamma: target margin.
    """

    def loss(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        chosen, rejected = sides(beta * batch.averaged(logps))
        pairs, metrics = summary(chosen, rejected)
        return -logsigmoid(chosen - rejected - gamma).sum(), pairs, metrics

    return loss
