"""Rate limits: when the next call may be sent."""

from __future__ import annotations

import time
from collections.abc import Callable

MINUTE = 60.0


class Pace:
    """Spreads calls and tokens evenly, and keeps silent when a server says so. It does not wait itself.

    Args:
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit.
        clock: seconds, of any origin.
    """

    def __init__(
        self, requests_per_minute: int | None, tokens_per_minute: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_request = MINUTE / requests_per_minute if requests_per_minute else 0.0
        self._per_token = MINUTE / tokens_per_minute if tokens_per_minute else 0.0
        self._clock = clock
        self._next_request = self._next_token = self._silent_until = float("-inf")

    def turn(self, tokens: int) -> float:
        """Take the next place in the queue for a call of this many tokens: seconds to wait for it.

        If a silence began in the meantime, the place is lost: take another, or all who waited would call at its end.
        """
        now = self._clock()
        start = max(now, self._next_request, self._next_token, self._silent_until)
        if self._per_request:
            self._next_request = start + self._per_request
        if self._per_token:
            self._next_token = start + tokens * self._per_token
        return start - now

    def give_back(self, tokens: int) -> None:
        """A call took this many tokens fewer than `turn` was told (more, if negative)."""
        self._next_token -= tokens * self._per_token

    def silence(self, seconds: float) -> None:
        """No call of anybody for this long: the server asked for it."""
        self._silent_until = max(self._silent_until, self._clock() + seconds)

    def silent(self) -> bool:
        """Whether nobody may call now."""
        return self._clock() < self._silent_until
