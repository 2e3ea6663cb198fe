"""`sft`: supervised fine-tuning on chats."""

from __future__ import annotations

from typing import ClassVar, Literal

from plumbline.api.base import ArtifactType, Input, PositiveFloat, PositiveInt
from plumbline.api.stages.training import MODEL_INPUT, TrainingSpec


class SftSpec(TrainingSpec):
    """Supervised fine-tuning: cross-entropy on the answers."""

    inputs: ClassVar = {"model": MODEL_INPUT, "dataset": Input(type=ArtifactType.DATASET)}
    program: ClassVar = "plumbline.stages.sft"

    epochs: PositiveFloat = 3.0
    """Passes over the data (Alpaca: 3)."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    batch_size: PositiveInt = 64
    """Sequences in one optimizer step, over all workers."""
    train_on: Literal["all", "last"] = "all"
    """Loss on every assistant turn, or on the last only."""
    packing: bool = True
    """Several short chats in one row, each blind to the others; off: rows of like length, padded. Same gradient."""
