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
from ray.exceptions import RayActorError

from plumbline.errors import PlumblineError
from plumbline.models.load import end_tokens, load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.rollout.engine import Completion, Engine, Request, build_engine, generate

MAX_SLOTS = 256  # answers that one actor decodes at the same time


@ray.remote(num_cpus=0)
class RolloutActor:
    """Holds the base model and merges whatever adapter a call brings. A call depends on its arguments only, so Ray
    may restart the actor and repeat the call."""

    def __init__(self, reference: ModelReference, max_length: int, slots: int, actors: int) -> None:
        # As many as are always there: sums must repeat exactly, and threads that wait for a core cost more than they give.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // (2 * actors)))
        self._reference, self._max_length, self._slots = reference, max_length, slots
        self._engine: Engine | None = None

    def generate(
        self, requests: list[Request], adapter: dict[str, torch.Tensor], config: dict[str, Any], version: int
    ) -> list[Completion]:
        """Complete the requests with this adapter; it is merged only when its version is new."""
        if self._engine is None:  # not in the constructor: Ray would lose the sentence of an error there
            self._engine = self._load(lora_config(config))
        if self._engine.adapter_version != version:
            self._engine.load_adapter(adapter, version)
        return generate(self._engine, requests)

    def _load(self, config: LoraConfig) -> Engine:
        model = load_base(self._reference).to("cuda" if torch.cuda.is_available() else "cpu")
        end = end_tokens(load_tokenizer(self._reference), model)
        return build_engine(model, config, end, slots=self._slots, max_length=self._max_length)


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
        try:
            finished = ray.get(pending)
        except RayActorError as error:
            raise PlumblineError(
                f"a rollout actor was lost too often ({str(error).splitlines()[0]}); out of memory?"
            ) from error
        for i, (part, completions) in enumerate(zip(parts, finished, strict=True)):
            stale = {c.adapter_version for c in completions} - {version}
            if stale:
                raise PlumblineError(f"rollouts came from adapter version {stale}, not {version}")
            flow = iter(completions)
            for j, group in enumerate(part):
                answers[i + j * len(self.actors)] = [next(flow) for _ in group]
        return answers


@contextmanager
def rollout_pool(
    reference: ModelReference, *, workers: int, trainers: int, requests: int, max_length: int, max_failures: int
) -> Iterator[RolloutPool]:
    """Start the actors, and end them with the block.

    Args:
        reference: the model whose base they hold.
        workers: how many actors. They get a GPU each if the cluster has that many beside the trainers'.
        trainers: training workers beside them.
        requests: answers that a step samples in all; decides how many an actor decodes at the same time.
        max_length: longest prompt with answer, in tokens.
        max_failures: how often an actor may be lost.
    """
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= workers + trainers else 0
    slots = min(MAX_SLOTS, max(8, -(-requests // max(workers, trainers))))
    options = {"num_gpus": gpus, "max_restarts": max_failures, "max_task_retries": max_failures}
    actors = [RolloutActor.options(**options).remote(reference, max_length, slots, workers) for _ in range(workers)]
    try:
        yield RolloutPool(actors)
    finally:
        for actor in actors:
            ray.kill(actor)
