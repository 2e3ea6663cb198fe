"""What objectives on pairs share: sequences come chosen, rejected, chosen, rejected, …"""

from __future__ import annotations

import torch

from plumbline.training.objectives import Metrics


def sides(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[2P] → those of the chosen and of the rejected answers, [P] each."""
    return values[0::2], values[1::2]


def summary(chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
    """Number of pairs, and metrics of their (implicit) rewards [P]."""
    pairs = torch.tensor(float(len(chosen)), device=chosen.device)
    margin = chosen - rejected
    return pairs, {
        "rewardMargin": (margin.sum(), pairs),
        "rewardAccuracy": ((margin > 0).float().sum(), pairs),
        "rewardChosen": (chosen.sum(), pairs),
        "rewardRejected": (rejected.sum(), pairs),
    }
