"""Group Relative Policy Optimization (Shao et al. 2024, arXiv 2402.03300)."""

from __future__ import annotations

import torch

from plumbline.training.batch import MicroBatch
from plumbline.training.engine import Metrics, Objective

STD_EPS = 1e-4  # TRL's


def group_advantages(rewards: torch.Tensor, scale: bool) -> torch.Tensor:
    """Rewards [groups, group size] → advantages of the same shape: centred within the group, over its standard deviation if `scale`."""
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    centred = (rewards - rewards.mean(dim=1, keepdim=True)).masked_fill(equal, 0.0)  # rounding is no advantage
    return centred / (rewards.std(dim=1, keepdim=True) + STD_EPS) if scale else centred


def grpo(clip_low: float, clip_high: float, kl_coefficient: float) -> Objective:
    """Clipped policy gradient, mean over the tokens of the answers in the batch (token mean, as DAPO).

    Answers of groups without any difference in reward are not in the batch, as after DAPO's dynamic sampling, unless
    there is a KL penalty, which they share in.

    -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A) + β·k3, with r = exp(log π - log π_old) and
    k3 = exp(log π_ref - log π) - 1 - (log π_ref - log π).

    Needs `advantage` in `per_sequence`, `behaviour` (log π_old, from the rollout engine) in `per_target`, and with
    `kl_coefficient` also `reference` in `per_target`.
    """

    def loss(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        advantage = batch.per_sequence["advantage"][batch.sequence]
        ratio = torch.exp((logps - batch.per_target["behaviour"]).clamp(-20, 20))
        clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
        losses = -torch.minimum(ratio * advantage, clipped * advantage)
        tokens = torch.tensor(float(len(logps)), device=logps.device)
        metrics: Metrics = {
            "clipFraction": ((clipped * advantage < ratio * advantage).float().sum(), tokens),
            "logprobGap": ((logps - batch.per_target["behaviour"]).abs().sum(), tokens),
        }
        if kl_coefficient:
            d = (batch.per_target["reference"] - logps).clamp(-20, 20)
            k3 = torch.exp(d) - 1 - d
            losses = losses + kl_coefficient * k3
            metrics["kl"] = (k3.sum(), tokens)
        return losses.sum(), tokens, metrics

    return loss
