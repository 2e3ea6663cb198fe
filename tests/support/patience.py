"""How tests wait for what another thread or process brings about."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

PATIENCE = 200.0  # seconds: two busy cores take a minute and more to start three processes with torch
PAUSES = 0.02, 0.2  # seconds, shortest and longest: to ask can cost more than what is waited for
STANDSTILL = 2.0  # seconds: a pause that took longer says that the whole machine stood still


def wait_for(
    condition: Callable[[], Found | None],
    seconds: float = PATIENCE,
    why: Callable[[], object] = lambda: "it never came to pass",
) -> Found:
    """Ask until the answer is true, and return it.

    A machine may stand still for a minute, and what is waited for with it: such a pause counts as `STANDSTILL`.

    Args:
        condition: what to wait for; may raise when there is nothing to wait for any more.
        seconds: how long.
        why: what to say else.

    Raises:
        TimeoutError: with `why`.
    """
    waited, began = 0.0, time.monotonic()
    while not (found := condition()):
        asked = time.monotonic()
        if waited > seconds:
            raise TimeoutError(why())
        time.sleep(min(max(PAUSES[0], waited / 10), PAUSES[1]))
        paused = time.monotonic()
        waited += asked - began + min(paused - asked, STANDSTILL)
        began = paused
    return found
