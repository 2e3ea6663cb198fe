"""`rlhf`: reinforcement learning on the model's own answers."""

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
from plumbline.api.stages.training import MODEL_INPUT, TRAINING_RULES, CheckpointSpec, OptimizerSpec, Schedule, TrainingSpec


class SamplingSpec(SpecModel):
    """How rollouts are sampled. Temperature only: top-k or top-p would change the probabilities that training sees."""

    temperature: PositiveFloat = 1.0
    """Sampling temperature; log-probabilities in training are divided by it too."""
    max_tokens: PositiveInt = 256
    """Longest answer in tokens."""


class RewardSpec(SpecModel):
    """One verifiable reward; several are summed by weight."""

    type: Literal["exactMatch", "numericMatch"] = "exactMatch"
    """`exactMatch`: 1 if the answer is the reference answer up to white space. `numericMatch`: 1 if their last numbers are equal."""
    weight: PositiveFloat = 1.0
    """Weight in the sum."""


class RolloutSpec(SpecModel):
    """The pool of rollout actors."""

    workers: PositiveInt = 1
    """Rollout actors; each holds a merged copy of the model and is sent the adapter after each update."""
    sync_tolerance: PositiveFloat = 0.05
    """Largest mean difference between the engine's and the trainer's log-probabilities of a token before the stage stops.
    Float32 differs by 1e-6, bfloat16 by 5e-3."""


class RlhfOptimizerSpec(OptimizerSpec):
    """AdamW with the defaults of reinforcement learning."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate. 1e-5 is ten times the usual 1e-6 of full tuning."""
    schedule: Schedule = "constant"
    """Decay after the warm-up: none, or to zero at the last step."""
    warmup_ratio: Share = 0.0
    """Share of the steps in which the rate rises linearly from zero."""


class RlhfCheckpointSpec(CheckpointSpec):
    """Checkpoints of reinforcement learning, whose steps take longer."""

    every_steps: PositiveInt = 10
    """Steps between two checkpoints."""


LORA_ONLY = "rollout workers are sent a LoRA after each update; set adapter.method: lora or leave it out"

OTHER_POLICY = "rollouts come from the base as it is, which one rounded to nf4 is not; leave quantization out"

FIXED = "rollout workers hold their places beside a fixed number of training workers; set workers"


class RlhfSpec(TrainingSpec):
    """Reinforcement learning with rollout workers: GRPO (arXiv 2402.03300)."""

    model_config = validated_by(
        *TRAINING_RULES,
        ("!has(self.adapter) || self.adapter.method == 'lora'", LORA_ONLY),
        (
            "!has(self.adapter) || !has(self.adapter.quantization) || self.adapter.quantization == 'none'",
            OTHER_POLICY,
        ),
        ("!has(self.parallelism) || !has(self.parallelism.minWorkers)", FIXED),
    )

    inputs: ClassVar = {"model": MODEL_INPUT, "dataset": Input(type=ArtifactType.DATASET)}
    program: ClassVar = "plumbline.stages.rlhf"
    unfingerprinted: ClassVar = TrainingSpec.unfingerprinted | {"rollout"}

    algorithm: Literal["grpo"] = "grpo"
    """Advantage estimator and loss. `grpo`: rewards standardised within the group of answers to one prompt."""
    steps: PositiveInt = 100
    """Rollout-and-update steps."""
    prompts_per_step: PositiveInt = 32
    """Distinct prompts in a step."""
    group_size: Annotated[int, Field(ge=2, le=1024), WHOLE] = 8
    """Answers sampled for each prompt (TRL: 8). One answer has no group to compare with."""
    updates_per_step: Annotated[int, Field(ge=1, le=16), WHOLE] = 1
    """Optimizer steps on each batch of rollouts. Above 1 the clipped ratio matters."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Where the advantage is negative, ratios below 1 - clipLow get no gradient (PPO: 0.2)."""
    clip_high: PositiveFloat = 0.2
    """Where the advantage is positive, ratios above 1 + clipHigh get no gradient (PPO: 0.2; DAPO: 0.28)."""
    kl_coefficient: NonNegativeFloat = 0.0
    """Weight of the KL penalty to the input model (k3 estimator). 0, as in TRL and DAPO, saves the reference pass."""
    scale_advantages: bool = True
    """Divide by the group's standard deviation; off is Dr.GRPO's choice (arXiv 2503.20783)."""
    sampling: SamplingSpec = SamplingSpec()
    """How answers are sampled."""
    rewards: list[RewardSpec] = Field(default=[RewardSpec()], min_length=1, max_length=16)
    """What is rewarded. The reference answer is the last assistant turn of the dataset's row."""
    rollout: RolloutSpec = RolloutSpec()
    """Rollout actors. Does not enter the fingerprint."""
    optimizer: RlhfOptimizerSpec = RlhfOptimizerSpec()
    """Optimizer and learning rate."""
    checkpoint: RlhfCheckpointSpec = RlhfCheckpointSpec()
    """When to save for resuming."""

    def problems(self) -> list[tuple[str, str]]:
        found = super().problems()
        if self.adapter is not None and self.adapter.method != "lora":
            found.append(("adapter.method", LORA_ONLY))
        if self.adapter is not None and self.adapter.quantization == "nf4":
            found.append(("adapter.quantization", OTHER_POLICY))
        if self.parallelism.min_workers is not None:
            found.append(("parallelism.minWorkers", FIXED))
        return found
