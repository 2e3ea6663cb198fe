"""LoRA layers that read the same input compute in one node: its rows meet all their A at once, and no product or sum is made twice.

PEFT's own forward is kept for whatever this does not cover: dropout in training, variants (DoRA), biases that are trained, merged or disabled adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear
from torch import nn


def fuse_lora(model: nn.Module) -> None:
    """Let every plain LoRA layer of a PEFT model compute in one node. Values are PEFT's up to rounding."""
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            module.forward = partial(_forward, module)


def project(x: torch.Tensor, layers: Sequence[nn.Module]) -> list[torch.Tensor]:
    """`[layer(x) for layer in layers]`, in one node where they are linear layers that are frozen or have plain LoRA."""
    parts = [_part(layer) for layer in layers]
    if any(part is None for part in parts) or all(part.a is None for part in parts if part):
        return [layer(x) for layer in layers]
    return list(
        _Projections.apply(x, [part.scale for part in parts if part], *(t for part in parts if part for t in part[:4]))
    )


def _forward(layer: Linear, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    part = None if args or kwargs else _part(layer)
    if part is None:
        return Linear.forward(layer, x, *args, **kwargs)
    (y,) = _Projections.apply(x, [part.scale], *part[:4])
    return y


class _Part(NamedTuple):
    """One layer: y = x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor | None
    b: torch.Tensor | None
    scale: float


def _part(layer: nn.Module) -> _Part | None:
    """What the layer computes now; None where that is anything else."""
    base = layer.base_layer if type(layer) is Linear else layer
    if type(base) is not nn.Linear or base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return None
    if type(layer) is not Linear:
        return _Part(base.weight, base.bias, None, None, 0.0)
    active = layer.active_adapters
    name = active[0] if len(active) == 1 else ""
    if layer.disable_adapters or layer.merged or name not in layer.lora_A or layer.lora_variant:
        return None
    dropout = layer.lora_dropout[name]
    if dropout.training and not isinstance(dropout, nn.Identity):
        return None
    a, b = layer.lora_A[name], layer.lora_B[name]
    return None if b.bias is not None else _Part(base.weight, base.bias, a.weight, b.weight, layer.scaling[name])


class _Projections(torch.autograd.Function):
    """Several layers with W frozen. A and B may have more bits than W: their part is then computed in theirs."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scales: list[float], *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        weights, biases, all_a, all_b = (tensors[i::4] for i in range(4))
        rows = x.reshape(-1, x.shape[-1])
        a = _stacked(all_a)
        inner = rows.to(a.dtype) @ a.T
        outputs = []
        for weight, bias, b, scale, own in zip(weights, biases, all_b, scales, inner.split(_sizes(all_a), 1), strict=True):
            y = nn.functional.linear(rows, weight, bias)
            if b is not None:
                y = y.to(b.dtype).addmm_(own, b.T, alpha=scale).to(y.dtype)
            outputs.append(y.view(*x.shape[:-1], len(weight)))
        ctx.save_for_backward(rows, inner, *weights, *all_a, *all_b)
        ctx.scales = scales
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        rows, inner, *tensors = ctx.saved_tensors
        count = len(ctx.scales)
        weights, all_a, all_b = (tensors[i * count : (i + 1) * count] for i in range(3))
        a, learns = _stacked(all_a), any(ctx.needs_input_grad[2:])
        flat = [g.reshape(-1, g.shape[-1]) for g in gradients]
        d_inner = torch.empty_like(inner)
        d_a: list[torch.Tensor | None] = [None] * count
        d_b = list(d_a)
        sizes = _sizes(all_a)
        for i, (own, d_own) in enumerate(zip(inner.split(sizes, 1), d_inner.split(sizes, 1), strict=True)):
            if all_b[i] is not None:  # narrow matrices lie the way that matrix products read fastest
                g, b = flat[i].to(all_b[i].dtype), all_b[i] * ctx.scales[i]
                torch.mm(g, b.T.contiguous().T, out=d_own)
                d_b[i] = (own.T @ g).mul_(ctx.scales[i]).T if learns else None
        if learns:
            stacked = (d_inner.T @ rows.to(a.dtype)).split(sizes)
            d_a = [None if one is None else d for one, d in zip(all_a, stacked, strict=True)]
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = flat[0] @ weights[0]
            for g, weight in zip(flat[1:], weights[1:], strict=True):
                d_x.addmm_(g, weight)
            d_x = d_x.to(a.dtype).addmm_(d_inner, a).to(d_x.dtype).view(*gradients[0].shape[:-1], a.shape[1])
        return d_x, None, *(d for i in range(count) for d in (None, None, d_a[i], d_b[i]))


def _stacked(all_a: Sequence[torch.Tensor | None]) -> torch.Tensor:
    there = [a for a in all_a if a is not None]
    return torch.cat(there) if len(there) > 1 else there[0]


def _sizes(all_a: Sequence[torch.Tensor | None]) -> list[int]:
    """The rank of each layer's adapter; 0 where it has none."""
    return [0 if a is None else len(a) for a in all_a]
