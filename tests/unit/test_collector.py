"""Prompts are handed out and learned from in order, each once, whatever order the answers come in."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import defaultdict
from typing import Any

import pytest

from plumbline.errors import PlumblineError
from plumbline.rollout.collector import Adapter, Collector
from plumbline.rollout.engine import Completion, Request, Sampling
from plumbline.rollout.groups import Group, Sample, Task

STEP = 4


class ShuffledPool:
    """Answers in random order, one at a time; remembers with which version each was begun."""

    def __init__(self, seed: int, hold: threading.Event | None = None) -> None:
        self.begun: dict[int, list[int]] = defaultdict(list)
        self.out: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._random, self._hold, self._waiting, self._version = random.Random(seed), hold, list[int](), -1
        self._lock = threading.Lock()

    def submit(self, tasks: list[Task], adapter: Adapter, version: int) -> list[int]:
        with self._lock:
            self._version = version
            for task in tasks:
                self.begun[task.position].append(version)
                self._waiting.append(task.position)
        return []

    def collect(self, seconds: float) -> list[tuple[int, list[Completion]]]:
        if self._hold is not None and not self._hold.wait(0.01):
            return []
        with self._lock:
            if self._waiting:
                position = self._waiting.pop(self._random.randrange(len(self._waiting)))
                return [
                    (position, [Completion(f"{position}", [1], [-0.5], "stop", self.begun[position][-1], self._version)])
                ]
        time.sleep(0.001)
        return []

    def pause(self) -> None:
        self._hold = threading.Event()

    def resume(self) -> None:
        self._hold = None


def task(position: int) -> Task:
    return Task(position, (Request(str(position), (1,), Sampling()),))


def score(position: int, completions: list[Completion]) -> Group:
    """Every third group is of equally good answers."""
    rewards = [1.0, 1.0] if position % 3 == 0 else [0.0, 1.0]
    return Group(position, position, [Sample.of(completions[0], {}, reward) for reward in rewards])


def collector(pool: Any, **options: Any) -> Collector:
    return Collector(pool, task, options.pop("score", score), STEP, **options).start()


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_prompt_once_in_order_and_not_too_stale(staleness: int, seed: int) -> None:
    pool = ShuffledPool(seed)
    source = collector(pool, staleness=staleness)
    seen = []
    for step in range(6):
        groups, _, facts = source.take({}, version=step)
        seen += [group.position for group in groups]
        begun = [pool.begun[group.position][0] for group in groups]
        assert all(0 <= step - version <= staleness for version in begun)
        assert begun == [max(0, step - staleness)] * STEP
        assert facts["staleness"] == min(step, staleness)
    source.close()
    assert seen == list(range(6 * STEP))
    assert all(len(versions) == 1 for versions in pool.begun.values())


@pytest.mark.parametrize("staleness", [0, 2])
def test_equal_groups_are_replaced(staleness: int) -> None:
    pool = ShuffledPool(2)
    source = collector(pool, staleness=staleness, skip_equal=True)
    taken = [source.take({}, version=step)[0] for step in range(4)]
    source.close()
    every = [group.position for groups in taken for group in groups]
    assert every == list(range(len(every)))
    assert all(sum(not group.equal for group in groups) == STEP for groups in taken)


def test_equal_groups_without_end_are_given_up() -> None:
    def equal(position: int, completions: list[Completion]) -> Group:
        return Group(position, position, [Sample.of(completions[0], {}, 0.0)] * 2)

    source = collector(ShuffledPool(0), skip_equal=True, score=equal)
    groups, _, facts = source.take({}, version=0)
    source.close()
    assert all(group.equal for group in groups)
    assert facts["promptsDrawn"] == 4 * STEP


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_an_interrupted_collector_loses_and_doubles_nothing(staleness: int) -> None:
    """Interrupted after every step, with answers on their way, done and waiting."""
    state: dict[str, Any] | None = None
    seen: list[int] = []
    for step in range(6):
        pool = ShuffledPool(step)
        source = collector(pool, staleness=staleness, state=state)
        groups, _, _ = source.take({}, version=step)
        seen += [group.position for group in groups]
        assert all(step - group.samples[0].began <= staleness for group in groups)
        time.sleep(0.02 * (step % 2))  # lets some that were handed out ahead be done
        state = source.state()
        source.close()
        known = {group["position"] for group in state["done"]}
        assert known.isdisjoint(seen)
        assert known <= set(range(state["taken"], state["handedOut"]))
    assert seen == list(range(6 * STEP))


def test_groups_that_are_done_are_kept_over_an_interruption() -> None:
    pool = ShuffledPool(0)
    source = collector(pool, staleness=2)
    source.take({}, version=0)
    while len(source.state()["done"]) < 2 * STEP:
        time.sleep(0.005)
    state = source.state()
    source.close()
    again = ShuffledPool(1)
    source = collector(again, staleness=2, state=state)
    assert [g.position for g in source.take({}, version=1)[0]] == list(range(STEP, 2 * STEP))
    source.close()
    assert not set(again.begun) & set(range(3 * STEP))  # asked only for what is new


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_engines_and_trainer_take_turns(staleness: int) -> None:
    pool = ShuffledPool(0)
    source = collector(pool, staleness=staleness, turns=True)
    taken = []
    for version in range(4):
        groups, _, _ = source.take({}, version)
        taken += [group.position for group in groups]
        time.sleep(0.02)  # what was on its way
        waiting = len(pool._waiting)
        assert waiting <= staleness * STEP
        time.sleep(0.02)
        assert len(pool._waiting) == waiting, "an engine works while the trainer learns"
    source.close()
    assert taken == list(range(4 * STEP))


def test_rewards_are_asked_for_while_others_are_written() -> None:
    """Eight groups wait for one another in the reward: one after the other they would never end."""
    barrier = threading.Barrier(STEP, timeout=30)

    def slow(position: int, completions: list[Completion]) -> Group:
        barrier.wait()
        return score(position, completions)

    source = collector(ShuffledPool(0), score=slow)
    assert len(source.take({}, version=0)[0]) == STEP
    source.close()


def test_what_fails_in_a_reward_or_the_pool_ends_the_step() -> None:
    def broken(position: int, completions: list[Completion]) -> Group:
        raise PlumblineError("the judge is gone")

    source = collector(ShuffledPool(0), score=broken)
    with pytest.raises(PlumblineError, match="the judge is gone"):
        source.take({}, version=0)
    source.close()

    class Broken(ShuffledPool):
        def collect(self, seconds: float) -> list[tuple[int, list[Completion]]]:
            raise PlumblineError("lost too often")

    source = collector(Broken(0))
    with pytest.raises(PlumblineError, match="lost too often"):
        source.take({}, version=0)
    source.close()


def test_groups_survive_json() -> None:
    import json

    group = score(5, [Completion("5", [1, 2], [-0.25, -1.5], "length", 3, 4)])
    assert Group.of(json.loads(json.dumps(group.plain()))) == group
