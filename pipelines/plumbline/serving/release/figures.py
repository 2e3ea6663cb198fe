"""What a model's requests come to: counts, sums and a histogram, which add up over replicas and hold no text."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from plumbline.api.base import NonNegativeFloat, NonNegativeInt, SpecModel

BIN = math.log(1.05)
"""Width of a bin of the histogram: 5 %."""
FASTEST = 1e-4  # seconds; what is faster lies in the first bin


class Figures(SpecModel):
    """Of one model over some time."""

    requests: NonNegativeInt = 0
    """Requests that were answered, or that the server failed."""
    errors: NonNegativeInt = 0
    """Those that the server failed."""
    refusals: NonNegativeInt = 0
    """Answers that refuse."""
    tokens: NonNegativeFloat = 0.0
    """Sum of the answers' tokens."""
    squares: NonNegativeFloat = 0.0
    """Sum of their squares."""
    latencies: dict[Annotated[int, Field(strict=False)], NonNegativeInt] = {}
    """Answers by bin of their latency."""

    judged: NonNegativeInt = 0
    """Answers that a judge compared with the other model's."""
    wins: NonNegativeFloat = 0.0
    """Of them those that are better, ties as half."""

    @classmethod
    def of_answer(cls, tokens: int, refused: bool, seconds: float) -> Figures:
        """One answer."""
        return cls(
            requests=1,
            refusals=int(refused),
            tokens=float(tokens),
            squares=float(tokens) ** 2,
            latencies={bin_of(seconds): 1},
        )

    @classmethod
    def of_error(cls) -> Figures:
        """One request that the server failed."""
        return cls(requests=1, errors=1)

    def __add__(self, other: Figures) -> Figures:
        keys = self.latencies.keys() | other.latencies.keys()
        return Figures(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            refusals=self.refusals + other.refusals,
            tokens=self.tokens + other.tokens,
            squares=self.squares + other.squares,
            judged=self.judged + other.judged,
            wins=self.wins + other.wins,
            latencies={key: self.latencies.get(key, 0) + other.latencies.get(key, 0) for key in sorted(keys)},
        )

    @property
    def answers(self) -> int:
        """Requests that were answered."""
        return self.requests - self.errors

    @property
    def mean_tokens(self) -> float:
        return self.tokens / self.answers if self.answers else 0.0

    @property
    def variance_of_mean_tokens(self) -> float:
        """Of `mean_tokens`, as an estimate of what further answers will have."""
        n = self.answers
        return max(self.squares / n - self.mean_tokens**2, 0.0) / (n - 1) if n > 1 else math.inf

    def latency(self, share: float) -> float:
        """Seconds within which this share of the answers was given, to the end of a bin; infinite without answers."""
        wanted, seen = share * sum(self.latencies.values()), 0
        for key in sorted(self.latencies):
            seen += self.latencies[key]
            if seen >= wanted:
                return FASTEST * math.exp((key + 1) * BIN)
        return math.inf

    def slower_than(self, seconds: float) -> int:
        """Answers in bins that begin after so many seconds."""
        return sum(count for key, count in self.latencies.items() if FASTEST * math.exp(key * BIN) > seconds)


def bin_of(seconds: float) -> int:
    """The histogram's bin of a latency."""
    return max(0, int(math.log(max(seconds, FASTEST) / FASTEST) / BIN))


class Window(SpecModel):
    """Both models over the same time."""

    stable: Figures = Figures()
    candidate: Figures = Figures()

    def __add__(self, other: Window) -> Window:
        return Window(stable=self.stable + other.stable, candidate=self.candidate + other.candidate)
