"""A served model's weights behind an engine that fits the memory of its device."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from plumbline.errors import PlumblineError
from plumbline.models.load import cache_bytes_per_token, end_tokens, load_for_generation, load_tokenizer
from plumbline.models.virtual_tokens import Prefix
from plumbline.rollout.decoder import linear_weights
from plumbline.rollout.engine import Engine, Request, Sampling, build_engine, generate
from plumbline.serving.engine_loop import EngineLimits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from plumbline.serving.chat import ServedModel

log = logging.getLogger(__name__)

CPU_CACHE_BYTES = 4 * 2**30  # for keys and values on a CPU, where untouched pages cost nothing
GPU_CACHE_SHARE = 0.8  # of the memory that is free once the weights are there
USEFUL_SLOTS = 16  # a context is shortened rather than serve fewer requests at a time


def load_engine(served: ServedModel, slots: int, share: float) -> tuple[Engine, EngineLimits]:
    """Load the model with its adapter, and let it answer one token.

    Args:
        served: what to load.
        slots: requests to work on at the same time, fewer where memory is short.
        share: part of the memory for keys and values that this model may take.

    Raises:
        InvalidInput: the model or its tokenizer cannot be loaded.
    """
    if served.engine == "vllm":
        return _load_vllm(served, slots, share)
    tokenizer = load_tokenizer(served.reference)
    model, prefix = load_for_generation(served.reference)
    return start_engine(served.name, tokenizer, model, slots, share, prefix=prefix)


def _load_vllm(served: ServedModel, slots: int, share: float) -> tuple[Engine, EngineLimits]:
    from plumbline.rollout.vllm_loading import build_served_vllm

    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = build_served_vllm(served.reference, slots, device=device, share=share, cpu_bytes=int(share * CPU_CACHE_BYTES))
    return engine, EngineLimits(engine.max_length, engine.max_scored, engine.vocabulary)


def start_engine(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    slots: int,
    share: float,
    *,
    prefix: Prefix | None = None,
    adapter_rank: int = 0,
) -> tuple[Engine, EngineLimits]:
    """Put a model behind an engine, and let it answer one token.

    Args:
        name: for messages.
        tokenizer: of the model.
        model: in evaluation mode; the engine takes it over.
        slots: see `load_engine`.
        share: see `load_engine`.
        prefix: virtual tokens that every prompt stands after.
        adapter_rank: room is left for an adapter of this rank beside each request.
    """
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    budget = int(
        share * (GPU_CACHE_SHARE * torch.cuda.mem_get_info()[0] if model.device.type == "cuda" else CPU_CACHE_BYTES)
    )
    positions = model.config.max_position_embeddings
    beside = adapter_bytes(model, adapter_rank) if model.device.type == "cuda" else 0  # a CPU's is touched as it is used
    slots, max_length = cache_plan(budget, cache_bytes_per_token(model), positions, slots, beside)
    if max_length < positions:
        log.warning("model '%s': context cut from %d to %d tokens to fit memory", name, positions, max_length)
    max_length -= prefix[0][0].shape[-2] if prefix else 0
    engine = build_engine(model, None, end_tokens(tokenizer, model), slots, max_length=max_length, prefix=prefix)
    generate(engine, [Request("first", (int(tokenizer.eos_token_id),), Sampling(max_tokens=1))])
    return engine, EngineLimits(max_length, engine.max_scored, model.get_input_embeddings().weight.shape[0])


def adapter_bytes(model: PreTrainedModel, rank: int) -> int:
    """Bytes of an adapter of this rank on all linear layers."""
    return rank * model.dtype.itemsize * sum(sum(weight.shape) for weight in linear_weights(model).values())


def cache_plan(budget: int, bytes_per_token: int, positions: int, wanted: int, beside: int = 0) -> tuple[int, int]:
    """Slots and context that fit the memory.

    Args:
        budget: bytes for keys and values, and for what is beside them.
        bytes_per_token: of one sequence.
        positions: longest context of the model.
        wanted: slots to have if they fit.
        beside: bytes that each slot takes for something else.

    Returns:
        (slots, context length). The full context with fewer slots, down to `USEFUL_SLOTS`; then a shorter context.

    Raises:
        PlumblineError: not even two positions fit.
    """
    slots = min(wanted, max(budget // (bytes_per_token * positions + beside), USEFUL_SLOTS))
    length = min(positions, (budget // slots - beside) // bytes_per_token)
    if length < 2:
        raise PlumblineError(
            f"{budget} bytes for keys and values are too few for {slots} requests; free memory on the device"
        )
    return slots, length
