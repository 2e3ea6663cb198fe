"""How fast training is: tokens a second, model FLOPs utilisation, memory. Numbers of the clock, so never part of an artifact's data."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from plumbline.training.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_PER_SECOND, MFU, MEMORY = "tokensPerSecond", "mfu", "peakMemoryGiB"
ROLLOUT_SECONDS, ROLLOUT_SHARE, ACTORS_LOST = "rolloutSeconds", "rolloutShare", "actorsLost"
TIMED = (TOKENS_PER_SECOND, MFU, MEMORY, ROLLOUT_SECONDS, ROLLOUT_SHARE, ACTORS_LOST)
"""What the clock and the system say: a `Meter`; how long and for which part of a step training waited for answers, and how often a rollout
actor was lost in it."""

PEAKS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500), ("B300", 2250), ("B200", 2250),
    ("GH200", 990), ("H200 NVL", 836), ("H200", 989), ("H100 NVL", 836), ("H100 PCIe", 756), ("H100", 989), ("H800", 989), ("H20", 148),
    ("A100", 312), ("A800", 312), ("A30", 165), ("A40", 150), ("A10", 125), ("A16", 18), ("A2", 18), ("RTX A6000", 155),
    ("L40S", 362), ("L40", 181), ("L4", 121), ("RTX 6000 Ada", 364),
)  # fmt: skip
"""Peak of dense bfloat16 matrix products in TFLOPS, from the makers' data sheets; of like names the longer one comes first."""


def peak_flops(device_name: str) -> float | None:
    """Most FLOPS of a whole GPU in bfloat16; None where it is not known, or only a slice of one (MIG).

    Args:
        device_name: as `torch.cuda.get_device_name` has it, such as `NVIDIA H100 80GB HBM3`.
    """
    words = device_name.replace("-", " ").split()
    if "MIG" in words:
        return None
    for name, tera in PEAKS:
        if all(word in words for word in name.split()):
            return tera * 1e12
    return None


@dataclass(frozen=True)
class Work:
    """What training steps had to process, over all workers.

    Attributes:
        tokens: of all sequences, prompts too, shared ones once, without padding.
        pairs: (token, earlier token) pairs that attention compares: half the sum of squared lengths.
        targets: tokens whose probability was asked for.
    """

    tokens: float = 0.0
    pairs: float = 0.0
    targets: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.pairs + other.pairs, self.targets + other.targets)


@dataclass(frozen=True)
class Cost:
    """FLOPs of forward and backward pass that a model's training needs; what is computed twice (activation checkpointing) counts once.

    A weight costs 2 in the forward pass, 2 for the gradient of its input and, where it is trained, 2 for its own: the usual 6N for
    whole models and 4N for adapters on a frozen base (Kaplan et al. 2020, arXiv 2001.08361). Embedding rows are looked up, not
    multiplied; the head runs at targets only.
    """

    per_token: float
    per_pair: float
    per_target: float

    @classmethod
    def of(cls, causal: PreTrainedModel, head: bool = True) -> Cost:
        """Of a model that is ready to train: adapters are in it, and only what is trained asks for a gradient.

        Args:
            causal: the Hugging Face model.
            head: whether its output layer is used, which reward models leave out.
        """
        config = causal.config.get_text_config()
        output = causal.get_output_embeddings()
        apart = {id(p) for module in causal.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
        apart |= {id(p) for p in output.parameters()} if output is not None else set()
        share = _active_experts(config)
        per_token = sum(
            _weights(p) * (share if ".experts." in name else 1.0) * (6 if p.requires_grad else 4)
            for name, p in causal.named_parameters()
            if id(p) not in apart
        )
        logits = (
            sum(_weights(p) * (6 if p.requires_grad else 4) for p in output.parameters())
            if head and output is not None
            else 0.0
        )
        return cls(per_token, 3 * 4 * config.num_hidden_layers * _attention_width(config), logits)

    def flops(self, work: Work) -> float:
        return self.per_token * work.tokens + self.per_pair * work.pairs + self.per_target * work.targets


def _weights(p: torch.Tensor) -> int:
    """Number of weights; four-bit ones lie packed, and know how many they are."""
    state = getattr(p, "quant_state", None)
    return math.prod(state.shape) if state is not None else p.numel()


def _active_experts(config: Any) -> float:
    """Share of a mixture's experts that a token goes through."""
    counts = (getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts"))
    experts = next((count for count in counts if count), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    return chosen / experts if experts and chosen else 1.0


def _attention_width(config: Any) -> int:
    """Length of all heads' queries."""
    heads = getattr(config, "num_attention_heads", 0)
    return heads * (getattr(config, "head_dim", None) or config.hidden_size // max(1, heads))


class Meter:
    """A stopwatch between the steps of one worker. Checkpoints and the making of data count as time; start-up does not."""

    def __init__(self, cost: Cost, world: World, clock: Callable[[], float] = time.perf_counter) -> None:
        self._cost, self._device, self._clock = cost, world.device, clock
        cuda = world.device.type == "cuda"
        peak = peak_flops(torch.cuda.get_device_name(world.device)) if cuda else None
        self._peak = peak * world.size if peak else None
        self._before, self._since = Work(), clock()

    def read(self, work: Work) -> dict[str, float]:
        """Of the time since the last reading: `tokensPerSecond` and `mfu` over all workers, `mfu` only where the device's peak is
        known. `peakMemoryGiB` is the most that this process held so far: of a GPU, allocated by torch, else resident.

        Args:
            work: all work since the meter was made.
        """
        now = self._clock()
        seconds = max(now - self._since, 1e-9)
        found = {TOKENS_PER_SECOND: (work.tokens - self._before.tokens) / seconds}
        if self._peak is not None:
            found[MFU] = (self._cost.flops(work) - self._cost.flops(self._before)) / seconds / self._peak
        found[MEMORY] = peak_memory(self._device) / 2**30
        self._before, self._since = work, now
        return found


def peak_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
