"""A request that is sent away for now."""

from __future__ import annotations

import math

from plumbline.serving.openai_answers import OpenAIError

LONGEST_WAIT = 3600.0  # seconds that anybody is told to wait


class TooManyRequests(OpenAIError):
    """429, with how long to wait.

    Attributes:
        retry_after: whole seconds, at least 1.
    """

    def __init__(self, message: str, *, code: str, seconds: float) -> None:
        self.retry_after = max(1, math.ceil(min(seconds, LONGEST_WAIT)))
        super().__init__(429, f"{message} Try again in {self.retry_after} s.", code=code)
