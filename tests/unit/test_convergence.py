"""Every algorithm of `rlhf` learns, from three seeds. `benchmarks/reinforcement.py` has the time that it takes."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from plumbline.api.stages.rlhf import ALGORITHMS
from support.reinforce import RISE, WINDOW, reinforce, spec_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_sampled_reward_rises(algorithm: str, seed: int, tmp_path: Path) -> None:
    """By 0.3 within a hundred steps."""
    rewards: list[float] = []

    class Reached(Exception):
        pass

    def report(step: int, steps: int, metrics: dict[str, float]) -> None:
        rewards.append(metrics["reward"])
        if len(rewards) > WINDOW and statistics.mean(rewards[-WINDOW:]) >= rewards[0] + RISE:
            raise Reached

    with pytest.raises(Reached):
        reinforce(spec_of(algorithm, seed), tmp_path, report=report)
