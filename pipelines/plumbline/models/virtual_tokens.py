"""Virtual tokens, which prefix and prompt tuning train. To whoever reads the text after them, both are keys and values of every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from peft import PeftModel, PromptLearningConfig
    from transformers import PreTrainedModel

Prefix = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values [1, heads, tokens, head size] of each layer: what a cache holds after the virtual tokens."""


def attends_to_all(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all earlier tokens, and so to virtual ones, however far back these are."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and getattr(config, "sliding_window", None) is None


def table(model: PeftModel) -> torch.nn.Parameter:
    """What is trained: [tokens, hidden] for prompt tuning, [tokens, layers · 2 · heads · head size] for prefix tuning."""
    weight: torch.nn.Parameter = model.prompt_encoder["default"].embedding.weight
    return weight


def prefix_of(rows: torch.Tensor, config: PromptLearningConfig) -> Prefix:
    """Prefix tuning's table → keys and values; differentiable."""
    parts = rows.view(len(rows), 2 * config.num_layers, config.num_attention_heads, -1).permute(1, 2, 0, 3)
    return [(parts[i][None], parts[i + 1][None]) for i in range(0, len(parts), 2)]


@torch.no_grad()
def read(base: PreTrainedModel, **tokens: torch.Tensor) -> Prefix:
    """What a model's cache holds after `input_ids` or `inputs_embeds` of one row."""
    cache: Any = base(**tokens, use_cache=True).past_key_values
    return [(layer.keys, layer.values) for layer in cache.layers]


@torch.no_grad()
def learned_prefix(model: PeftModel) -> Prefix:
    """The virtual tokens of a tuned model, for generation."""
    base, config = model.get_base_model(), model.peft_config["default"]
    rows = table(model).to(base.dtype)
    return prefix_of(rows, config) if config.peft_type == "PREFIX_TUNING" else read(base, inputs_embeds=rows[None])
