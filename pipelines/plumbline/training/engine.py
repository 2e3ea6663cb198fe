"""One optimizer step for every objective, on one process, replicated, or sharded with FSDP2."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from plumbline.api.stages.training import OptimizerSpec, ParallelismSpec
from plumbline.errors import InvalidInput
from plumbline.training.batch import MicroBatch
from plumbline.training.model import TargetLogProbs
from plumbline.training.world import World

Metrics = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Name → (sum, count): a mean whose parts can be added over micro-batches and ranks."""
Objective = Callable[[torch.Tensor, MicroBatch], tuple[torch.Tensor, torch.Tensor, Metrics]]
"""(log-probs [N], batch) → (loss sum, normaliser, metrics). Pure."""


class TrainEngine:
    """Holds the model, its optimizer and the process group; knows nothing of data or of what the objective means.

    Gradients are those of `Σ loss / Σ normaliser` over the whole optimizer step, whatever the split into
    micro-batches and ranks, the padding and the packing.
    """

    def __init__(
        self,
        model: TargetLogProbs,
        spec: OptimizerSpec,
        world: World,
        parallelism: ParallelismSpec = ParallelismSpec(),  # noqa: B008 - it never changes
        temperature: float = 1.0,
    ) -> None:
        self.world, self.spec, self.temperature = world, spec, temperature
        self.sharded = parallelism.sharding == "fsdp2" and world.size > 1
        if parallelism.activation_checkpointing:
            for layer in model.layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        if self.sharded:
            mesh = init_device_mesh(world.device.type, (world.size,))
            for layer in model.layers:
                fully_shard(layer, mesh=mesh)  # moves its own shard to the device: the whole base need not fit there
            fully_shard(model, mesh=mesh, reshard_after_forward=True)  # else a forward after `reference` sees old weights
        else:
            model.to(world.device)
        self.model = model
        self.parameters = model.adapter_parameters()
        fast = {name for name in self.parameters if ".lora_B." in name} if spec.lora_plus_ratio != 1 else set()
        groups = [
            {"params": [p for name, p in self.parameters.items() if (name in fast) == is_fast], "ratio": ratio}
            for is_fast, ratio in ((False, 1.0), (True, spec.lora_plus_ratio))
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate, weight_decay=spec.weight_decay, betas=(0.9, 0.999))
        self._reference = {name: _local(p).clone() for name, p in self.parameters.items()}

    def step(self, micro_batches: list[MicroBatch], objective: Objective, rate: float) -> dict[str, float]:
        """One optimizer step.

        Args:
            micro_batches: this rank's share; ranks may have different numbers.
            objective: the loss.
            rate: learning rate.

        Returns:
            Means over all ranks: `loss`, `gradNorm`, `learningRate`, `tokens` (targets) and the objective's own.

        Raises:
            InvalidInput: the loss is not a number; weights are left as they were.
        """
        self.model.train_adapter()
        totals: dict[str, torch.Tensor] = {}
        loss_sum = torch.zeros((), device=self.world.device)
        normaliser = torch.zeros((), device=self.world.device)
        rounds = self.world.maximum(len(micro_batches))  # FSDP2's collectives need the same count everywhere
        for i in range(rounds):
            batch = micro_batches[i] if i < len(micro_batches) else MicroBatch.empty()
            if self.sharded:
                self.model.set_requires_gradient_sync(i == rounds - 1)
            batch = batch.to(self.world.device)
            logps = self.model(batch, self.temperature)
            loss, weight, metrics = objective(logps, batch) if batch.size else (logps.sum(), torch.zeros(()), {})
            loss.backward()
            loss_sum += loss.detach()
            normaliser += weight
            for name, (value, count) in metrics.items():
                pair = torch.stack([value.detach().float(), count.float()])
                totals[name] = totals[name] + pair if name in totals else pair
        tokens = torch.tensor(float(sum(len(b.targets) for b in micro_batches)), device=self.world.device)
        self.world.sum(shared := torch.stack([loss_sum, normaliser, tokens]))
        loss_sum, normaliser, tokens = shared
        means = self._means(totals)
        if normaliser == 0:  # nothing to learn from, such as rollouts that were all equally good
            self.optimizer.zero_grad()
            return {"loss": 0.0, "gradNorm": 0.0, "learningRate": rate, "tokens": 0.0, **means}
        norm = self._reduce_gradients(1.0 / float(normaliser))
        if not math.isfinite(float(loss_sum)) or not math.isfinite(norm):
            self.optimizer.zero_grad()
            raise InvalidInput(
                f"the loss became {float(loss_sum):g} with gradient norm {norm:g}; lower optimizer.learningRate "
                "(the last checkpoint is good)"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss = float(loss_sum / normaliser)
        return {"loss": loss, "gradNorm": norm, "learningRate": rate, "tokens": float(tokens), **means}

    @torch.no_grad()
    def log_probs(self, micro_batches: list[MicroBatch]) -> list[torch.Tensor]:
        """Log-probabilities [N] of each micro-batch's targets under the present weights, without gradient or dropout."""
        self.model.eval()
        found = []
        for i in range(self.world.maximum(len(micro_batches))):
            batch = micro_batches[i] if i < len(micro_batches) else MicroBatch.empty()
            found.append(self.model(batch.to(self.world.device), self.temperature).cpu())
        return found[: len(micro_batches)]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the adapter is the one that this stage started from: the reference policy."""
        present = {name: _local(p).clone() for name, p in self.parameters.items()}
        self._set_local(self._reference)
        try:
            yield
        finally:
            self._set_local(present)

    def adapter(self) -> dict[str, torch.Tensor]:
        """The whole adapter on the CPU, under PEFT's names. Every rank must call it."""
        return self.model.adapter(self.full_parameters())

    def full_parameters(self) -> dict[str, torch.Tensor]:
        """Trainable parameters, whole, on the CPU. Every rank must call it."""
        return {name: _full(p.detach()).cpu().clone() for name, p in self.parameters.items()}

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """AdamW's moments, whole: `NAME|exp_avg`, `NAME|exp_avg_sq`, `NAME|step`. Every rank must call it."""
        state: dict[str, torch.Tensor] = {}
        for name, p in self.parameters.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                state[f"{name}|{key}"] = _full(value).cpu().clone()
        return state

    def restore(self, parameters: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]) -> None:
        """Put back what `full_parameters` and `optimizer_state` gave, at any number of ranks."""
        for name, p in self.parameters.items():
            p.data.copy_(_like(parameters[name], p))
            keys = [key for key in optimizer if key.rpartition("|")[0] == name]
            self.optimizer.state[p] = {
                key.rpartition("|")[2]: optimizer[key].clone() if key.endswith("|step") else _like(optimizer[key], p).clone()
                for key in keys
            }

    def _reduce_gradients(self, scale: float) -> float:
        """Sum over ranks, scale, clip; returns the norm before clipping."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if self.sharded:
            for gradient in gradients:
                gradient.mul_(self.world.size * scale)  # FSDP2 averages over ranks
        else:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            self.world.sum(flat).mul_(scale)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.spec.max_grad_norm)
        return float(_full(norm))

    def _means(self, totals: dict[str, torch.Tensor]) -> dict[str, float]:
        names = self._agree(sorted(totals))
        if not names:
            return {}
        zero = torch.zeros(2, device=self.world.device)
        table = self.world.sum(torch.stack([totals.get(name, zero) for name in names]))
        return {name: float(value / count) for name, (value, count) in zip(names, table, strict=True) if count > 0}

    def _agree(self, names: list[str]) -> list[str]:
        """The metric names of all ranks: one without data has none of its own."""
        if self.world.size == 1:
            return names
        gathered: list[list[str]] = [[] for _ in range(self.world.size)]
        torch.distributed.all_gather_object(gathered, names)
        return sorted(set().union(*gathered))

    def _set_local(self, values: dict[str, torch.Tensor]) -> None:
        for name, p in self.parameters.items():
            _local(p).copy_(values[name])


def _local(p: torch.Tensor) -> torch.Tensor:
    return p.to_local().detach() if isinstance(p, DTensor) else p.detach()


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(value: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """`value` laid out over the ranks as `p` is."""
    value = value.to(p.device)
    return distribute_tensor(value, p.device_mesh, p.placements) if isinstance(p, DTensor) else value
