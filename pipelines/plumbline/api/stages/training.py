"""Blocks that the training kinds share: adapter, optimizer, checkpoints, parallelism."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plumbline.api.base import (
    WHOLE,
    ArtifactType,
    Input,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    SpecModel,
    StageSpec,
)

Schedule = Literal["constant", "linear", "cosine"]


class AdapterSpec(SpecModel):
    """A LoRA adapter (Hu et al. 2021, arXiv 2106.09685)."""

    method: Literal["lora"] = "lora"
    """Kind of adapter."""
    rank: PositiveInt = 16
    """Rank r of the update (alpha/r)·B·A."""
    alpha: PositiveFloat = 32.0
    """Scale of the update; twice the rank is the usual choice."""
    rank_stabilised: bool = False
    """Scale by alpha/√r instead, so that high ranks learn as fast (rsLoRA, arXiv 2312.03732)."""
    init: Literal["zero", "pissa"] = "zero"
    """`zero`: A random, B zero. `pissa`: the weight's principal components (arXiv 2404.02948), which learn faster; the rest stays frozen.
    The artifact is then a LoRA of twice the rank on the unchanged base."""
    dora: bool = False
    """Learn the length of each output's weight apart from its direction (DoRA, arXiv 2402.09353). Slower; adds a number per output."""
    dropout: Share = 0.0
    """Dropout on the adapter's input. 0 keeps training and rollouts on the same policy."""
    target_modules: list[str] = Field(default=["all-linear"], min_length=1, max_length=64)
    """Module names to adapt; `all-linear` is every linear layer but the output head ("LoRA Without Regret")."""


class OptimizerSpec(SpecModel):
    """AdamW and its learning-rate schedule."""

    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate. 2e-4 is the usual LoRA value, about ten times that of full tuning."""
    lora_plus_ratio: PositiveFloat = 1.0
    """Learning rate of an adapter's B as a multiple of that of A (LoRA+, arXiv 2402.12354, which advises 16)."""
    schedule: Schedule = "cosine"
    """Decay after the warm-up: none, or to zero at the last step."""
    warmup_ratio: Share = 0.03
    """Share of the steps in which the rate rises linearly from zero (Alpaca: 0.03)."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm over all workers."""


class CheckpointSpec(SpecModel):
    """Checkpoints make an interrupted stage continue to the same numbers."""

    every_steps: PositiveInt = 50
    """Steps between two checkpoints."""
    keep: PositiveInt = 2
    """How many to keep while the stage runs; they go when its artifact is whole."""


class ParallelismSpec(SpecModel):
    """How the work is spread. Does not enter the fingerprint."""

    workers: PositiveInt = 1
    """Training workers (processes of the mesh)."""
    sharding: Literal["fsdp2", "replicate"] = "fsdp2"
    """`fsdp2` shards the frozen base over the workers; `replicate` keeps a copy in each and sums adapter gradients."""
    activation_checkpointing: bool = False
    """Keep only each layer's input and compute the layer again in the backward pass: much less memory, about a third more time."""
    max_failures: NonNegativeInt = 3
    """How often a lost worker is replaced before the stage attempt fails."""


class TrainingSpec(StageSpec):
    """What supervised, preference and reinforcement tuning have in common."""

    output: ClassVar = ArtifactType.MODEL
    unfingerprinted: ClassVar = frozenset({"parallelism", "checkpoint", "micro_batch_tokens"})

    adapter: AdapterSpec | None = None
    """The adapter to train. Unset: continue the input model's adapter, or, where it has none, a LoRA with the defaults."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """Optimizer and learning rate."""
    max_length: Annotated[int, Field(ge=1, le=1_048_576), WHOLE] = 2048
    """Longest sequence in tokens; longer ones are cut at the end (supervised) or left out (pairs), and counted."""
    micro_batch_tokens: PositiveInt = 8192
    """Most tokens (padding included) in one forward pass of one worker. Bounds memory; does not change the gradient."""
    shuffle: bool = True
    """Every epoch in a random order of its own. Off: in the dataset's order, such as the curriculum of a `mix.order`."""
    seed: NonNegativeInt = 0
    """Seed of data order, adapter initialisation, dropout and sampling."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """When to save for resuming."""
    parallelism: ParallelismSpec = ParallelismSpec()
    """Workers and sharding."""


MODEL_INPUT = Input(type=ArtifactType.MODEL, default_to_base=True)
