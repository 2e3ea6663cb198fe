"""`rlhf`: reinforcement learning on the model's own answers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

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
    validated_by,
)
from plumbline.api.options import foreign_options, option, option_rules
from plumbline.api.stages.rewards import REWARD_KEY, RewardSpec
from plumbline.api.stages.training import MODEL_INPUT, TRAINING_RULES, CheckpointSpec, OptimizerSpec, Schedule, TrainingSpec

Option = float | bool | str | None

_CLIPPED: dict[str, Option] = {
    "clip_low": 0.2,
    "clip_high": 0.2,
    "updates_per_step": 1,
    "epochs_per_step": 1,
    "mismatch": "none",
}
_IN_LOSS: dict[str, Option] = {"kl_coefficient": 0.0, "kl_estimator": "k3"}
_IN_REWARD: dict[str, Option] = {"kl_coefficient": 0.05, "kl_target": None, "kl_horizon": 10_000}
_GROUPS: dict[str, Option] = {"group_size": 8, "skip_equal_groups": False, "drop_truncated": False}

ALGORITHMS: dict[str, dict[str, Option]] = {
    "grpo": _GROUPS | _CLIPPED | _IN_LOSS | {"scale_advantages": True, "aggregate": "tokens"},
    "drGrpo": _GROUPS | _CLIPPED | _IN_LOSS | {"scale_advantages": False, "aggregate": "constant"},
    "dapo": _GROUPS | _CLIPPED | _IN_LOSS
    | {"scale_advantages": True, "aggregate": "tokens", "clip_high": 0.28, "skip_equal_groups": True, "drop_truncated": True},
    "gspo": _GROUPS | _CLIPPED | _IN_LOSS
    | {"scale_advantages": True, "aggregate": "sequences", "clip_low": 3e-4, "clip_high": 4e-4},
    "rloo": _GROUPS | _CLIPPED | _IN_REWARD | {"group_size": 4, "aggregate": "tokens"},
    "reinforcePlusPlus": _CLIPPED | _IN_REWARD | {"group_size": 1, "kl_coefficient": 0.01, "aggregate": "tokens"},
    "reinforcePlusPlusBaseline": _GROUPS | _CLIPPED | _IN_LOSS
    | {"kl_coefficient": 0.01, "kl_estimator": "k2", "aggregate": "tokens"},
    "ppo": _CLIPPED | _IN_REWARD
    | {
        "group_size": 1, "aggregate": "tokens", "updates_per_step": 4, "gae_lambda": 0.95, "discount": 1.0, "value_clip": 0.2,
        "critic_learning_rate": 1e-4, "critic_warmup_steps": 0, "dual_clip": None, "ptx_weight": None,
    },
    "raft": {"group_size": 8, "least_reward": None},
    "rejectionSampling": {"group_size": 8, "least_reward": 1.0},
    "onlineDpo": {"group_size": 2, "beta": 0.1, "updates_per_step": 1},
}  # fmt: skip
"""The options of each algorithm and what they are where the run does not say."""

COMPARED = [name for name, options in ALGORITHMS.items() if options["group_size"] != 1]
"""Algorithms that compare the answers to one prompt."""


class SamplingSpec(SpecModel):
    """How rollouts are sampled. Temperature only: top-k or top-p would change the probabilities that training sees."""

    temperature: PositiveFloat = 1.0
    """Sampling temperature; logits in training are divided by it too, but for raft, rejectionSampling and onlineDpo, to which answers are
    data like any other."""
    max_tokens: PositiveInt = 256
    """Longest answer in tokens."""


class RolloutSpec(SpecModel):
    """The pool of rollout actors."""

    workers: PositiveInt = 1
    """Rollout actors; each holds a merged copy of the model and is sent the adapter after each update."""
    slots: Annotated[int, Field(ge=1, le=4096), WHOLE] | None = None
    """Answers that an actor decodes at the same time; each takes a cache of `maxLength` tokens. Unset: its share of a step's, 256 at most."""
    placement: Literal["disaggregated", "colocated"] = "disaggregated"
    """`disaggregated`: on GPUs of their own, where the cluster has enough. `colocated`: an actor and a training worker share a GPU, and take
    turns: while one works, the other's caches are gone."""
    engine: Literal["auto", "vllm"] = "auto"
    """What samples. `auto`: our own slot engine, or what takes its place where it does not know the model. `vllm`: needs that library, an adapter
    without DoRA and, unless it is vLLM's CPU build, a GPU for each actor."""
    sync_tolerance: PositiveFloat = 0.05
    """Largest mean difference between an engine's and the trainer's log-probabilities of the canary's tokens before the stage stops.
    Float32 differs by 1e-6, bfloat16 by 5e-3."""
    stall_seconds: PositiveInt = 300
    """An actor that has work and draws no token for this long is replaced, and its prompts go to others."""


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

ALONE = "this algorithm compares the answers to one prompt; set groupSize to 2 or more"

NO_TARGET = "klHorizon says how fast klTarget works; set klTarget too, or leave it out"

PAIRED = "colocated actors share the GPUs of training workers; set rollout.workers to parallelism.workers or fewer"

NO_TURNS = "colocated actors give back their caches between turns, which vLLM does not do here; set placement: disaggregated or engine: auto"

NO_KL = "klTarget moves a klCoefficient that is 0; set klCoefficient above 0, where it begins"

NO_PENALTY = "klEstimator is of a penalty whose klCoefficient is 0; set klCoefficient above 0 too, or leave it out"

TURNS = "colocated actors pause while the trainer learns, so answers would only get older; set staleness: 0, or placement: disaggregated"

NO_ROOM = "maxLength holds prompt and answer; set sampling.maxTokens below it"


class RlhfSpec(TrainingSpec):
    """Reinforcement learning with rollout workers. Options that are unset have the values of the algorithm's paper."""

    model_config = validated_by(
        *TRAINING_RULES,
        *option_rules("algorithm", ALGORITHMS),
        ("!has(self.adapter) || self.adapter.method == 'lora'", LORA_ONLY),
        (
            "!has(self.adapter) || !has(self.adapter.quantization) || self.adapter.quantization == 'none'",
            OTHER_POLICY,
        ),
        ("!has(self.parallelism) || !has(self.parallelism.minWorkers)", FIXED),
        (f"!has(self.groupSize) || self.groupSize > 1 || !(self.algorithm in [{', '.join(map(repr, COMPARED))}])", ALONE),
        ("!has(self.klHorizon) || has(self.klTarget)", NO_TARGET),
        (
            "!has(self.rollout) || self.rollout.placement != 'colocated' || self.rollout.workers <= "
            "(has(self.parallelism) && has(self.parallelism.workers) ? self.parallelism.workers : 1)",
            PAIRED,
        ),
        (
            "!has(self.rollout) || self.rollout.placement != 'colocated' || self.rollout.engine != 'vllm'",
            NO_TURNS,
        ),
        ("!has(self.rollout) || self.rollout.placement != 'colocated' || self.staleness == 0", TURNS),
        ("!has(self.klTarget) || !has(self.klCoefficient) || self.klCoefficient > 0.0", NO_KL),
        (
            "!has(self.klEstimator) || (has(self.klCoefficient) ? self.klCoefficient > 0.0 : self.algorithm in "
            f"[{', '.join(repr(name) for name, options in ALGORITHMS.items() if options.get('kl_coefficient'))}])",
            NO_PENALTY,
        ),
        (
            f"(has(self.sampling) ? self.sampling.maxTokens : {SamplingSpec().max_tokens}) < self.maxLength",
            NO_ROOM,
        ),
    )

    inputs: ClassVar = {
        "model": MODEL_INPUT,
        "dataset": Input(type=ArtifactType.DATASET),
        "rewardModel": Input(
            type=ArtifactType.REWARD_MODEL, when="has({block}.rewards) && {block}.rewards.exists(r, r.type == 'rewardModel')"
        ),
        "demonstrations": Input(type=ArtifactType.DATASET, nearest=False, when="has({block}.ptxWeight)"),
    }
    program: ClassVar = "plumbline.stages.rlhf"
    code_version: ClassVar = "3"
    unfingerprinted: ClassVar = TrainingSpec.unfingerprinted | {"rollout"}

    algorithm: Literal[
        "grpo", "drGrpo", "dapo", "gspo", "rloo", "reinforcePlusPlus", "reinforcePlusPlusBaseline", "ppo", "raft",
        "rejectionSampling", "onlineDpo",
    ] = "grpo"  # fmt: skip
    """Advantage estimator and loss. Answers to one prompt are compared by `grpo` (arXiv 2402.03300), `drGrpo` (2503.20783), `dapo`
    (2503.14476), `gspo` (2507.18071), `rloo` (2402.14740), `reinforcePlusPlusBaseline` (2501.03262), `onlineDpo` (best against worst,
    2402.04792); a critic tells what to expect in `ppo` (1707.06347), nothing does in `reinforcePlusPlus`. `raft` (2304.06767) learns the
    best answer of each group by heart, `rejectionSampling` all that reach `leastReward`."""
    steps: PositiveInt = 100
    """Rollout-and-update steps."""
    prompts_per_step: PositiveInt = 32
    """Distinct prompts in a step."""
    group_size: Annotated[int, Field(ge=1, le=1024), WHOLE] | None = None
    """Answers sampled for each prompt: 8 (TRL), 4 (rloo), 2 (onlineDpo), 1 (ppo, reinforcePlusPlus)."""
    staleness: Annotated[int, Field(ge=0, le=16), WHOLE] = 0
    """How many updates old the weights may be that an answer was begun with. 0: sample, then train. 1: the next step's answers are sampled
    while this one's are learned. 2 and more: prompts are handed out that far ahead, and answers under way go on with new weights."""
    updates_per_step: Annotated[int, Field(ge=1, le=64), WHOLE] | None = None
    """Optimizer steps on each batch of rollouts, each on its share of the answers: 1 (ppo: 4)."""
    epochs_per_step: Annotated[int, Field(ge=1, le=16), WHOLE] | None = None
    """Passes over each batch of rollouts, 1."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Where the advantage is negative, ratios below 1 - clipLow get no gradient: 0.2 (gspo: 3e-4)."""
    clip_high: PositiveFloat | None = None
    """Where the advantage is positive, ratios above 1 + clipHigh get no gradient: 0.2 (dapo: 0.28, gspo: 4e-4)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """ppo: bound on ratios where the advantage is negative (arXiv 1912.09729, which has 3). Unset: none."""
    kl_coefficient: NonNegativeFloat | None = None
    """Weight of the KL divergence from the input model: in the loss, 0 as in TRL, which saves the reference pass (reinforcePlusPlusBaseline:
    0.01); in the rewards of rloo and ppo, 0.05, and of reinforcePlusPlus, 0.01."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """How the loss estimates it (Schulman 2020): d, d²/2 or exp(-d) - 1 + d of d = log π - log π_ref. k3 (reinforcePlusPlusBaseline: k2).
    In rewards it is k1."""
    kl_target: PositiveFloat | None = None
    """rloo, reinforcePlusPlus, ppo: klCoefficient is moved so that the KL of an answer comes near this many nats (arXiv 1909.08593).
    Unset: it stays."""
    kl_horizon: PositiveInt | None = None
    """How fast: answers until the coefficient may have changed by a factor of about e^0.2, 10000. A step changes it by a fifth at most."""
    scale_advantages: bool | None = None
    """Divide by the group's standard deviation: true (drGrpo: false)."""
    aggregate: Literal["tokens", "sequences", "constant"] | None = None
    """The loss is a mean over `tokens` of all answers, over `sequences` of each one's mean, or a sum over answers × maxTokens: `constant`.
    tokens (gspo: sequences, drGrpo: constant)."""
    skip_equal_groups: bool | None = None
    """Groups whose answers have all the same reward are replaced by those of further prompts, at most three times as many: false (dapo: true)."""
    drop_truncated: bool | None = None
    """Answers that were cut at maxTokens are not learned from: false (dapo: true)."""
    mismatch: Literal["none", "truncate", "mask", "maskSequences"] | None = None
    """What is done about engines whose probabilities differ from the trainer's. `none`: the ratio is to the engine's. Else it is to the
    trainer's own, computed again, times a weight ρ = π_trainer/π_engine: `truncate` at 2 (TIS), `mask` tokens beyond 0.5 to 5 (IcePop),
    `maskSequences` whose geometric mean is beyond 0.99 to 1.01. none."""
    gae_lambda: Share | None = None
    """ppo: λ of generalised advantage estimation (arXiv 1506.02438), 0.95."""
    discount: Share | None = None
    """ppo: γ, 1."""
    value_clip: PositiveFloat | None = None
    """ppo: by how much a value may move in an update before its loss is clipped, 0.2."""
    critic_learning_rate: PositiveFloat | None = None
    """ppo: of the critic's adapter and head, 1e-4: ten times the policy's, as OpenRLHF's 9e-6 is of its 1e-6."""
    critic_warmup_steps: NonNegativeInt | None = None
    """ppo: steps in which the critic alone learns, 0."""
    ptx_weight: PositiveFloat | None = None
    """ppo: weight of the likelihood of the `demonstrations` beside the loss (InstructGPT's PPO-ptx, which has 27.8 on its scale). Unset: none."""
    least_reward: float | None = None
    """raft, rejectionSampling: answers with less are not learned. raft: none such; rejectionSampling: 1."""
    beta: PositiveFloat | None = None
    """onlineDpo: strength of the tie to the input model, 0.1."""
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

    def option(self, name: str) -> Any:
        """An option of the algorithm, as set or by default; None where the algorithm has no such option."""
        known = ALGORITHMS[self.algorithm]
        return option(self, self.algorithm, name, ALGORITHMS) if name in known else None

    def reads(self, role: str) -> bool:
        needed = {
            "rewardModel": any(r.type == "rewardModel" for r in self.rewards),
            "demonstrations": self.ptx_weight is not None,
        }
        return needed.get(role, True)

    def libraries(self) -> dict[str, tuple[str, str]]:
        return super().libraries() | ({"rollout.engine": ("vllm", "vllm")} if self.rollout.engine == "vllm" else {})

    def secrets(self) -> dict[str, tuple[str, str]]:
        keys = [r.key_secret for r in self.rewards if r.type in ("judge", "http")]
        return super().secrets() | {reward_key(i): (name, "apiKey") for i, name in enumerate(keys) if name is not None}

    def problems(self) -> list[tuple[str, str]]:
        found = super().problems() + foreign_options(self, self.algorithm, ALGORITHMS)
        for i, reward in enumerate(self.rewards):
            found += [(f"rewards[{i}].{field}", what) for field, what in reward.problems()]
        if self.adapter is not None and self.adapter.method != "lora":
            found.append(("adapter.method", LORA_ONLY))
        if self.adapter is not None and self.adapter.quantization == "nf4":
            found.append(("adapter.quantization", OTHER_POLICY))
        if self.parallelism.min_workers is not None:
            found.append(("parallelism.minWorkers", FIXED))
        if self.group_size == 1 and self.algorithm in COMPARED:
            found.append(("groupSize", ALONE))
        if self.kl_horizon is not None and self.kl_target is None:
            found.append(("klHorizon", NO_TARGET))
        if self.rollout.placement == "colocated" and self.rollout.workers > self.parallelism.most:
            found.append(("rollout.workers", PAIRED))
        if self.rollout.placement == "colocated" and self.rollout.engine == "vllm":
            found.append(("rollout.engine", NO_TURNS))
        if self.rollout.placement == "colocated" and self.staleness:
            found.append(("staleness", TURNS))
        if (self.critic_warmup_steps or 0) >= self.steps:
            found.append(("criticWarmupSteps", f"of {self.steps} steps the policy would learn in none; lower it"))
        for i, reward in enumerate(self.rewards):
            if reward.type == "overlong" and reward.option("buffer_tokens") > self.sampling.max_tokens:
                found.append(
                    (f"rewards[{i}].bufferTokens", f"{reward.option('buffer_tokens')} is more than sampling.maxTokens")
                )
        if self.kl_target is not None and self.option("kl_coefficient") == 0:
            found.append(("klTarget", NO_KL))
        if self.kl_estimator is not None and self.option("kl_coefficient") == 0:
            found.append(("klEstimator", NO_PENALTY))
        if self.sampling.max_tokens >= self.max_length:
            found.append(("sampling.maxTokens", NO_ROOM))
        return found


def reward_key(number: int) -> str:
    """Environment variable of the key of judge or endpoint number `number`, from 0."""
    return REWARD_KEY if number == 0 else f"{REWARD_KEY}_{number + 1}"
