"""What layers do to each number by itself, forward and back: pure functions, each of several passes over memory, or of one where they are compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

Tensors = tuple[torch.Tensor, ...]


class Elementwise(NamedTuple):
    """The functions of this file, as they are or compiled."""

    normed: Callable[[torch.Tensor, torch.Tensor, float], Tensors]
    normed_back: Callable[..., torch.Tensor]
    gated: Callable[[torch.Tensor, torch.Tensor], Tensors]
    gated_back: Callable[..., Tensors]
    turned: Callable[..., Tensors]
    turned_back: Callable[..., Tensors]


def _normed(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> Tensors:
    """w·x / sqrt(mean x² + ε), in float32 until w comes in, and what x was multiplied by."""
    exact = x.float()
    scale = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_()
    scale = scale.div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return (exact * scale).to(x.dtype).mul_(weight), scale


def _normed_back(d_y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    exact, d = x.float(), (d_y * weight).float()
    along = (d * exact).sum(-1, keepdim=True).mul_(scale**3).div_(-x.shape[-1])
    return d.mul_(scale).addcmul_(exact, along).to(x.dtype)


def _gated(gate: torch.Tensor, up: torch.Tensor) -> Tensors:
    """silu(gate)·up, and silu(gate)."""
    open_ = nn.functional.silu(gate)
    return open_ * up, open_


def _gated_back(d_y: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, open_: torch.Tensor) -> Tensors:
    return torch.ops.aten.silu_backward(d_y * up, gate), d_y * open_


def _turned(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Tensors:
    """Queries and keys [R, T, heads, D] turned by cos and sin [R, T, 1, D]."""
    first, second = sin.chunk(2, -1)
    return _turn(q, cos, first, second, 1), _turn(k, cos, first, second, 1)


def _turned_back(d_q: torch.Tensor, d_k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Tensors:
    first, second = sin.chunk(2, -1)
    return _turn(d_q, cos, second, first, -1), _turn(d_k, cos, second, first, -1)


def _turn(x: torch.Tensor, cos: torch.Tensor, first: torch.Tensor, second: torch.Tensor, sign: int) -> torch.Tensor:
    """(x₁, x₂) → (x₁·cos₁ - sign·x₂·first, x₂·cos₂ + sign·x₁·second)."""
    y = x * cos
    (x1, x2), (y1, y2) = x.chunk(2, -1), y.chunk(2, -1)
    y1.addcmul_(x2, first, value=-sign)
    y2.addcmul_(x1, second, value=sign)
    return y


EAGER = Elementwise(_normed, _normed_back, _gated, _gated_back, _turned, _turned_back)


@cache
def compiled() -> Elementwise:
    """Each function in one pass, compiled at its first call, once for all layers of this process."""
    functions: list[Any] = [torch.compile(function, dynamic=True) for function in EAGER]
    return Elementwise(*functions)
