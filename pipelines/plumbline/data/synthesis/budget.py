"""The cap on tokens: a call is made only if its longest possible outcome still fits."""

from __future__ import annotations

from collections.abc import Sequence


class Budget:
    """Tokens spent, of at most `limit`.

    Which calls are made must not depend on which answers come first, so calls are admitted in waves: as many, in order, as fit if
    all of them take their worst case. When a wave is done it has taken less, and the next one gets the rest.

    Args:
        limit: None for no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._in_flight = 0
        self.spent = 0

    def admit(self, worst: Sequence[int]) -> int:
        """How many of these calls, from the first on, fit together."""
        if self._limit is None:
            return len(worst)
        total = self.spent
        for i, tokens in enumerate(worst):
            total += tokens
            if total > self._limit:
                return i
        return len(worst)

    def begin(self, worst: int) -> bool:
        """Whether a call may be sent now. No, in an admitted wave, only after a server gave more than was asked for."""
        if self._limit is not None and self.spent + self._in_flight + worst > self._limit:
            return False
        self._in_flight += worst
        return True

    def end(self, worst: int, used: int) -> None:
        """A call that was begun is over and took this many tokens."""
        self._in_flight -= worst
        self.spent += used
