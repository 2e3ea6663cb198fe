"""One optimizer step for every objective, on one process, replicated, or sharded with FSDP2."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from plumbline.api.stages.training import OptimizerSpec, ParallelismSpec
from plumbline.errors import InvalidInput
from plumbline.training.batch import MicroBatch
from plumbline.training.checkpoint import OPTIMIZER, PARAMETERS, Checkpoint, Piece
from plumbline.training.kernels import compile_layers
from plumbline.training.model import TargetLogProbs
from plumbline.training.objectives import Objective
from plumbline.training.optimizer import adamw
from plumbline.training.throughput import Cost, Work
from plumbline.training.world import World

ROWS_NAMED = 10


class TrainEngine:
    """Holds the model, its optimizer and the process group; knows nothing of data or of what the objective means.

    Gradients are those of `Σ loss / Σ normaliser` over the whole optimizer step, whatever the split into
    micro-batches and ranks, the padding and the packing. `name` tells its tensors from another engine's in one checkpoint, `rate_field` people what to lower.
    """

    def __init__(
        self,
        model: TargetLogProbs,
        spec: OptimizerSpec,
        world: World,
        parallelism: ParallelismSpec = ParallelismSpec(),  # noqa: B008 - it never changes
        temperature: float = 1.0,
        keep_reference: bool = False,
        name: str = "",
        rate_field: str = "optimizer.learningRate",
    ) -> None:
        self.world, self.spec, self.temperature, self._name, self._rate_field = world, spec, temperature, name, rate_field
        self.cost, self.work = Cost.of(model.base, head=model.has_logits), Work()
        self.sharded = parallelism.sharding == "fsdp2" and (world.size > 1 or parallelism.cpu_offload)
        if parallelism.compile:
            _check_compiler()
            compile_layers(model.layers)
        if parallelism.activation_checkpointing:
            for layer in model.layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        if self.sharded:
            shard = partial(fully_shard, mesh=world.mesh(), **_policies(model, world, parallelism))
            for layer in model.layers:
                shard(layer)  # moves its own shard to the device: the whole base need not fit there
            shard(model, reshard_after_forward=True)  # else a forward after `reference` sees old weights
            register_fsdp_forward_method(model, "next_tokens")
        else:
            model.to(world.device)
        self.model = model
        self.parameters = model.trainable()
        fast = {name for name in self.parameters if ".lora_B." in name} if spec.lora_plus_ratio != 1 else set()
        groups = [
            {"params": [p for name, p in self.parameters.items() if (name in fast) == is_fast], "ratio": ratio}
            for is_fast, ratio in ((False, 1.0), (True, spec.lora_plus_ratio))
        ]
        self.optimizer = adamw(groups, spec, world.device)
        self._reference = {name: _local(p).clone() for name, p in self.parameters.items() if keep_reference}

    def step(self, micro_batches: list[MicroBatch], objective: Objective, rate: float) -> dict[str, float]:
        """One optimizer step.

        Args:
            micro_batches: this rank's share; ranks may have different numbers.
            objective: the loss.
            rate: learning rate.

        Returns:
            Means over all ranks: `loss`, `gradNorm`, `learningRate`, `tokens` (targets) and the objective's own.

        Raises:
            InvalidInput: the loss is not a number; names the rows, and leaves weights as they were.
        """
        self.model.train_adapter()
        totals: dict[str, torch.Tensor] = {}
        loss_sum = torch.zeros((), device=self.world.device)
        normaliser = torch.zeros((), device=self.world.device)
        losses: list[tuple[torch.Tensor, list[int]]] = []
        rounds = self.world.maximum(len(micro_batches))  # FSDP2's collectives need the same count everywhere
        for i in range(rounds):
            batch = micro_batches[i] if i < len(micro_batches) else MicroBatch.empty()
            if self.sharded:
                self.model.set_requires_gradient_sync(i == rounds - 1)
            batch = batch.to(self.world.device)
            logps = self._forward(batch)
            loss, weight, metrics = objective(logps, batch) if batch.size else (logps.sum(), torch.zeros(()), {})
            loss.backward()
            loss_sum += loss.detach()
            losses.append((loss.detach(), batch.rows))
            normaliser += weight
            for name, (value, count) in metrics.items():
                pair = torch.stack([value.detach().float(), count.float()])
                totals[name] = totals[name] + pair if name in totals else pair
        counts = [sum(float(getattr(b, name)) for b in micro_batches) for name in ("tokens", "pairs")]
        counts.append(float(sum(len(b.targets) for b in micro_batches)))
        shared = torch.cat([torch.stack([loss_sum, normaliser]), torch.tensor(counts, device=self.world.device)])
        loss_sum, normaliser, *counted = self.world.sum(shared)
        self.work += Work(*(float(count) for count in counted))
        tokens = counted[2]
        means = self._means(totals)
        if normaliser == 0:  # nothing to learn from, such as rollouts that were all equally good
            self.optimizer.zero_grad()
            return {"loss": 0.0, "gradNorm": 0.0, "learningRate": rate, "tokens": 0.0, **means}
        norm = self._reduce_gradients(1.0 / float(normaliser))
        if not math.isfinite(float(loss_sum)) or not math.isfinite(norm):
            self.optimizer.zero_grad()
            raise InvalidInput(
                f"the loss became {float(loss_sum):g} with gradient norm {norm:g}{self._guilty(losses)}; mend or remove such "
                f"rows, or lower {self._rate_field} (the last checkpoint is good)"
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
        return self._asked(micro_batches, self._forward)

    @torch.no_grad()
    def next_tokens(self, micro_batches: list[MicroBatch]) -> list[torch.Tensor]:
        """Likeliest tokens [N] in the places of each micro-batch's targets under the present weights, without dropout."""
        return self._asked(micro_batches, self._next_tokens)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the weights are those that this stage started from, the reference policy. For `keep_reference` only."""
        present = {name: _local(p).clone() for name, p in self.parameters.items()}
        self._set_local(self._reference)
        try:
            yield
        finally:
            self._set_local(present)

    def adapter(self) -> dict[str, torch.Tensor]:
        """The whole adapter on the CPU, under PEFT's names; empty where whole weights are trained. Every rank must call it."""
        return self.model.adapter(self.full_parameters()) if self.model.adapter_config() is not None else {}

    def full_parameters(self) -> dict[str, torch.Tensor]:
        """Trainable parameters, whole, on the CPU. Every rank must call it."""
        return {name: _full(p.detach()).cpu().clone() for name, p in self.parameters.items()}

    def pieces(self) -> dict[str, Piece]:
        """A copy of what this rank keeps of the parameters and of the optimizer's state, for a checkpoint.

        Sharded tensors are there by rows; of whole ones each rank takes its share.
        """
        kept: dict[str, Piece] = {}
        for number, (name, tensor) in enumerate(self._state().items()):
            if isinstance(tensor, DTensor):
                start, stop = self._rows(len(tensor))
                if start < stop:
                    kept[name] = Piece(_copied(tensor.to_local()), start, tuple(tensor.shape))
            elif number % self.world.size == self.world.rank:
                kept[name] = Piece(_copied(tensor), 0, tuple(tensor.shape))
        return kept

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Put back parameters and optimizer state, whatever the number of ranks that saved them."""
        keys: dict[str, list[str]] = {}
        parameters, optimizer = self._name + PARAMETERS, self._name + OPTIMIZER
        for saved in checkpoint.shapes:
            if saved.startswith(optimizer):
                name, _, key = saved.removeprefix(optimizer).rpartition("|")
                keys.setdefault(name, []).append(key)
        for name, p in self.parameters.items():
            _local(p).copy_(self._own_rows(checkpoint, parameters + name, p))
            self.optimizer.state[p] = {}
            for key in keys.get(name, []):
                saved = f"{optimizer}{name}|{key}"
                if checkpoint.shapes[saved] != tuple(p.shape):  # such as the number of steps
                    self.optimizer.state[p][key] = checkpoint.rows(saved)
                    continue
                local = self._own_rows(checkpoint, saved, p).to(_local(p).device)
                self.optimizer.state[p][key] = (
                    DTensor.from_local(local, p.device_mesh, p.placements, shape=p.shape, stride=p.stride(), run_check=False)
                    if isinstance(p, DTensor)
                    else local
                )

    def _asked(self, micro_batches: list[MicroBatch], ask: Callable[[MicroBatch], torch.Tensor]) -> list[torch.Tensor]:
        """What `ask` says of each micro-batch, on the CPU; ranks with fewer keep step."""
        self.model.eval()
        found = []
        for i in range(self.world.maximum(len(micro_batches))):
            batch = micro_batches[i] if i < len(micro_batches) else MicroBatch.empty()
            found.append(ask(batch.to(self.world.device)).cpu())
        return found[: len(micro_batches)]

    def _forward(self, batch: MicroBatch) -> torch.Tensor:
        with self._precision():
            logps: torch.Tensor = self.model(batch, self.temperature)
        return logps

    def _next_tokens(self, batch: MicroBatch) -> torch.Tensor:
        with self._precision():
            return self.model.next_tokens(batch)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.model.compute_dtype == torch.bfloat16)

    def _guilty(self, losses: list[tuple[torch.Tensor, list[int]]]) -> str:
        """The rows, over all ranks, of micro-batches whose loss is no number; of all where each loss is one."""
        found = self.world.gather([(math.isfinite(float(loss)), rows) for loss, rows in losses])
        everyone = [batch for batches in found for batch in batches]
        wrong = [rows for finite, rows in everyone if not finite] or [rows for _, rows in everyone]
        numbers = sorted({row for rows in wrong for row in rows if row >= 0})
        if not numbers:
            return ""
        more = f" and {len(numbers) - ROWS_NAMED} more" if len(numbers) > ROWS_NAMED else ""
        named = ", ".join(map(str, numbers[:ROWS_NAMED]))
        return f" in a batch of the dataset's {'rows' if len(numbers) > 1 else 'row'} {named}{more} (counted from 0)"

    def _state(self) -> dict[str, torch.Tensor]:
        """All that training changes, by its name in checkpoints."""
        parameters, optimizer = self._name + PARAMETERS, self._name + OPTIMIZER
        state: dict[str, torch.Tensor] = {parameters + name: p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                state[f"{optimizer}{name}|{key}"] = value
        return state

    def _rows(self, count: int) -> tuple[int, int]:
        """Which of `count` rows FSDP2 keeps on this rank: those of `torch.chunk`."""
        each = math.ceil(count / self.world.size)
        return min(self.world.rank * each, count), min((self.world.rank + 1) * each, count)

    def _own_rows(self, checkpoint: Checkpoint, name: str, p: torch.Tensor) -> torch.Tensor:
        return checkpoint.rows(name, *self._rows(len(p))) if isinstance(p, DTensor) else checkpoint.rows(name)

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
        names = sorted(set().union(*self.world.gather(list(totals))))  # a rank without data has none of its own
        if not names:
            return {}
        zero = torch.zeros(2, device=self.world.device)
        table = self.world.sum(torch.stack([totals.get(name, zero) for name in names]))
        return {name: float(value / count) for name, (value, count) in zip(names, table, strict=True) if count > 0}

    def _set_local(self, values: dict[str, torch.Tensor]) -> None:
        for name, p in self.parameters.items():
            _local(p).copy_(values[name])


def together(told: list[dict[str, float]]) -> dict[str, float]:
    """What several steps of an engine say: their tokens in all, and means of what those say that had any."""
    whole = [one for one in told if one["tokens"]] or told
    names = {name: None for one in whole for name in one}
    found = {name: [one[name] for one in whole if name in one] for name in names}
    return {name: sum(values) / (1 if name == "tokens" else len(values)) for name, values in found.items()}


def _local(p: torch.Tensor) -> torch.Tensor:
    return p.to_local().detach() if isinstance(p, DTensor) else p.detach()


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _policies(model: TargetLogProbs, world: World, parallelism: ParallelismSpec) -> dict[str, Any]:
    """How FSDP2 computes and where it keeps shards. Adapters are computed in float32 whatever the base has."""
    policies: dict[str, Any] = {}
    if model.compute_dtype == torch.bfloat16:
        policies["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if parallelism.cpu_offload:
        policies["offload_policy"] = CPUOffloadPolicy(pin_memory=world.device.type == "cuda")
    return policies


def _check_compiler() -> None:
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if not any(shutil.which(name) for name in compilers):
        raise InvalidInput(
            f"parallelism.compile: torch.compile needs a C++ compiler, and there is none here ({' or '.join(compilers)}); put one "
            "into the image or leave compile out"
        )


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
