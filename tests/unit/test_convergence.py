"""Every algorithm of `rlhf` learns. `benchmarks/reinforcement.py` has three seeds and the time that it takes."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from plumbline.api.stages.rlhf import ALGORITHMS
from support.reinforce import RISE, WINDOW, reinforce, spec_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_sampled_reward_rises(algorithm: str, tmp_path: Path) -> None:
    """By 0.3 within a hundred steps."""
    rewards: list[float] = []

    class Reached(Exception):
        pass

    def report(step: int, steps: int, metrics: dict[str, float]) -> None:
        rewards.append(metrics["reward"])
        if len(rewards) > WINDOW and statistics.mean(rewards[-WINDOW:]) >= rewards[0] + RISE:
            raise Reached

    with pytest.raises(Reached):
        reinforce(spec_of(algorithm), tmp_path, report=report)
