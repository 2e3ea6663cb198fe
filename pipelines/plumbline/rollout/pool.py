"""The pool of rollout actors: the only file of this area that knows Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch
from peft import LoraConfig
from ray.actor import ActorHandle

from plumbline.models.load import load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.rollout.engine import Completion, Request, build_engine, generate

MAX_SLOTS = 256  # answers that one actor decodes at the same time


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class RolloutActor:
    """Holds the base model and merges whatever adapter a call brings. A call depends on its arguments only, so Ray
    may restart the actor and repeat the call."""

    def __init__(self, reference: ModelReference, max_length: int, actors: int) -> None:
        # As many as are always there: sums must repeat exactly, and threads that wait for a core cost more than they give.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // (2 * actors)))
        self._model = load_base(reference)
        self._end = [load_tokenizer(reference).eos_token_id]
        self._max_length = max_length
        self._engine: Any = None

    def generate(
        self, requests: list[Request], adapter: dict[str, torch.Tensor], config: dict[str, Any], version: int
    ) -> list[Completion]:
        """Complete the requests with this adapter; it is merged only when its version is new."""
        if self._engine is None:
            slots = min(MAX_SLOTS, max(8, len(requests)))
            self._engine = build_engine(
                self._model, lora_config(config), self._end, slots=slots, max_length=self._max_length
            )
        if self._engine.adapter_version != version:
            self._engine.load_adapter(adapter, version)
        return generate(self._engine, requests)


def lora_config(plain: dict[str, Any]) -> LoraConfig:
    """The configuration that `adapter_config.json` holds."""
    known = LoraConfig.__dataclass_fields__
    return LoraConfig(**{name: value for name, value in plain.items() if name in known and value is not None})


class RolloutPool:
    """Actors that answer prompts. Which actor gets which request depends on the requests alone, so runs repeat exactly."""

    def __init__(self, actors: list[ActorHandle]) -> None:
        self.actors = actors

    def share(self, rank: int, size: int) -> RolloutPool:
        """The actors that training rank `rank` of `size` talks to: its own, or, where there are too few, a shared one."""
        return RolloutPool(self.actors[rank::size] or [self.actors[rank % len(self.actors)]])

    def generate(
        self, groups: list[list[Request]], adapter: dict[str, torch.Tensor], config: dict[str, Any], version: int
    ) -> list[list[Completion]]:
        """Complete groups of requests (one prompt each) with this adapter; the answers come in the same order.

        The adapter travels as one object by reference, and only it: never the base.
        """
        shipped = ray.put(adapter)
        parts = [groups[i :: len(self.actors)] for i in range(len(self.actors))]
        pending = [
            actor.generate.remote([request for group in part for request in group], shipped, config, version)
            for actor, part in zip(self.actors, parts, strict=True)
        ]
        answers: list[list[Completion]] = [[] for _ in groups]
        for i, (part, completions) in enumerate(zip(parts, ray.get(pending), strict=True)):
            stale = {c.adapter_version for c in completions} - {version}
            assert not stale, f"rollouts came from adapter version {stale}, not {version}"
            flow = iter(completions)
            for j, group in enumerate(part):
                answers[i + j * len(self.actors)] = [next(flow) for _ in group]
        return answers


@contextmanager
def rollout_pool(reference: ModelReference, workers: int, max_length: int) -> Iterator[RolloutPool]:
    """Start `workers` actors, and end them with the block."""
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 2 * workers else 0  # else they share the trainers' GPUs
    actors = [RolloutActor.options(num_gpus=gpus).remote(reference, max_length, workers) for _ in range(workers)]
    try:
        yield RolloutPool(actors)
    finally:
        for actor in actors:
            ray.kill(actor)
