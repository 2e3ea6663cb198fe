"""Reward models from comparisons (Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, equation 1)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics, Objective
from plumbline.training.objectives.ranking import beaten


def bradley_terry(centering: float, margin: float = 0.0) -> Objective:
    """-log σ(r_i - r_j - m·(s_i - s_j)) + c·(r_i + r_j)², mean over the pairs i above j of a ranking, then over rankings.

    It takes rewards [S] in the place of log-probabilities. A pair is a ranking of two; all pairs of one prompt count as one, as they
    are no independent comparisons (section 3.5 of InstructGPT). Needs `ranking` and `score` in `per_sequence`; rankings of equal scores teach nothing.

    Args:
        centering: c, which keeps rewards around zero (Eisenstein et al. 2023, arXiv 2312.09244).
        margin: m, for one point of difference in score; 1, ⅔, ⅓ and 0 in Llama 2 (arXiv 2307.09288) are m = ⅓ on its four grades.
    """

    def loss(rewards: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        ranking, score = batch.per_sequence["ranking"], batch.per_sequence["score"]
        better, worse = beaten(batch).nonzero(as_tuple=True)
        pairs_of = (ranking[:, None] == ranking[better][None, :]).sum(dim=1)  # of each answer's ranking
        weight = 1.0 / pairs_of[better]
        gap = rewards[better] - rewards[worse]
        losses = -logsigmoid(gap - margin * (score[better] - score[worse]))
        losses = losses + centering * (rewards[better] + rewards[worse]) ** 2
        rankings = torch.tensor(float(len(ranking[better].unique())), device=rewards.device)
        count = torch.tensor(float(len(gap)), device=rewards.device)
        metrics: Metrics = {
            "rewardMargin": (gap.sum(), count),
            "rewardAccuracy": ((gap > 0).float().sum(), count),
            "rewardChosen": (rewards[better].sum(), count),
            "rewardRejected": (rewards[worse].sum(), count),
        }
        return (weight * losses).sum(), rankings, metrics

    return loss
