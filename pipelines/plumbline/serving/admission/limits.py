"""Rate limits: what each caller may take, by token buckets. Pure but for the clock that is handed in.

Limits are of a deployment. Replicas share nothing, so that no request waits for a counter elsewhere: each grants its part, and Ray Serve
spreads requests evenly enough that a caller comes close to the whole. A caller is never granted more, but for what each replica's
bucket rounds up to: one request.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from plumbline.serving.admission.keys import ApiKey
from plumbline.serving.admission.refusal import TooManyRequests

CODE = "rate_limit_exceeded"
EVERYBODY = ""  # the one caller where there are no keys


class Bucket:
    """A minute's worth of something, filled evenly. What turns out to cost more than was there is a debt.

    Args:
        per_minute: what flows in; a minute's worth is the most that it holds, and 1 at least.
        now: seconds; it begins full.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_minute = per_minute
        self.level = self.capacity
        self._then = now

    @property
    def capacity(self) -> float:
        """The most that it holds."""
        return max(1.0, self.per_minute)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much is there; what it never holds counts as all that it holds."""
        self._fill(now)
        return self._seconds(min(amount, self.capacity))

    def take(self, amount: float, now: float) -> None:
        """Take it, there or not; less than nothing gives back."""
        self._fill(now)
        self.level = min(self.capacity, self.level - amount)

    def reset(self, now: float) -> float:
        """Seconds until it is full."""
        self._fill(now)
        return self._seconds(self.capacity)

    def change(self, per_minute: float, now: float) -> None:
        """Another limit from now on. What was used stays used."""
        self._fill(now)
        used = self.capacity - self.level
        self.per_minute = per_minute
        self.level = self.capacity - used

    def _fill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + (now - self._then) * self.per_minute / 60)
        self._then = now

    def _seconds(self, amount: float) -> float:
        return max(0.0, amount - self.level) * 60 / self.per_minute


@dataclass(frozen=True)
class Limits:
    """What one caller may take of a deployment; None: as much as it wants."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None

    def of(self, key: ApiKey) -> Limits:
        """A key's own limits, and these where it has none."""
        return Limits(
            key.requests_per_minute or self.requests_per_minute,
            key.tokens_per_minute or self.tokens_per_minute,
            key.max_concurrent_requests or self.concurrent,
        )


class Caller:
    """What one caller has taken here."""

    def __init__(self, limits: Limits, replicas: int, now: float) -> None:
        self._limits, self._replicas = Limits(), 1
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.ongoing = 0
        self.adopt(limits, replicas, now)

    def adopt(self, limits: Limits, replicas: int, now: float) -> None:
        """Go by these limits, divided among so many, from now on."""
        if (limits, replicas) != (self._limits, self._replicas):
            self._limits, self._replicas = limits, replicas
            self.requests = self._changed(self.requests, limits.requests_per_minute, now)
            self.tokens = self._changed(self.tokens, limits.tokens_per_minute, now)

    def _changed(self, bucket: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
        if per_minute is None:
            return None
        if bucket is None:
            return Bucket(per_minute / self._replicas, now)
        bucket.change(per_minute / self._replicas, now)
        return bucket

    def begin(self, tokens: int, now: float) -> int:
        """One request more, of so many tokens as far as one can tell. Returns how many are reserved: at most what a minute has.

        Raises:
            TooManyRequests: a limit is reached; nothing is taken then.
        """
        concurrent = self._limits.concurrent
        if concurrent is not None and self.ongoing >= math.ceil(concurrent / self._replicas):
            raise TooManyRequests(f"At most {concurrent} requests of one key at the same time.", code=CODE, seconds=1)
        if self.requests is not None and (seconds := self.requests.wait(1, now)):
            words = f"Rate limit reached: {self._limits.requests_per_minute} requests per minute."
            raise TooManyRequests(words, code=CODE, seconds=seconds)
        if self.tokens is not None and (seconds := self.tokens.wait(tokens, now)):
            words = f"Rate limit reached: {self._limits.tokens_per_minute} tokens per minute."
            raise TooManyRequests(words, code=CODE, seconds=seconds)
        self.ongoing += 1
        self._take(self.requests, 1, now)
        reserved = min(tokens, int(self.tokens.capacity)) if self.tokens is not None else 0
        self._take(self.tokens, reserved, now)
        return reserved

    def end(self, reserved: int, used: int, now: float) -> None:
        """A request that was let in has ended and took so many tokens."""
        self.ongoing -= 1
        self._take(self.tokens, used - reserved, now)

    def _take(self, bucket: Bucket | None, amount: float, now: float) -> None:
        if bucket is not None:
            bucket.take(amount, now)

    def headers(self, now: float) -> dict[str, str]:
        """OpenAI's `x-ratelimit-…`: the deployment's limits, and what is left of them if all replicas are as this one."""
        found = {}
        of = self._limits
        for what, limit, bucket in (
            ("requests", of.requests_per_minute, self.requests),
            ("tokens", of.tokens_per_minute, self.tokens),
        ):
            if limit is not None and bucket is not None:
                reset = bucket.reset(now)
                left = min(limit, int(bucket.level * self._replicas))
                found[f"x-ratelimit-limit-{what}"] = str(limit)
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, left))
                found[f"x-ratelimit-reset-{what}"] = f"{reset:.3f}s"
        return found


class Callers:
    """All callers, by name of their key.

    Args:
        limits: of each, unless its key says otherwise.
        replicas: among how many the limits are divided.
        clock: seconds.
    """

    def __init__(self, limits: Limits, replicas: int, clock: Callable[[], float]) -> None:
        self._limits, self._replicas, self._clock = limits, replicas, clock
        self._callers: dict[str, Caller] = {}

    def find(self, key: ApiKey | None) -> Caller:
        """The caller of a key; without keys all are one."""
        name = key.name if key else EVERYBODY
        limits = self._limits.of(key) if key else self._limits
        now = self._clock()
        caller = self._callers.get(name)
        if caller is None:
            caller = self._callers[name] = Caller(limits, self._replicas, now)
        else:
            caller.adopt(limits, self._replicas, now)
        return caller

    def divide(self, replicas: int) -> None:
        """The limits are divided among so many from now on."""
        self._replicas = replicas
