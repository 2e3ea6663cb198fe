"""The bound on what waits in a replica. Pure but for the clock that is handed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from plumbline.serving.admission.refusal import TooManyRequests

CODE = "queue_full"
REMEMBERED = 64  # ends of requests, for how fast they go
UNKNOWN_SECONDS = 5.0  # to wait while nothing has ended yet
MOST_SECONDS = 60.0


class Backlog:
    """Counts the requests of a replica.

    Args:
        slots: requests that it works on at the same time.
        max_queued: requests that may wait beside them.
        clock: seconds.
    """

    def __init__(self, slots: int, max_queued: int, clock: Callable[[], float]) -> None:
        self._slots, self._max_queued, self._clock = slots, max_queued, clock
        self._ends: deque[float] = deque(maxlen=REMEMBERED)
        self.ongoing = 0

    def check(self) -> None:
        """Whether there is room for one request more.

        Raises:
            TooManyRequests: as many wait as may.
        """
        if self.ongoing >= self._slots + self._max_queued:
            words = f"This server is busy: {self._slots} requests are worked on and {self._max_queued} wait already."
            raise TooManyRequests(words, code=CODE, seconds=self.seconds())

    def enter(self) -> None:
        """One request more."""
        self.ongoing += 1

    def leave(self) -> None:
        """One that entered has ended."""
        self.ongoing -= 1
        self._ends.append(self._clock())

    def seconds(self) -> float:
        """Until what waits now has begun, if it goes on as it went last: then there is room again for many, not for one."""
        if len(self._ends) < 2:
            return UNKNOWN_SECONDS
        per_second = (len(self._ends) - 1) / max(self._clock() - self._ends[0], 1e-3)
        return min(MOST_SECONDS, max(1, self.ongoing - self._slots) / per_second)
