"""Hidden states → log-probabilities of targets, in chunks: the logits of a whole batch are never there at once.

With a vocabulary of 150,000 the logits of 32,000 tokens are 20 GB in float32, and as much again for their gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**24  # 64 MB of float32
LEAST_ROWS, MOST_ROWS = 64, 4096  # fewer waste the matrix units, more the cache


def target_log_probs(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """[N] log-probabilities, float32, of `targets` under softmax(head(hidden) / temperature).

    Args:
        head: the output layer; says its `out_features`.
        hidden: [N, H], those positions only that predict a target.
        targets: [N] tokens.
        temperature: above 0.
    """
    if type(head) is nn.Linear and not head.weight.requires_grad:
        logps: torch.Tensor = _FrozenHead.apply(hidden, head.weight, head.bias, targets, temperature)
        return logps
    rows = _rows(int(head.out_features))
    if len(hidden) <= rows or not torch.is_grad_enabled():
        return torch.cat(
            [_log_probs(head, h, t, temperature) for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)]
        )
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(_log_probs, head, h, t, temperature, use_reentrant=False) for h, t in chunks])


def likeliest(head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """[N] tokens with the highest logits at positions `hidden` [N, H]."""
    return torch.cat([head(part).argmax(dim=1) for part in hidden.split(_rows(int(head.out_features)))])


def _log_probs(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    return -nn.functional.cross_entropy(head(hidden).float() / temperature, targets, reduction="none")


def _rows(vocabulary: int) -> int:
    return max(LEAST_ROWS, min(MOST_ROWS, CHUNK_LOGITS // vocabulary))


class _FrozenHead(torch.autograd.Function):
    """A frozen head needs no second look at the logits: ∂ log p(y)/∂h = (W_y - Σ_v p_v·W_v) / temperature is a row of the size of h.

    It is found with the logits of the forward pass and scaled by the incoming gradient in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = _rows(len(weight))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = nn.functional.linear(hidden[part], weight, bias).float()
            if temperature != 1.0:
                logits /= temperature
            target = targets[part, None]
            logits -= logits.amax(dim=1, keepdim=True)
            own = logits.gather(1, target)
            shares = logits.exp_()  # of the total: each pass over the logits counts
            total = shares.sum(dim=1, keepdim=True)
            logps[part] = (own - total.log())[:, 0]
            if slopes is not None:
                shares.scatter_add_(1, target, -total)
                slopes[part] = (shares.to(weight.dtype) @ weight).div_(total.mul_(-temperature))
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return logps

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (slopes * gradients[0][:, None]).to(slopes.dtype), None, None, None, None
