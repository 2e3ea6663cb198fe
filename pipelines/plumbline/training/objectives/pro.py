"""Preference Ranking Optimization (Song et al. 2023, arXiv 2306.17492, equations 8 to 11)."""

from __future__ import annotations

import torch

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics, Objective
from plumbline.training.objectives.ranking import beaten, best, summary


def pro(nll_weight: float) -> Objective:
    """Each answer against all worse ones, by how much worse they are, + w·(n-1)²·NLL(best); mean over rankings.

    With s = mean log π and T_kj = R_k - R_j for the answers j below k, T_k = max_j T_kj:
    Σ_k log(exp(T_k·s_k) + Σ_j exp(T_kj·s_j)) - T_k·s_k. Answers with nobody below add nothing. The NLL is a sum over tokens.

    Needs `ranking` and `score` in `per_sequence`.

    Args:
        nll_weight: w; β of the paper is 0.05·(n-1)² for n answers.
    """

    def loss(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        s, score = batch.averaged(logps), batch.per_sequence["score"]
        below = beaten(batch)
        gap = (score[:, None] - score[None, :]).masked_fill(~below, 0.0)
        own = gap.amax(dim=1) * s
        others = (gap * s[None, :]).masked_fill(~below, float("-inf"))
        contrast = torch.logsumexp(torch.cat([own[:, None], others], dim=1), dim=1) - own  # nobody below: log(exp 0) - 0
        first = best(batch)
        size = (batch.per_sequence["ranking"][:, None] == batch.per_sequence["ranking"][None, :]).sum(dim=1)
        nll = -batch.summed(logps)[first] * (size[first] - 1) ** 2
        rankings, metrics = summary(s, batch)
        metrics["nll"] = (nll.sum(), rankings)
        return contrast.sum() + nll_weight * nll.sum(), rankings, metrics

    return loss
