"""Clipped policy gradients: one loss for PPO (Schulman et al. 2017, arXiv 1707.06347), GRPO, Dr.GRPO, DAPO, GSPO, RLOO and REINFORCE++,
which differ in their advantages, in what the ratio is of, and in what the mean is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics, Objective

LARGEST_LOG_RATIO = 20.0  # as verl, SkyRL and NeMo-RL clamp
TRUNCATED_AT = 2.0  # TIS (Yao et al. 2025)
MASKED_OUTSIDE = (0.5, 5.0)  # IcePop (Ling team 2025)
SEQUENCE_MASKED_OUTSIDE = (0.99, 1.01)  # geometric mean over an answer, SkyRL's

Estimator = Literal["k1", "k2", "k3"]
Aggregate = Literal["tokens", "sequences", "constant"]
Mismatch = Literal["none", "truncate", "mask", "maskSequences"]


@dataclass(frozen=True)
class PolicyLoss:
    """What the algorithms differ in.

    Attributes:
        clip_low, clip_high: ε below and above a ratio of 1.
        sequence_ratio: one ratio for an answer, the geometric mean of its tokens' (GSPO, arXiv 2507.18071); its gradient reaches every token.
        aggregate: mean over all tokens (DAPO), over answers of each one's mean (GRPO's paper), or sum over answers × `longest` (Dr.GRPO).
        longest: longest answer in tokens.
        kl_coefficient, kl_estimator: of a penalty in the loss; 0 for none.
        dual_clip: most that a ratio counts where the advantage is negative (arXiv 1912.09729); None: unbounded.
        mismatch: correction for engines that draw from other probabilities than the trainer's.
        ptx_weight: of the likelihood of demonstrations among the sequences (InstructGPT, arXiv 2203.02155, equation 2).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    sequence_ratio: bool = False
    aggregate: Aggregate = "tokens"
    longest: int = 1
    kl_coefficient: float = 0.0
    kl_estimator: Estimator = "k3"
    dual_clip: float | None = None
    mismatch: Mismatch = "none"
    ptx_weight: float = 0.0


def policy_gradient(how: PolicyLoss) -> Objective:
    """-min(r·A, clip(r, 1-ε_low, 1+ε_high)·A) + β·KL, with r = π/π_old.

    Needs in `per_target`: `advantage`; `behaviour`, the engine's log-probabilities, which are log π_old where nothing is done about a
    mismatch; `old`, the trainer's before the step's first update, where something is; `reference` with a KL penalty. With `ptx_weight` every sequence has
    `demonstration` in `per_sequence`: 1 for those that are learned by heart, whose other values mean nothing.
    The normaliser counts the answers' tokens or answers, so the gradient does not depend on how they are split up; `idle` in `per_step` of one
    micro-batch is what answers that need not be computed add to it. `per_step` of a step with demonstrations has `weights`, what that normaliser is over the whole step, and `demonstrations`, their targets.
    """

    def loss(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        mine = torch.ones_like(logps)
        shown = batch.per_sequence.get("demonstration")
        if shown is not None:
            mine = 1 - shown[batch.sequence]
        advantage = batch.per_target["advantage"]
        behaviour = batch.per_target["behaviour"]
        old = behaviour if how.mismatch == "none" else batch.per_target["old"]
        log_ratio = (logps - old) * mine
        lengths = batch.lengths()
        if how.sequence_ratio:  # value of the mean, gradient of the token (equation 14 of GSPO)
            mean = (batch.summed(log_ratio) / lengths)[batch.sequence].detach()
            log_ratio = mean + log_ratio - log_ratio.detach()
        ratio = torch.exp(log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
        gain, clipped = ratio * advantage, ratio.clamp(1 - how.clip_low, 1 + how.clip_high) * advantage
        losses = -torch.minimum(gain, clipped)
        if how.dual_clip is not None:
            losses = torch.where(advantage < 0, torch.minimum(losses, -how.dual_clip * advantage), losses)
        weights = mine
        if how.mismatch != "none":
            losses = losses * mismatch_weights((old - behaviour) * mine, batch, how.mismatch)
        count = mine.sum()
        metrics: Metrics = {
            "clipFraction": (((clipped < gain) * mine).sum(), count),
            "logprobGap": (((logps.detach() - behaviour) * mine).abs().sum(), count),
        }
        if how.kl_coefficient:
            kl = kl_divergence(logps - batch.per_target["reference"], how.kl_estimator)
            losses = losses + how.kl_coefficient * kl
            metrics["kl"] = ((kl.detach() * mine).sum(), count)
        answers = torch.tensor(float(batch.size), device=logps.device) - (0 if shown is None else shown.sum())
        if how.aggregate == "sequences":
            weights = weights / lengths[batch.sequence]
            normaliser = answers
        elif how.aggregate == "constant":
            normaliser = answers * how.longest
        else:
            normaliser = count
        normaliser = normaliser + batch.per_step.get("idle", 0.0)
        total = (losses * weights).sum()
        if shown is not None and how.ptx_weight and batch.per_step["demonstrations"]:
            nll = -(logps * (1 - mine)).sum()
            total = total + nll * how.ptx_weight * batch.per_step["weights"] / batch.per_step["demonstrations"]
            metrics["demonstrationLoss"] = (nll.detach(), (1 - mine).sum())
        return total, normaliser, metrics

    return loss


def kl_divergence(d: torch.Tensor, estimator: Estimator) -> torch.Tensor:
    """KL(π‖π_ref) at each token from d = log π - log π_ref, on tokens drawn from π (Schulman 2020, "Approximating KL divergence").

    k1 = d has the right mean and, as a loss, no useful gradient; k2 = d²/2 the right gradient; k3 = exp(-d) - 1 + d is never negative.
    """
    d = d.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    if estimator == "k1":
        return d
    return d.square() / 2 if estimator == "k2" else (torch.exp(-d) - 1 + d).clamp(-10, 10)


def mismatch_weights(log_ratio: torch.Tensor, batch: MicroBatch, how: Mismatch) -> torch.Tensor:
    """[N] weights from log(π_trainer/π_engine) [N] of the tokens that the engine drew; without gradient."""
    log_ratio = log_ratio.detach().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    ratio = log_ratio.exp()
    if how == "truncate":
        return ratio.clamp(max=TRUNCATED_AT)
    if how == "mask":
        return torch.where((ratio >= MASKED_OUTSIDE[0]) & (ratio <= MASKED_OUTSIDE[1]), ratio, 0.0)
    mean = batch.averaged(log_ratio).exp()[batch.sequence]
    low, high = SEQUENCE_MASKED_OUTSIDE
    return ((mean >= low) & (mean <= high)).to(ratio.dtype)
