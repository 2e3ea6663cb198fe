"""`sft`: supervised fine-tuning on chats."""

from __future__ import annotations

from typing import ClassVar, Literal

from plumbline.api.base import ArtifactType, Input, PositiveFloat, PositiveInt, SpecModel, validated_by
from plumbline.api.stages.training import MODEL_INPUT, TrainingSpec


class EmbeddingsSpec(SpecModel):
    """Embedding rows that are trained too, in the input and in the output layer (they share them where the model does)."""

    rows: Literal["new", "all"] = "new"
    """`new`: those that an `extendTokenizer` stage added; far fewer, and the model's own tokens keep their meaning. `all`: every
    row, as Chinese LLaMA did (Cui et al. 2023, arXiv 2304.08177)."""
    alone: bool = False
    """Train nothing else: the first of Chinese LLaMA's two stages, which brings new rows into place before the model moves. A
    second `sft` stage without it then trains them with an adapter."""


class SftSpec(TrainingSpec):
    """Supervised fine-tuning: cross-entropy on the answers."""

    model_config = validated_by(
        (
            "!has(self.adapter) || !has(self.embeddings) || !has(self.embeddings.alone) || !self.embeddings.alone",
            "embeddings.alone trains no adapter; leave adapter out",
        ),
    )

    inputs: ClassVar = {"model": MODEL_INPUT, "dataset": Input(type=ArtifactType.DATASET)}
    program: ClassVar = "plumbline.stages.sft"

    embeddings: EmbeddingsSpec | None = None
    """Train embedding rows beside the adapter. Unset: they stay as they are."""
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

    def problems(self) -> list[tuple[str, str]]:
        if self.embeddings and self.embeddings.alone and self.adapter:
            return [("adapter", "embeddings.alone trains no adapter; leave adapter out")]
        return []
