"""LoRA layers whose forward and backward passes are one node each: no products or sums of the output's size beside those needed.

PEFT's own forward is kept for whatever this does not cover: dropout in training, variants (DoRA), biases that are trained, merged or disabled adapters.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn


def fuse_lora(model: nn.Module) -> None:
    """Let every plain LoRA layer of a PEFT model compute in one node. Values are PEFT's up to rounding."""
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            module.forward = partial(_forward, module)


def _forward(layer: Linear, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    active = layer.active_adapters
    name = active[0] if len(active) == 1 else ""
    if args or kwargs or layer.disable_adapters or layer.merged or name not in layer.lora_A or layer.lora_variant:
        return Linear.forward(layer, x, *args, **kwargs)
    dropout = layer.lora_dropout[name]
    if dropout.training and not isinstance(dropout, nn.Identity):
        return Linear.forward(layer, x)
    base, a, b = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    if layer.lora_B[name].bias is not None or any(p.requires_grad for p in base.parameters()):
        return Linear.forward(layer, x)
    y: torch.Tensor = _Lora.apply(x, base.weight, base.bias, a, b, layer.scaling[name])
    return y


class _Lora(torch.autograd.Function):
    """y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ with W frozen. A and B may have more bits than W: their part is then computed in theirs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows.to(a.dtype) @ a.T
        y = nn.functional.linear(rows, weight, bias)
        y = (
            y.addmm_(inner, b.T, alpha=scale)
            if y.dtype == b.dtype
            else y.to(b.dtype).addmm_(inner, b.T, alpha=scale).to(y.dtype)
        )
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scale = scale
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, inner, weight, a, b = ctx.saved_tensors
        g = gradients[0].reshape(-1, gradients[0].shape[-1])
        exact = g.to(b.dtype)
        d_inner = (exact @ b) * ctx.scale
        d_a = d_inner.T @ rows.to(a.dtype) if ctx.needs_input_grad[3] else None
        d_b = (exact.T @ inner) * ctx.scale if ctx.needs_input_grad[4] else None
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = g @ weight
            d_x = d_x.addmm_(d_inner, a) if d_x.dtype == a.dtype else d_x.to(a.dtype).addmm_(d_inner, a).to(d_x.dtype)
            d_x = d_x.view(*gradients[0].shape[:-1], weight.shape[1])
        return d_x, None, None, d_a, d_b, None
