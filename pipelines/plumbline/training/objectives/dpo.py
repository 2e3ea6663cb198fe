"""Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7) and what keeps its form.

- conservative DPO (Mitchell 2023, `label_smoothing`) and robust DPO (Chowdhury et al. 2024, arXiv 2403.00409, `robust`);
- RPO (Liu et al. 2024, arXiv 2405.16436, `nll_weight`): plus the chosen answer's negative log-likelihood.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics, Objective
from plumbline.training.objectives.pair import sides, summary


def dpo(
    beta: float,
    label_smoothing: float = 0.0,
    robust: bool = False,
    nll_weight: float = 0.0,
    length_normalised: bool = False,
) -> Objective:
    """-log σ(β·h) with h = (log π_c - log π_ref,c) - (log π_r - log π_ref,r), mean over pairs.

    Sequences come in pairs, chosen then rejected; `reference` in `per_sequence` is the reference model's
    log-probability of each answer (summed over its tokens).

    Args:
        beta: strength of the tie to the reference.
        label_smoothing: ε, the share of pairs thought to be swapped: (1 - ε)·loss(h) + ε·loss(-h), below 0.5.
        robust: instead ((1 - ε)·loss(h) - ε·loss(-h)) / (1 - 2ε), whose mean over swaps is the loss without them.
        nll_weight: η, weight of -log π_c.
        length_normalised: whether that is divided by the answer's tokens (Pang et al. 2024, arXiv 2404.19733).
    """

    def loss(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        rewards = beta * (batch.summed(logps) - batch.per_sequence["reference"])
        chosen, rejected = sides(rewards)
        right, swapped = -logsigmoid(chosen - rejected), -logsigmoid(rejected - chosen)
        if robust:
            losses = ((1 - label_smoothing) * right - label_smoothing * swapped) / (1 - 2 * label_smoothing)
        else:
            losses = (1 - label_smoothing) * right + label_smoothing * swapped
        pairs, metrics = summary(chosen, rejected)
        if nll_weight:
            nll = -sides(batch.averaged(logps) if length_normalised else batch.summed(logps))[0]
            losses = losses + nll_weight * nll
            metrics["nll"] = (nll.sum(), pairs)
        return losses.sum(), pairs, metrics

    return loss
