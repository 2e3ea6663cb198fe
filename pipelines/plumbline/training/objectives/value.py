"""The critic's loss of PPO (Schulman et al. 2017, arXiv 1707.06347, with the clipping of the authors' code)."""

from __future__ import annotations

import torch

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics, Objective


def clipped_value(clip: float) -> Objective:
    """½·max((V - R)², (V_old + clip(V - V_old, ±ε) - R)²), mean over tokens.

    Takes values V [N] in the place of log-probabilities; needs `value` (V_old) and `return` (R) in `per_target`.
    """

    def loss(values: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        old, target = batch.per_target["value"], batch.per_target["return"]
        near = old + (values - old).clamp(-clip, clip)
        free, bounded = (values - target).square(), (near - target).square()
        count = torch.tensor(float(len(values)), device=values.device)
        metrics: Metrics = {"valueClipFraction": ((bounded > free).float().sum(), count)}
        return torch.maximum(free, bounded).sum() / 2, count, metrics

    return loss
