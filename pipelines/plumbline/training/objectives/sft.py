"""Supervised fine-tuning: cross-entropy on the answers."""

from __future__ import annotations

import torch

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives import Metrics


def sft(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
    """-Σ log p, normalised by the number of targets: the mean over tokens, not over sequences."""
    return -logps.sum(), torch.tensor(float(len(logps)), device=logps.device), {}
