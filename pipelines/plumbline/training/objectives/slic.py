"""Sequence Likelihood Calibration with human feedback (Zhao et al. 2023, arXiv 2305.10425, section 2.2)."""

from __future__ import annotations

import torch

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics, Objective
from plumbline.training.objectives.pair import sides, summary


def slic(beta: float, margin: float, nll_weight: float, reference: bool = False) -> Objective:
    """max(0, δ - β·(log π_c - log π_r)) + λ·NLL(chosen), sums over tokens, mean over pairs.

    Args:
        beta: 1 in the paper.
        margin: δ.
        nll_weight: λ, the weight of the regularisation; its target is the chosen answer.
        reference: subtract the reference's log-probabilities first (`reference` in `per_sequence`), as TRL's hinge loss does;
            the paper does not.
    """

    def loss(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        summed = batch.summed(logps)
        rewards = beta * (summed - batch.per_sequence["reference"] if reference else summed)
        chosen, rejected = sides(rewards)
        nll = -sides(summed)[0]
        pairs, metrics = summary(chosen, rejected)
        metrics["nll"] = (nll.sum(), pairs)
        return (torch.relu(margin - (chosen - rejected)) + nll_weight * nll).sum(), pairs, metrics

    return loss
