"""`sft`: supervised fine-tuning on chats or plain texts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plumbline.api.base import (
    WHOLE,
    ArtifactType,
    Input,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Share,
    SpecModel,
    validated_by,
)
from plumbline.api.stages.training import MODEL_INPUT, TRAINING_RULES, VIRTUAL, TrainingSpec

EMBEDDINGS_TWICE = "adapter.method: none trains every weight, the embeddings too; leave embeddings out"
REPLY_TOO_LONG = "earlyStopping.maxTokens must leave room for a prompt within maxLength"
PACKED_VIRTUAL = "packed chats would share one row's virtual tokens; set packing: false or leave it out"


class EmbeddingsSpec(SpecModel):
    """Embedding rows that are trained too, in the input and in the output layer (they share them where the model does)."""

    rows: Literal["new", "all"] = "new"
    """`new`: those that an `extendTokenizer` stage added; far fewer, and the model's own tokens keep their meaning. `all`: every
    row, as Chinese LLaMA did (Cui et al. 2023, arXiv 2304.08177)."""
    alone: bool = False
    """Train nothing else: the first of Chinese LLaMA's two stages, which brings new rows into place before the model moves. A
    second `sft` stage without it then trains them with an adapter."""


class EarlyStoppingSpec(SpecModel):
    """Early stopping by the Instruction Following Score, the share of replies that answer a prompt instead of going on with it (AlShikh et al.
    2023, arXiv 2307.03692). The best step's weights are handed over, whether training stopped early or not."""

    every_steps: PositiveInt = 20
    """Optimizer steps between two evaluations. One costs `maxTokens` forward passes over twice the prompts."""
    prompts: Annotated[int, Field(ge=8, le=4096), WHOLE] = 64
    """How many of the dataset's chats are held out from training, a fifth at most: their first instructions are the prompts, half of them cut
    in the middle of a sentence."""
    max_tokens: PositiveInt = 16
    """Longest reply in an evaluation: tone shows at the beginning."""
    threshold: Share = 0.9
    """Stop only at this score or above; the paper's models reach 0.90 to 0.95."""
    window: Annotated[int, Field(ge=2, le=100), WHOLE] = 3
    """Evaluations over which the score's slope is taken."""
    min_slope: NonNegativeFloat = 0.01
    """Stop only when the score gains less than this from one evaluation to the next."""
    max_drift: PositiveFloat | None = None
    """Stop when a reply's token is on average this much likelier (in nats) than under the input model, an estimate of the KL divergence.
    Unset: no cap."""
    min_accuracy: Share = 0.95
    """What the tone classifier, which is trained on the dataset itself, must tell rightly of answers and continuations that it has not seen.
    Below it the stage is refused; the paper's is right in 0.97."""


class SftSpec(TrainingSpec):
    """Supervised fine-tuning: cross-entropy on the answers of chats, or on all tokens of plain texts (continued pre-training)."""

    model_config = validated_by(
        *TRAINING_RULES,
        (
            "!has(self.adapter) || !has(self.embeddings) || !has(self.embeddings.alone) || !self.embeddings.alone",
            "embeddings.alone trains no adapter; leave adapter out",
        ),
        ("!has(self.adapter) || !has(self.embeddings) || self.adapter.method != 'none'", EMBEDDINGS_TWICE),
        (
            f"!has(self.adapter) || !has(self.packing) || !self.packing || !(self.adapter.method in {list(VIRTUAL)})",
            PACKED_VIRTUAL,
        ),
        ("!has(self.earlyStopping) || self.earlyStopping.maxTokens < self.maxLength", REPLY_TOO_LONG),
    )

    inputs: ClassVar = {"model": MODEL_INPUT, "dataset": Input(type=ArtifactType.DATASET)}
    program: ClassVar = "plumbline.stages.sft"

    embeddings: EmbeddingsSpec | None = None
    """Train embedding rows beside the adapter. Unset: they stay as they are."""
    early_stopping: EarlyStoppingSpec | None = None
    """Stop when the model follows instructions and learns to do so no better. For chats. Unset: all steps are done."""
    epochs: PositiveFloat = 3.0
    """Passes over the data (Alpaca: 3)."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    batch_size: PositiveInt = 64
    """Sequences in one optimizer step, over all workers."""
    train_on: Literal["all", "last"] = "all"
    """Loss on every assistant turn, or on the last only. Plain texts have no turns: `last` is refused."""
    packing: bool | None = None
    """Several short chats in one row, each blind to the others; off: rows of like length, padded. Same gradient. Unset: on, but for
    adapters with virtual tokens (`prefix`, `prompt`), which stand once before a row."""

    def problems(self) -> list[tuple[str, str]]:
        found = super().problems()
        if self.embeddings and self.embeddings.alone and self.adapter:
            found.append(("adapter", "embeddings.alone trains no adapter; leave adapter out"))
        if self.embeddings and self.adapter and self.adapter.method == "none":
            found.append(("embeddings", EMBEDDINGS_TWICE))
        if self.packing and self.adapter and self.adapter.method in VIRTUAL:
            found.append(("packing", PACKED_VIRTUAL))
        if self.early_stopping and self.early_stopping.max_tokens >= self.max_length:
            found.append(("earlyStopping.maxTokens", REPLY_TOO_LONG))
        return found
