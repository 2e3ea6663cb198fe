"""Conditional supervised tuning with a weight for each answer (C-RLFT, Wang et al. 2023, arXiv 2309.11235, equation 6)."""

from __future__ import annotations

import torch

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics


def weighted(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
    """-Σ w·log p / number of targets. Needs `weight` in `per_sequence`; the class condition is part of the prompt."""
    targets = torch.tensor(float(len(logps)), device=logps.device)
    loss = -(batch.per_sequence["weight"][batch.sequence] * logps).sum()
    return loss, targets, {"nll": (-logps.sum(), targets)}
