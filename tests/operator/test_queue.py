"""The work queue, on a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from plumbline_operator.queue import RETRY_LIMIT, SLACK, WorkQueue, backoff


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


async def taken(queue: WorkQueue[str]) -> str | None:
    """What a worker gets at once; None where nothing is due."""
    try:
        return await asyncio.wait_for(queue.get(), 0.01)
    except TimeoutError:
        return None


def test_a_key_is_queued_once_and_in_order() -> None:
    async def test() -> None:
        queue = WorkQueue[str]()
        for key in "abab":
            queue.add(key)
        assert queue.depth() == 2
        assert [await taken(queue) for _ in range(3)] == ["a", "b", None]

    on_a_loop(test)


def test_a_key_in_work_waits_until_its_worker_is_done() -> None:
    async def test() -> None:
        queue = WorkQueue[str]()
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        queue.add("a")
        assert await taken(queue) is None
        queue.done("a")
        assert await queue.get() == "a"
        queue.done("a")
        assert await taken(queue) is None

    on_a_loop(test)


def test_the_earliest_time_asked_for_wins() -> None:
    async def test() -> None:
        clock = Clock()
        queue = WorkQueue[str](clock)
        queue.add_after("a", 60)
        queue.add_after("a", 5)
        queue.add_after("a", 30)
        assert queue.depth() == 0
        clock.now = 4.9
        assert await taken(queue) is None
        clock.now = 5.0
        assert await taken(queue) == "a"
        queue.done("a")
        clock.now = 100.0
        assert await taken(queue) is None  # one entry, and it is used up

    on_a_loop(test)


def test_a_delay_asked_for_during_the_work_counts_after_it() -> None:
    async def test() -> None:
        clock = Clock()
        queue = WorkQueue[str](clock)
        queue.add("a")
        await queue.get()
        queue.add_after("a", 10)
        queue.done("a")
        clock.now = 9.0
        assert await taken(queue) is None
        clock.now = 10.0
        assert await taken(queue) == "a"

    on_a_loop(test)


def test_failures_wait_longer_each_time_until_one_success() -> None:
    async def test() -> None:
        clock = Clock()
        queue = WorkQueue[str](clock)
        delays = []
        for _ in range(12):
            delays.append(queue.retry("a"))
            clock.now += delays[-1]
            assert await taken(queue) == "a"
            queue.done("a")
        assert delays[:4] == [0.5, 1.0, 2.0, 4.0]
        assert delays[-1] == RETRY_LIMIT
        queue.succeeded("a")
        assert queue.retry("a") == 0.5

    on_a_loop(test)


def test_many_failures_do_not_overflow() -> None:
    assert backoff(10**6) == RETRY_LIMIT


def test_a_worker_that_waits_is_woken_by_an_earlier_key() -> None:
    async def test() -> None:
        queue = WorkQueue[str]()
        queue.add_after("later", 3600)
        worker = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.add("now")
        assert await worker == "now"

    on_a_loop(test)


@pytest.mark.parametrize("workers", [1, 8])
def test_every_key_is_worked_on_by_one_worker_at_a_time(workers: int) -> None:
    async def test() -> None:
        queue = WorkQueue[int]()
        in_hand: set[int] = set()
        seen: dict[int, int] = {}

        async def work() -> None:
            while (key := await queue.get()) is not None:
                assert key not in in_hand
                in_hand.add(key)
                seen[key] = seen.get(key, 0) + 1
                if seen[key] < 3:
                    queue.add(key)
                await asyncio.sleep(0)
                in_hand.remove(key)
                queue.done(key)
                if seen == dict.fromkeys(range(50), 3):
                    queue.close()

        for key in range(50):
            queue.add(key)
        await asyncio.gather(*(work() for _ in range(workers)))
        assert seen == dict.fromkeys(range(50), 3)

    on_a_loop(test)


def test_stalled_tells_of_work_that_is_due_while_nothing_is_finished() -> None:
    async def test() -> None:
        clock = Clock()
        queue = WorkQueue[str](clock)
        queue.add("a")
        queue.add("b")
        await queue.get()
        clock.now = 70.0
        assert queue.busy() == 70.0
        assert queue.stalled() == 70.0
        queue.done("a")
        assert queue.busy() == 0.0
        assert queue.stalled() == 0.0  # slow, not stuck
        clock.now = 90.0
        assert queue.stalled() == 20.0
        await queue.get()
        assert queue.stalled() == 0.0

    on_a_loop(test)


def test_a_closed_queue_hands_out_nothing() -> None:
    async def test() -> None:
        queue = WorkQueue[str]()
        worker = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.close()
        assert await worker is None
        queue.add("a")
        assert await queue.get() is None

    on_a_loop(test)


def test_deadlines_far_away_do_not_pile_up() -> None:
    """Each reconcile of a run asks for its deadline anew, and events come long before it."""

    async def test() -> None:
        clock = Clock()
        queue = WorkQueue[str](clock)
        for _ in range(5_000):
            for key in "ab":
                queue.add(key)
            for _ in "ab":
                key = await queue.get() or ""
                queue.add_after(key, 7 * 86_400)
                queue.done(key)
            clock.now += 5
        assert len(queue._heap) <= 2 * 2 + SLACK
        clock.now += 8 * 86_400
        assert [await taken(queue) for _ in range(3)] in (["a", "b", None], ["b", "a", None])

    on_a_loop(test)
