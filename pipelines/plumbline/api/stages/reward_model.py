"""`rewardModel`: a scalar head trained on comparisons."""

from __future__ import annotations

from typing import ClassVar, Literal

from plumbline.api.base import ArtifactType, Input, NonNegativeFloat, PositiveFloat, PositiveInt
from plumbline.api.stages.training import MODEL_INPUT, OptimizerSpec, TrainingSpec


class RewardOptimizerSpec(OptimizerSpec):
    """AdamW with the defaults of reward models."""

    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate. 1e-4 is TRL's for adapters, about ten times OpenRLHF's 9e-6 for full tuning."""


class RewardModelSpec(TrainingSpec):
    """Train a Bradley-Terry reward model (InstructGPT, arXiv 2203.02155). A comparison with a longer answer than `maxLength` is left out."""

    inputs: ClassVar = {"model": MODEL_INPUT, "dataset": Input(type=ArtifactType.PREFERENCE_DATASET)}
    output: ClassVar = ArtifactType.REWARD_MODEL
    program: ClassVar = "plumbline.stages.reward_model"

    learn_from: Literal["pairs", "rankings"] = "pairs"
    """What the dataset holds. Of a ranking, all pairs of answers count together as one comparison (InstructGPT, section 3.5)."""
    epochs: PositiveFloat = 1.0
    """Passes over the comparisons; more than one overfits (InstructGPT)."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    batch_size: PositiveInt = 64
    """Comparisons in one optimizer step, over all workers."""
    centering: NonNegativeFloat = 0.01
    """Weight of (r_chosen + r_rejected)², which keeps rewards around zero (arXiv 2312.09244)."""
    margin: NonNegativeFloat = 0.0
    """By how much a reward must be higher for each point of difference in the ranking's scores (Llama 2: ⅓ on its four grades; pairs differ by 1)."""
    optimizer: RewardOptimizerSpec = RewardOptimizerSpec()
    """Optimizer and learning rate."""
