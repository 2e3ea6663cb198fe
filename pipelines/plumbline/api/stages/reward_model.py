"""`rewardModel`: a scalar head trained on pairs."""

from __future__ import annotations

from typing import ClassVar

from plumbline.api.base import ArtifactType, Input, NonNegativeFloat, PositiveFloat, PositiveInt
from plumbline.api.stages.training import MODEL_INPUT, TrainingSpec


class RewardModelSpec(TrainingSpec):
    """Train a Bradley-Terry reward model on preference pairs (InstructGPT, arXiv 2203.02155)."""

    inputs: ClassVar = {"model": MODEL_INPUT, "dataset": Input(type=ArtifactType.PREFERENCE_DATASET)}
    output: ClassVar = ArtifactType.REWARD_MODEL

    epochs: PositiveFloat = 1.0
    """Passes over the pairs; more than one overfits (InstructGPT)."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    batch_size: PositiveInt = 64
    """Pairs in one optimizer step, over all workers."""
    centering: NonNegativeFloat = 0.01
    """Weight of (r_chosen + r_rejected)², which keeps rewards around zero (arXiv 2312.09244)."""
