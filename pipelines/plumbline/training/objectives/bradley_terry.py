"""Reward models from pairs (Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, equation 1)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from plumbline.training.batch import MicroBatch
from plumbline.training.engine import Metrics, Objective
from plumbline.training.objectives.pair import sides, summary


def bradley_terry(centering: float) -> Objective:
    """-log σ(r_c - r_r - m) + c·(r_c + r_r)², mean over pairs.

    It takes rewards [S] in the place of log-probabilities. The margin m is `margin` in `per_sequence` (of the chosen one; Llama 2, arXiv
    2307.09288, has 1, ⅔, ⅓ or 0), or 0 where there is none.

    Args:
        centering: c, which keeps rewards around zero (Eisenstein et al. 2023, arXiv 2312.09244).
    """

    def loss(rewards: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        chosen, rejected = sides(rewards)
        margin = sides(batch.per_sequence["margin"])[0] if "margin" in batch.per_sequence else 0.0
        losses = -logsigmoid(chosen - rejected - margin) + centering * (chosen + rejected) ** 2
        pairs, metrics = summary(chosen, rejected)
        return losses.sum(), pairs, metrics

    return loss
