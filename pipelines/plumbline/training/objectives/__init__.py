"""Objectives, one file each: pure functions `(log-probs [N], batch) → (loss sum, normaliser, metrics)`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from plumbline.training.batch import MicroBatch

Metrics = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Name → (sum, count): a mean whose parts can be added over micro-batches and ranks."""
Objective = Callable[[torch.Tensor, MicroBatch], tuple[torch.Tensor, torch.Tensor, Metrics]]
