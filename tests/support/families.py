"""Tiny random language models of several families, the same each time."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "head_dim": 8,
}  # fmt: skip
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral of short sight": (MistralForCausalLM, MistralConfig, {"sliding_window": 5}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {}),
    "smollm3": (
        SmolLM3ForCausalLM,
        SmolLM3Config,
        {"no_rope_layers": [1, 0], "pad_token_id": 0},
    ),  # layers of one class differ
}


def tiny(family: str) -> PreTrainedModel:
    """A model of 2 layers and 64 tokens whose norms are away from their start. Seeds torch."""
    model, config, options = FAMILIES[family]
    torch.manual_seed(0)
    base: PreTrainedModel = model(config(**SIZES, **options))
    for name, p in base.named_parameters():
        if "norm" in name:
            p.data += 0.3 * torch.randn(p.shape)
    return base
