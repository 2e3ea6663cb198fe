"""Identity Preference Optimization (Azar et al. 2023, arXiv 2310.12036, equation 17)."""

from __future__ import annotations

import torch

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics, Objective
from plumbline.training.objectives.pair import sides, summary


def ipo(beta: float, length_normalised: bool = True) -> Objective:
    """(h - 1/(2β))², mean over pairs; h as in DPO. Needs `reference` in `per_sequence`.

    Args:
        beta: τ of the paper.
        length_normalised: divide each answer's log-ratio by its tokens, as the authors told TRL; the paper's sum otherwise.
    """

    def loss(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        ratios = batch.summed(logps) - batch.per_sequence["reference"]
        if length_normalised:
            ratios = ratios / batch.lengths()
        chosen, rejected = sides(ratios)
        losses = (chosen - rejected - 1 / (2 * beta)) ** 2
        pairs, metrics = summary(beta * chosen, beta * rejected)
        return losses.sum(), pairs, metrics

    return loss
