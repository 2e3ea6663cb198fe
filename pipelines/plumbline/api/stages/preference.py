"""`preference`: offline tuning on pairs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plumbline.api.base import ArtifactType, Input, PositiveFloat, PositiveInt
from plumbline.api.stages.training import MODEL_INPUT, OptimizerSpec, Schedule, TrainingSpec


class PreferenceOptimizerSpec(OptimizerSpec):
    """AdamW with the defaults of offline preference tuning."""

    learning_rate: PositiveFloat = 5e-5
    """Peak learning rate. 5e-5 is ten times the paper's full-tuning 5e-6, as is usual for adapters."""
    schedule: Schedule = "linear"
    """Decay after the warm-up: none, or to zero at the last step."""


class PreferenceSpec(TrainingSpec):
    """Preference tuning without reinforcement learning: Direct Preference Optimization (arXiv 2305.18290)."""

    inputs: ClassVar = {"model": MODEL_INPUT, "dataset": Input(type=ArtifactType.PREFERENCE_DATASET)}
    program: ClassVar = "plumbline.stages.preference"

    objective: Literal["dpo"] = "dpo"
    """The loss. `dpo`: -log sigmoid(beta · difference of log-ratios to the input model)."""
    beta: PositiveFloat = 0.1
    """Strength of the tie to the input model (DPO paper: 0.1)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of swapped labels (conservative DPO)."""
    optimizer: PreferenceOptimizerSpec = PreferenceOptimizerSpec()
    """Optimizer and learning rate."""
    epochs: PositiveFloat = 1.0
    """Passes over the pairs."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    batch_size: PositiveInt = 64
    """Pairs in one optimizer step, over all workers (DPO paper: 64)."""
