"""The work queue: keys that are to be looked at, now or later, each by one worker at a time."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
RETRY_BASE, RETRY_LIMIT = 0.5, 60.0  # seconds
SLACK = 100  # entries of the heap that may be void before it is cleared of them


def backoff(failures: int) -> float:
    """Seconds to wait after that many failures in a row."""
    return min(RETRY_LIMIT, RETRY_BASE * 2.0 ** min(failures - 1, 30))


class WorkQueue(Generic[K]):
    """A queue as Kubernetes controllers have it. For one event loop.

    A key is in it once, at the earliest of the times asked for. A key that is added while a worker has it waits until that
    worker is done, and is then handed out again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._working: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._count = 0
        self._closed = False
        self._finished = clock()
        self._changed = asyncio.Event()

    def add(self, key: K) -> None:
        """To be looked at as soon as a worker is free."""
        self.add_after(key, 0.0)

    def add_after(self, key: K, delay: float) -> None:
        """To be looked at after that many seconds, or earlier where that was asked for already."""
        due = self._clock() + max(0.0, delay)
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        if key not in self._working:
            self._push(due, key)

    def retry(self, key: K) -> float:
        """To be looked at again after a failure, later each time; returns the delay in seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = backoff(failures)
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: K) -> None:
        """The next failure counts as the first."""
        self._failures.pop(key, None)

    def close(self) -> None:
        """Hand out no more keys."""
        self._closed = True
        self._changed.set()

    async def get(self) -> K | None:
        """The next key that is due; call `done` with it afterwards. None: the queue is closed."""
        while not self._closed:
            now = self._clock()
            wait = None
            while self._heap:
                due, _, key = self._heap[0]
                if self._due.get(key) != due or key in self._working:
                    heapq.heappop(self._heap)  # asked for earlier meanwhile, or taken
                elif due <= now:
                    heapq.heappop(self._heap)
                    del self._due[key]
                    self._working[key] = now
                    return key
                else:
                    wait = due - now
                    break
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()
        return None

    def done(self, key: K) -> None:
        """A worker has finished with the key."""
        del self._working[key]
        self._finished = self._clock()
        if key in self._due:
            self._push(self._due[key], key)

    def depth(self) -> int:
        """How many keys wait that are due."""
        now = self._clock()
        return sum(due <= now for due in self._due.values())

    def stalled(self) -> float:
        """Seconds for which a key has been due and no worker has finished anything."""
        now = self._clock()
        waiting = [due for key, due in self._due.items() if key not in self._working]
        return max(0.0, now - max(min(waiting, default=now), self._finished))

    def busy(self) -> float:
        """Seconds that the longest piece of work in hand takes so far."""
        now = self._clock()
        return now - min(self._working.values(), default=now)

    def _push(self, due: float, key: K) -> None:
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, key))
        if len(self._heap) > 2 * len(self._due) + SLACK:  # times far away that an earlier one has made void
            self._heap = [(at, number, one) for at, number, one in self._heap if self._due.get(one) == at]
            heapq.heapify(self._heap)
        self._changed.set()
