"""The optimizer of a training stage: AdamW, its state paged where the run asks for it."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from plumbline.api.stages.training import OptimizerSpec
from plumbline.errors import InvalidInput

BETAS = (0.9, 0.999)


def adamw(groups: list[dict[str, Any]], spec: OptimizerSpec, device: torch.device) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) over groups of parameters.

    Raises:
        InvalidInput: a paged one is asked for on a device that has no unified memory, or without bitsandbytes.
    """
    if not spec.paged:
        return torch.optim.AdamW(groups, lr=spec.learning_rate, weight_decay=spec.weight_decay, betas=BETAS)
    if device.type != "cuda":
        raise InvalidInput(
            f"optimizer.paged: pages move between a CUDA GPU's memory and the node's, and this worker runs on {device.type}; "
            "set paged: false, or give the stage GPUs"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InvalidInput("optimizer.paged: needs bitsandbytes; install plumbline[qlora]")
    return paged_adamw(groups, spec)


def paged_adamw(groups: list[dict[str, Any]], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """That of bitsandbytes, whose whole state is tensors, so that checkpoints can hold it as they hold torch's."""
    from bitsandbytes.optim import PagedAdamW

    class Paged(PagedAdamW):  # type: ignore[misc]
        def update_step(self, group: dict[str, Any], p: torch.Tensor, gindex: int, pindex: int) -> None:
            state = self.state[p]
            state["step"] = int(state["step"])
            for name in ("state1", "state2"):
                if p.is_cuda and p.numel() >= 1e5 and not getattr(state[name], "is_paged", False):  # from a checkpoint
                    state[name] = self.get_state_buffer(p).copy_(state[name])
            super().update_step(group, p, gindex, pindex)
            state["step"] = torch.tensor(float(state["step"]))

    return Paged(groups, lr=spec.learning_rate, weight_decay=spec.weight_decay, betas=BETAS)
