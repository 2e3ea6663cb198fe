"""Rewards of answers → advantages of their tokens. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

STD_EPS = 1e-4  # TRL's
WHITEN_EPS = 1e-8


def group_advantages(rewards: torch.Tensor, scale: bool) -> torch.Tensor:
    """Rewards [groups, group size] → advantages of the same shape: centred within the group, over its standard deviation if `scale`
    (GRPO, arXiv 2402.03300; without, Dr.GRPO, 2503.20783)."""
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    centred = (rewards - rewards.mean(dim=1, keepdim=True)).masked_fill(equal, 0.0)  # rounding is no advantage
    return centred / (rewards.std(dim=1, keepdim=True) + STD_EPS) if scale else centred


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards [groups, n] → R_i - mean of the others = n/(n-1)·(R_i - mean) (RLOO, arXiv 2402.14740)."""
    size = rewards.shape[1]
    return group_advantages(rewards, scale=False) * size / (size - 1)


def token_rewards(reward: float, kl: torch.Tensor, coefficient: float) -> torch.Tensor:
    """[T] rewards of an answer's tokens: -β·k1 each, and the answer's own at the last (Ziegler et al. 2019, arXiv 1909.08593).

    Args:
        reward: of the whole answer.
        kl: [T] log π - log π_ref.
        coefficient: β.
    """
    rewards = -coefficient * kl
    rewards[-1] += reward
    return rewards


def returns_to_go(rewards: torch.Tensor) -> torch.Tensor:
    """[T] sums of the rewards from each token on."""
    return rewards.flip(0).cumsum(0).flip(0)


def generalised(
    rewards: torch.Tensor, values: torch.Tensor, discount: float, decay: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns [T] of one answer (GAE, Schulman et al. 2016, arXiv 1506.02438).

    δ_t = r_t + γ·V_{t+1} - V_t, A_t = δ_t + γλ·A_{t+1}, both 0 after the last token; returns are A + V.

    Args:
        rewards, values: [T].
        discount: γ.
        decay: λ.
    """
    advantages = torch.zeros_like(values)
    after_value = after = 0.0
    for t in reversed(range(len(values))):
        after = float(rewards[t]) + discount * after_value - float(values[t]) + discount * decay * after
        after_value = float(values[t])
        advantages[t] = after
    return advantages, advantages + values


def whitened(advantages: list[torch.Tensor], totals: Callable[..., list[float]]) -> list[torch.Tensor]:
    """All tokens of a step, over all ranks, with mean 0 and standard deviation 1 (unbiased); one token alone is 0.

    Args:
        advantages: [T] of each of this rank's answers.
        totals: numbers → their sums over all ranks.
    """
    own = torch.cat([torch.zeros(0), *advantages]).double()
    total, count = totals(float(own.sum()), float(len(own)))
    if count < 2:
        return [torch.zeros_like(a) for a in advantages]
    mean = total / count
    (squares,) = totals(float((own - mean).square().sum()))
    scale = (squares / (count - 1) + WHITEN_EPS) ** -0.5
    return [(a - mean) * scale for a in advantages]


@dataclass
class KlController:
    """The KL coefficient, fixed or moved towards a target (Ziegler et al. 2019, section 2.2).

    Attributes:
        coefficient: β.
        target: nats of an answer; None: the coefficient stays.
        horizon: answers.
    """

    coefficient: float
    target: float | None
    horizon: int

    def update(self, kl: float, answers: int) -> None:
        """β *= 1 + clip(kl/target - 1, ±0.2)·answers/horizon; more answers than the horizon count as that many, so that β stays positive."""
        if self.target is not None:
            error = min(0.2, max(-0.2, kl / self.target - 1))
            self.coefficient *= 1 + error * min(1.0, answers / self.horizon)
