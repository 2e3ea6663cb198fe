"""Weights that follow an adapter: the base is kept, the weight in use is base + scale * B·A, with DoRA at lengths of its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from plumbline.errors import InvalidInput

if TYPE_CHECKING:  # imported where it is used: a process that runs no adapter starts a second sooner
    from peft import LoraConfig

PREFIX = "base_model.model."
A, B, LENGTHS = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


class AdaptedWeights:
    """Linear weights by module name; `load` rewrites them in place for an adapter.

    Args:
        config: what the adapters look like; None if there will be none.
        weights: module name → weight [out, in] in use. Before the first `load` they hold the base.

    Raises:
        InvalidInput: the kind of adapter is not plain LoRA on linear weights.
    """

    def __init__(self, config: LoraConfig | None, weights: dict[str, torch.Tensor]) -> None:
        if config is not None:
            wrong = [
                name
                for name in ("lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication")
                if getattr(config, name, None)
            ]
            if config.bias != "none":
                wrong.append("bias")
            if wrong:
                raise InvalidInput(f"adapter: {wrong[0]} is not supported by the engines; use LoRA on linear layers")
        self._config = config
        self._weights = weights
        self._base: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set each weight to base + scale·B·A, computed in float32, then cast; others go back to the base.

        DoRA's lengths m give m·W/|W| of that weight W, each row at its own (Liu et al. 2024, equation 5).

        Args:
            tensors: as `peft.get_peft_model_state_dict` names them. A: [r, in], B: [out, r], lengths: [out].

        Raises:
            InvalidInput: the tensors do not fit; nothing has changed then.
        """
        pairs = self.pairs(tensors)
        for module in self._base.keys() - pairs.keys():
            self._weights[module].copy_(self._base[module])
        for module, (a, b, lengths) in pairs.items():
            weight = self._weights[module]
            base = self._base.setdefault(module, weight.clone())
            delta = self.scale(module) * (b.to(weight.device, torch.float32) @ a.to(weight.device, torch.float32))
            turned = self._config is not None and self._config.fan_in_fan_out
            adapted = (base.T if turned else base).float() + delta
            if lengths is not None:
                adapted *= (lengths.to(adapted.device, torch.float32) / adapted.norm(dim=1))[:, None]
            weight.copy_(adapted.T if turned else adapted)

    def scale(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (arXiv 2312.03732)."""
        from peft.utils.other import get_pattern_key

        assert self._config is not None
        ranks, alphas = self._config.rank_pattern or {}, self._config.alpha_pattern or {}
        rank = ranks.get(get_pattern_key(list(ranks), module), self._config.r)
        alpha = alphas.get(get_pattern_key(list(alphas), module), self._config.lora_alpha)
        return float(alpha / math.sqrt(rank) if self._config.use_rslora else alpha / rank)

    def pairs(self, tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Module → A, B and DoRA's lengths.

        Raises:
            InvalidInput: see `load`.
        """
        if self._config is None:
            raise InvalidInput(
                "adapter: this engine was built without an adapter configuration; give it one to load adapters"
            )
        ends = (A, B, LENGTHS) if self._config.use_dora else (A, B)
        accepted = " or ".join([f"{PREFIX}MODULE{A}", *ends[1:]])
        for name in tensors:
            if not (name.startswith(PREFIX) and name.endswith(ends)):
                raise InvalidInput(f"adapter: tensor '{name}' is no LoRA weight; accepted is {accepted}")
        pairs = {}
        modules = {name.removeprefix(PREFIX).removesuffix(end) for name in tensors for end in ends if name.endswith(end)}
        for module in sorted(modules):
            if module not in self._weights:
                raise InvalidInput(f"adapter: the model has no linear layer '{module}' that an adapter may change")
            missing = [end for end in ends if PREFIX + module + end not in tensors]
            if missing:
                raise InvalidInput(f"adapter: tensor '{PREFIX}{module}{missing[0]}' is missing; they come together")
            a, b = tensors[PREFIX + module + A], tensors[PREFIX + module + B]
            shape = (b.shape[0], a.shape[1])
            if self._config.fan_in_fan_out:
                shape = shape[::-1]
            if a.shape[0] != b.shape[1] or shape != tuple(self._weights[module].shape):
                raise InvalidInput(
                    f"adapter: '{module}' has A {tuple(a.shape)} and B {tuple(b.shape)}, "
                    f"which do not fit the weight {tuple(self._weights[module].shape)}"
                )
            pairs[module] = (a, b, tensors.get(PREFIX + module + LENGTHS))
        return pairs
