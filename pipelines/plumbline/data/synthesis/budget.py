"""The cap on tokens: a call is made only if its longest possible outcome still fits."""

from __future__ import annotations

from collections.abc import Iterable


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

    def admit(self, worst: Iterable[int]) -> int:
        """How many of these calls, from the first on, fit together."""
        total, count = self.spent, 0
        for tokens in worst:
            total += tokens
            if self._limit is not None and total > self._limit:
                break
            count += 1
        return count

    def begin(self, worst: int) -> bool:
        """Whether a call may be sent now. No, in an admitted wave, only after a server gave more than was asked for, or rubbish."""
        if self._limit is not None and self.spent + self._in_flight + worst > self._limit:
            return False
        self._in_flight += worst
        return True

    def waste(self, used: int) -> bool:
        """A try of a call that was begun took this many tokens for nothing. Whether there is room for another."""
        self.spent += used
        return self._limit is None or self.spent + self._in_flight <= self._limit

    @property
    def left(self) -> int | None:
        """Tokens that may still be spent; None for no limit."""
        return None if self._limit is None else max(0, self._limit - self.spent)

    def end(self, worst: int, used: int) -> None:
        """A call that was begun is over and took this many tokens."""
        self._in_flight -= worst
        self.spent += used
