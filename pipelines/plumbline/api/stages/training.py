"""Blocks that the training kinds share: adapter, optimizer, checkpoints, parallelism."""

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
    StageSpec,
    validated_by,
)
from plumbline.api.options import foreign_options, option, option_rules
from plumbline.api.stages.tracking import TrackingSpec

Schedule = Literal["constant", "linear", "cosine"]

RANGE_HALF = "give both minWorkers and maxWorkers, or none"
OFFLOAD = "cpuOffload moves shards; it needs sharding: fsdp2"
RANGE_OR_NUMBER = "workers is a fixed number, minWorkers and maxWorkers are a range; give the one or the other"


AdapterOption = int | float | bool | str | list[str] | None

ADAPTER_OPTIONS: dict[str, dict[str, AdapterOption]] = {
    "lora": {
        "rank": 16,
        "alpha": 32.0,
        "rank_stabilised": False,
        "init": "zero",
        "dora": False,
        "dropout": 0.0,
        "target_modules": ["all-linear"],
        "quantization": "none",
    },
    "prefix": {"virtual_tokens": 20, "init_text": None},
    "prompt": {"virtual_tokens": 20, "init_text": None},
    "ia3": {},
    "none": {},
}
"""The options of each method and what they are where the run does not say."""

VIRTUAL = ("prefix", "prompt")
"""Methods that train virtual tokens, which stand before those of the text."""


PISSA_QUANTIZED = "init: pissa takes the weights apart, which nf4 has rounded; leave one of the two out"


class AdapterSpec(SpecModel):
    """What is trained. Options that are unset have the values of the method."""

    model_config = validated_by(
        *option_rules("method", ADAPTER_OPTIONS),
        (
            "!has(self.init) || self.init != 'pissa' || !has(self.quantization) || self.quantization != 'nf4'",
            PISSA_QUANTIZED,
        ),
    )

    method: Literal["lora", "prefix", "prompt", "ia3", "none"] = "lora"
    """`lora`: an update of low rank beside linear layers (Hu et al. 2021, arXiv 2106.09685). `prefix`: keys and values of virtual tokens in
    every layer (Li and Liang 2021, 2101.00190). `prompt`: embeddings of virtual tokens (Lester et al. 2021, 2104.08691). `ia3`: factors of
    keys, values and feed-forward activations (Liu et al. 2022, 2205.05638). `none`: all weights, in float32; an adapter that the input
    model has is merged first."""
    rank: PositiveInt | None = None
    """lora: rank r of the update (alpha/r)·B·A, 16."""
    alpha: PositiveFloat | None = None
    """lora: scale of the update, 32; twice the rank is the usual choice."""
    rank_stabilised: bool | None = None
    """lora: scale by alpha/√r instead, so that high ranks learn as fast (rsLoRA, arXiv 2312.03732), false."""
    init: Literal["zero", "pissa"] | None = None
    """lora: `zero` (where unset): A random, B zero. `pissa`: the weight's principal components (arXiv 2404.02948), which learn faster; the
    rest stays frozen. The artifact is then a LoRA of twice the rank on the unchanged base."""
    dora: bool | None = None
    """lora: learn the length of each output's weight apart from its direction (DoRA, arXiv 2402.09353), false. Slower; adds a number per
    output."""
    dropout: Share | None = None
    """lora: dropout on the adapter's input, 0, which keeps training and rollouts on the same policy."""
    target_modules: Annotated[list[str], Field(min_length=1, max_length=64)] | None = None
    """lora: module names to adapt; `all-linear` (where unset) is every linear layer but the output head ("LoRA Without Regret")."""
    quantization: Literal["none", "nf4"] | None = None
    """lora: how the frozen base is held while training, `none` where unset. `nf4`: four bits with double quantization (QLoRA, arXiv
    2305.14314), through bitsandbytes, which the extra `qlora` installs. The artifact is a LoRA of the unchanged base. Beside an input
    model's adapter, which goes on, this is the one option that may be set."""
    virtual_tokens: Annotated[int, Field(ge=1, le=1024), WHOLE] | None = None
    """prefix, prompt: how many, 20. They take up positions of the model: `maxLength` with them must fit."""
    init_text: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    """prefix, prompt: text that the virtual tokens start from, repeated or cut. Unset: tokens drawn from the vocabulary."""

    def option(self, name: str) -> Any:
        """An option of the method, as set or by default."""
        return option(self, self.method, name, ADAPTER_OPTIONS)

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions: (field below the block, sentence)."""
        found = foreign_options(self, self.method, ADAPTER_OPTIONS)
        if self.init == "pissa" and self.quantization == "nf4":
            found.append(("init", PISSA_QUANTIZED))
        return found


class OptimizerSpec(SpecModel):
    """AdamW and its learning-rate schedule."""

    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate. 2e-4 is the usual LoRA value, about ten times that of full tuning (1e-5 to 2e-5); prefix, prompt and ia3 take
    more, 3e-3 and up."""
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
    paged: bool = False
    """Keep the optimizer's state in memory that the GPU driver moves to the node's where the GPU's is short (QLoRA, arXiv 2305.14314).
    Through bitsandbytes; needs a CUDA GPU."""


class CheckpointSpec(SpecModel):
    """Checkpoints make an interrupted stage continue to the same numbers."""

    every_steps: PositiveInt = 50
    """Steps between two checkpoints."""
    keep: PositiveInt = 2
    """How many to keep while the stage runs; they go when its artifact is whole."""


class ParallelismSpec(SpecModel):
    """How the work is spread. Does not enter the fingerprint."""

    model_config = validated_by(
        ("has(self.minWorkers) == has(self.maxWorkers)", RANGE_HALF),
        ("!has(self.workers) || !has(self.minWorkers)", RANGE_OR_NUMBER),
        (
            "!has(self.minWorkers) || !has(self.maxWorkers) || self.minWorkers <= self.maxWorkers",
            "minWorkers must not exceed maxWorkers",
        ),
        ("!self.cpuOffload || self.sharding == 'fsdp2'", OFFLOAD),
    )

    workers: PositiveInt | None = None
    """Training workers (processes of the mesh). Where one is lost the others wait for its replacement, so that the result stays the
    same to the bit. Unset: 1, or the range of `minWorkers` and `maxWorkers`."""
    min_workers: PositiveInt | None = None
    """With `maxWorkers`, instead of `workers`: an elastic group. It goes on with as many as there is room for, this many at least, and
    grows again; the result is the same up to the order of sums."""
    max_workers: PositiveInt | None = None
    """See `minWorkers`."""
    sharding: Literal["fsdp2", "replicate"] = "fsdp2"
    """`fsdp2` shards the frozen base over the workers; `replicate` keeps a copy in each and sums adapter gradients."""
    activation_checkpointing: bool = False
    """Keep only each layer's input and compute the layer again in the backward pass: much less memory, about a third more time."""
    cpu_offload: bool = False
    """Keep shards, gradients and the optimizer's state in the node's memory and bring a layer at a time to the GPU: slow, and for models
    that fit nowhere else. With `sharding: fsdp2`."""
    compile: bool = False
    """Compile with torch.compile what layers do to each number by itself, and layers that are not known here whole: the first step takes longer, by seconds or by minutes. Needs a C++ compiler in the image."""
    max_failures: NonNegativeInt = 3
    """How often a lost worker is replaced before the stage attempt fails. A node that is taken away after notice does not count."""

    @property
    def least(self) -> int:
        """Workers below which there is no training."""
        return self.min_workers or self.workers or 1

    @property
    def most(self) -> int:
        """Workers with whom it begins where there is room, and grows to."""
        return self.max_workers or self.workers or 1

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions: (field below the block, sentence)."""
        found = []
        if self.workers is not None and self.min_workers is not None:
            found.append(("workers", RANGE_OR_NUMBER))
        if (self.min_workers is None) != (self.max_workers is None):
            found.append(("minWorkers" if self.min_workers is None else "maxWorkers", RANGE_HALF))
        elif self.least > self.most:
            found.append(("minWorkers", f"{self.least} is more than maxWorkers {self.most}"))
        if self.cpu_offload and self.sharding != "fsdp2":
            found.append(("cpuOffload", OFFLOAD))
        return found


NF4_SHARDED = "nf4 weights cannot be sharded; set parallelism.sharding: replicate, without cpuOffload"
PAGED_SHARDED = "the paged optimizer has no shards; set parallelism.sharding: replicate, without cpuOffload"
_WHOLE = (
    "!has(self.parallelism) || self.parallelism.sharding != 'fsdp2' || "
    "((!has(self.parallelism.workers) || self.parallelism.workers <= 1) && "
    "(!has(self.parallelism.maxWorkers) || self.parallelism.maxWorkers <= 1) && !self.parallelism.cpuOffload)"
)

PLUS_LORA = "optimizer.loraPlusRatio is the rate of a LoRA's B; leave it out with other methods"

TRAINING_RULES = (
    (
        "!has(self.adapter) || !has(self.adapter.quantization) || self.adapter.quantization != 'nf4' || " + _WHOLE,
        NF4_SHARDED,
    ),
    ("!has(self.optimizer) || !self.optimizer.paged || " + _WHOLE, PAGED_SHARDED),
    (
        "!has(self.adapter) || self.adapter.method == 'lora' || !has(self.optimizer) || self.optimizer.loraPlusRatio == 1.0",
        PLUS_LORA,
    ),
)
"""Rules that every training kind has; one with rules of its own repeats them."""


class TrainingSpec(StageSpec):
    """What supervised, preference and reinforcement tuning have in common."""

    model_config = validated_by(*TRAINING_RULES)

    output: ClassVar = ArtifactType.MODEL
    unfingerprinted: ClassVar = frozenset({"parallelism", "checkpoint", "micro_batch_tokens", "tracking"})

    adapter: AdapterSpec | None = None
    """What to train. Unset: continue the input model's adapter, or, where it has none, a LoRA with the defaults."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """Optimizer and learning rate."""
    max_length: Annotated[int, Field(ge=1, le=1_048_576), WHOLE] = 2048
    """Longest sequence in tokens; longer ones are cut at the end (chats), go on in another sequence (plain texts) or are left
    out (pairs), and counted."""
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
    tracking: TrackingSpec | None = None
    """Experiment trackers that the steps' figures go to. Does not enter the fingerprint."""

    def secrets(self) -> dict[str, tuple[str, str]]:
        return self.tracking.secrets() if self.tracking else {}

    def libraries(self) -> dict[str, tuple[str, str]]:
        tracking = self.tracking.libraries() if self.tracking else {}
        found = {f"tracking.{where}": library for where, library in tracking.items()}
        if self.adapter is not None and self.adapter.quantization == "nf4":
            found["adapter.quantization"] = ("bitsandbytes", "qlora")
        if self.optimizer.paged:
            found["optimizer.paged"] = ("bitsandbytes", "qlora")
        return found

    def problems(self) -> list[tuple[str, str]]:
        found = [(f"parallelism.{where}", what) for where, what in self.parallelism.problems()]
        sharded = self.parallelism.sharding == "fsdp2" and (self.parallelism.most > 1 or self.parallelism.cpu_offload)
        if self.adapter is not None:
            found += [(f"adapter.{where}", what) for where, what in self.adapter.problems()]
            if sharded and self.adapter.quantization == "nf4":
                found.append(("adapter.quantization", NF4_SHARDED))
            if self.adapter.method != "lora" and self.optimizer.lora_plus_ratio != 1:
                found.append(("optimizer.loraPlusRatio", PLUS_LORA))
        if sharded and self.optimizer.paged:
            found.append(("optimizer.paged", PAGED_SHARDED))
        return found


MODEL_INPUT = Input(type=ArtifactType.MODEL, default_to_base=True)
