"""Odds Ratio Preference Optimization (Hong et al. 2024, arXiv 2403.07691, equations 6 and 7)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics, Objective
from plumbline.training.objectives.pair import sides, summary


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0, exact at both ends (Mächler 2012)."""
    x = x.clamp(max=-1e-7)  # a sure answer has infinite odds
    return torch.where(x > -0.6931472, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def orpo(beta: float) -> Objective:
    """NLL of the chosen answers, mean over their tokens, - β·log σ(log odds_c - log odds_r), mean over pairs.

    The odds p/(1 - p) are of the geometric mean p of an answer's token probabilities. Needs no reference. Needs `chosenTargets`
    and `pairs` in `per_step`.

    Args:
        beta: λ of the paper.
    """

    def loss(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        mean = batch.averaged(logps)
        chosen, rejected = sides(mean)
        log_odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
        nll = -sides(batch.summed(logps))[0]
        pairs, metrics = summary(beta * chosen, beta * rejected)
        per_token = batch.per_step["pairs"] / batch.per_step["chosenTargets"]
        metrics["nll"] = (nll.sum() * per_token, pairs)
        metrics["logOdds"] = (log_odds.sum(), pairs)
        return (per_token * nll - beta * logsigmoid(log_odds)).sum(), pairs, metrics

    return loss
