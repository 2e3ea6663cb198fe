"""Rollout actors that die, hang, or are taken over by another trainer: every prompt is answered once, with the right weights."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any

import pytest
import ray
import torch

from plumbline.api.stages.rlhf import RlhfSpec
from plumbline.errors import PlumblineError
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.rollout.actors import RolloutActor
from plumbline.rollout.engine import Completion, Request, Sampling
from plumbline.rollout.groups import Task
from plumbline.rollout.pool import RolloutPool, rollout_pool
from plumbline.training.model import build_trainable

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
REFERENCE = ModelReference(TINY)
PROMPT = (5, 6, 7, 8)


@pytest.fixture(scope="module")
def adapter() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    model = build_trainable(REFERENCE, RlhfSpec(max_length=512), "rlhf")
    config = model.adapter_config()
    assert config is not None
    return model.adapter({name: p.detach() for name, p in model.trainable().items()}), config


def two_actors() -> AbstractContextManager[tuple[list[Any], Any]]:
    return rollout_pool(REFERENCE, workers=2, trainers=1, answers=32, max_length=512, colocated=False)


@pytest.fixture(scope="module")
def living(ray_session: str) -> Iterator[list[Any]]:
    with two_actors() as (found, _):
        yield found


@pytest.fixture
def actors(living: list[Any]) -> list[Any]:
    """Two for all tests, as they outlive a trainer: every pool begins with what the last one has left in them. One that was killed last is back."""
    for actor in living:
        while True:
            with suppress(ray.exceptions.RayActorError):
                pid(actor)
                break
            time.sleep(0.2)
    return living


@pytest.fixture
def new_actors(ray_session: str) -> Iterator[list[Any]]:
    """Two that have not begun."""
    with two_actors() as (found, _):
        yield found


def pool_of(
    actors: list[Any], config: dict[str, Any], said: list[str], stall: float = 600, failures: int = 3
) -> RolloutPool:
    return RolloutPool(actors, config, Request("canary", PROMPT, Sampling(max_tokens=4)), failures, stall, said.append)


def tasks(count: int, length: int = 300, answers: int = 2) -> list[Task]:
    """Long ones, so that actors are busy with them for a while."""
    return [
        Task(
            p, tuple(Request(f"{p}/{k}", (*PROMPT, p), Sampling(max_tokens=length, seed=9 * p + k)) for k in range(answers))
        )
        for p in range(count)
    ]


def collect(pool: RolloutPool, count: int) -> dict[int, list[Completion]]:
    found: dict[int, list[Completion]] = {}
    while sum(position >= 0 for position in found) < count:
        for position, completions in pool.collect(0.5):
            assert position not in found, "answered twice"
            found[position] = completions
    return found


def plain(found: dict[int, list[Completion]]) -> dict[int, list[list[int]]]:
    return {position: [c.tokens for c in completions] for position, completions in found.items() if position >= 0}


def pid(actor: Any) -> int:
    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))


def test_lost_and_hung_actors_are_replaced_and_nothing_is_lost(actors: list[Any], adapter: Any) -> None:
    tensors, config = adapter
    said: list[str] = []
    quiet = pool_of(actors, config, said)
    assert len(quiet.submit(tasks(8), tensors, 0)) == 2  # a canary each
    expected = collect(quiet, 8)
    assert not said
    assert all({c.first_version, c.adapter_version} == {0} for found in expected.values() for c in found)

    other = pool_of(actors, config, said, stall=8)
    other.submit(tasks(8), tensors, 1)
    time.sleep(0.5)
    os.kill(pid(actors[0]), signal.SIGKILL)
    killed = collect(other, 8)
    assert plain(killed) == plain(expected)
    assert "rollout actor 0 was lost" in said[0]

    said.clear()
    frozen = pid(actors[1])
    os.kill(frozen, signal.SIGSTOP)
    other.submit(tasks(8), tensors, 2)
    hung = collect(other, 8)
    assert plain(hung) == plain(expected)
    assert all({c.first_version, c.adapter_version} == {2} for found in hung.values() for c in found)
    assert any("drawn no token for 8 seconds" in words for words in said)
    other.submit(tasks(8), tensors, 3)  # both work again
    assert plain(collect(other, 8)) == plain(expected)


def test_another_trainer_takes_over(actors: list[Any], adapter: Any) -> None:
    """One that was killed has left work behind, of later weights than those that the next one begins with."""
    tensors, config = adapter
    said: list[str] = []
    pool_of(actors, config, said).submit(tasks(16), tensors, 7)
    time.sleep(1)
    changed = {name: t + 0.05 for name, t in tensors.items()}
    second = pool_of(actors, config, said)
    second.submit(tasks(4, length=20), changed, 3)
    found = collect(second, 4)
    assert all({c.first_version, c.adapter_version} == {3} for group in found.values() for c in group)
    third = pool_of(actors, config, said)
    third.submit(tasks(4, length=20), tensors, 3)
    assert plain(collect(third, 4)) != plain(found)
    assert not said


@ray.remote(num_cpus=0)
class Trainer:
    """Dies with its work just sent."""

    def submit_and_die(self, actors: list[Any], adapter: Any) -> None:
        pool_of(actors, adapter[1], []).submit(tasks(8), adapter[0], 5)
        os._exit(1)


def test_a_trainer_that_dies_with_its_work_just_sent(new_actors: list[Any], adapter: Any) -> None:
    """Its adapter is gone with it, whether or not an actor has begun."""
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(Trainer.remote().submit_and_die.remote(new_actors, adapter))
    said: list[str] = []
    second = pool_of(new_actors, adapter[1], said)
    second.submit(tasks(4, length=20), adapter[0], 3)
    found = collect(second, 4)
    assert all({c.first_version, c.adapter_version} == {3} for group in found.values() for c in group)
    assert not said


def test_an_engine_that_fails_is_replaced(actors: list[Any], adapter: Any) -> None:
    """Such as by an error of its GPU, after which the process lives and is of no use."""
    tensors, config = adapter
    said: list[str] = []
    pool = pool_of(actors, config, said)
    pool.submit(tasks(8), tensors, 0)
    expected = plain(collect(pool, 8))

    def broken(actor: Any) -> None:
        def step() -> list[Any]:
            raise RuntimeError("an illegal memory access")

        actor._engine.step = step

    ray.get(actors[0].__ray_call__.remote(broken))
    pool.submit(tasks(8), tensors, 1)
    assert plain(collect(pool, 8)) == expected
    assert pool.lost == 1
    assert "rollout actor 0 was lost (its engine failed: RuntimeError: an illegal memory access)" in said[0]


def test_an_actor_without_a_place_leaves_its_prompts_to_the_others(actors: list[Any], adapter: Any) -> None:
    nowhere = RolloutActor.options(resources={"nowhere": 1}).remote(REFERENCE, 512, 16, 4, "auto")
    said: list[str] = []
    pool = pool_of([actors[0], nowhere], adapter[1], said, stall=10)
    pool.submit(tasks(8), adapter[0], 0)
    found = collect(pool, 8)
    assert all({c.first_version, c.adapter_version} == {0} for group in found.values() for c in group)
    assert "rollout actor 1 has not started for 10 seconds" in said
    ray.kill(nowhere)


def test_in_a_pause_nothing_is_drawn(actors: list[Any], adapter: Any) -> None:
    tensors, config = adapter
    quiet = pool_of(actors, config, [])
    quiet.submit(tasks(8), tensors, 0)
    expected = collect(quiet, 8)

    def drawn() -> list[int]:
        return [ray.get(actor.poll.remote("nobody", 0.0)).drawn for actor in actors]

    pool = pool_of(actors, config, [], stall=30)
    canaries = set(pool.submit(tasks(8), tensors, 1))
    pool.pause()
    before, began = drawn(), time.monotonic()
    while time.monotonic() < began + 32:  # longer than what would count as a stall
        assert canaries >= {position for position, _ in pool.collect(1)}
    assert drawn() == before
    pool.resume()
    assert plain(collect(pool, 8)) == plain(expected)
    assert min(now - then for now, then in zip(drawn(), before, strict=True)) > 0
    assert not pool.lost


def test_what_never_works_is_given_up(ray_session: str, adapter: Any) -> None:
    tensors, config = adapter
    said: list[str] = []
    with rollout_pool(REFERENCE, workers=1, trainers=1, answers=8, max_length=2000, colocated=False) as (found, _):
        pool = pool_of(found, config, said, failures=1)
        pool.submit(tasks(64, length=1900), tensors, 0)
        with pytest.raises(PlumblineError, match="rollout actor 0 was lost 2 times in a row"):  # noqa: PT012
            while True:
                with suppress(ray.exceptions.RayActorError):  # it is still starting
                    os.kill(pid(found[0]), signal.SIGKILL)
                for _ in range(4):
                    pool.collect(0.5)
        broken = pool_of(found, config, said)
        broken.submit(tasks(1), {name: t[:1] for name, t in tensors.items()}, 0)
        with pytest.raises(PlumblineError):
            collect(broken, 1)
