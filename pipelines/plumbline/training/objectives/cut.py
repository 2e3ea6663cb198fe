"""Contrastive Unlikelihood Training on judgments (Xu et al. 2023, arXiv 2312.14591, equations 5 to 8)."""

from __future__ import annotations

import torch

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics, Objective
from plumbline.training.objectives.orpo import log1mexp
from plumbline.training.objectives.pair import sides


def cut(threshold: float, unlikelihood_weight: float) -> Objective:
    """Half the NLL of the answer after the judgment, half that without it, with inappropriate tokens made less likely.

    Sequences come in pairs: the answer after prompt and judgment, then the same answer after the prompt alone. `bad` in
    `per_sequence` is 1 where the judgment finds fault. A token of such an answer is inappropriate where
    p(token | prompt, judgment) / p(token | prompt) > λ (no gradient through it); its term is -log(1 - p)·weight. Mean over tokens.

    Args:
        threshold: λ.
        unlikelihood_weight: weight of inappropriate tokens.
    """

    def loss(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        judged = batch.sequence % 2 == 0
        informed, plain = logps[judged], logps[~judged]  # the same answers: token by token alike
        bad = sides(batch.per_sequence["bad"])[0][batch.sequence[judged] // 2] > 0.5
        flagged = bad & ((informed - plain).detach().exp() > threshold)
        contrast = torch.where(flagged, -unlikelihood_weight * log1mexp(plain), -plain)
        targets = torch.tensor(float(len(plain)), device=logps.device)
        metrics: Metrics = {"flagged": (flagged.sum().float(), bad.sum().float()), "nll": (-informed.sum(), targets)}
        return 0.5 * (contrast - informed).sum(), targets, metrics

    return loss
