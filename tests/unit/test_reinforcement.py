"""The whole loop of reinforcement learning, without Ray: an interrupted run goes on as if nothing had been, two ranks learn what one does."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.api.stages.rewards import RewardSpec
from plumbline.api.stages.rlhf import RlhfSpec
from plumbline.api.stages.training import ParallelismSpec
from plumbline.errors import InvalidInput
from plumbline.rollout.collector import Adapter
from plumbline.rollout.engine import Completion
from plumbline.rollout.groups import Group, Sample, Task
from plumbline.training.checkpoint import CheckpointStore
from plumbline.training.loop import Interrupted
from plumbline.training.reinforcement import chosen, measured
from plumbline.training.world import World
from support.ranks import run_ranks
from support.reinforce import LocalPool, reinforce, spec_of

FSDP2 = ParallelismSpec(workers=2, sharding="fsdp2")

OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": {"updates_per_step": 2, "kl_coefficient": 0.02},
    "dapo": {"mismatch": "truncate"},
    "gspo": {"staleness": 1},
    "ppo": {"kl_target": 1.0, "kl_horizon": 500, "critic_warmup_steps": 1, "ptx_weight": 0.5},
    "rloo": {"kl_target": 0.5, "kl_horizon": 200},
    "reinforcePlusPlusBaseline": {"epochs_per_step": 2},
    "onlineDpo": {},
    "raft": {},
}


class StoppedAfter:
    """Stands for a group that is asked to save and stop after so many looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("algorithm", list(OPTIONS))
def test_an_interrupted_run_ends_as_an_undisturbed_one(algorithm: str, tmp_path: Path) -> None:
    """Policy, critic, optimizers, KL coefficient and prompts go on where they were: the same weights to the bit, the same figures."""
    spec = spec_of(algorithm, prompts_per_step=8, group_size=4, steps=4, **OPTIONS[algorithm])
    reinforce(spec, tmp_path / "whole")
    with pytest.raises(Interrupted):
        reinforce(spec, tmp_path / "parts", interrupted=StoppedAfter(1))
    reinforce(spec, tmp_path / "parts")
    whole, parts = (CheckpointStore(str(tmp_path / name)).latest() for name in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    if spec.staleness:  # what was on its way is begun again, with newer weights
        assert [row["step"] for row in parts.history] == [1, 2, 3, 4]
        return
    assert parts.history == whole.history
    assert parts.shapes.keys() == whole.shapes.keys()
    assert all(torch.equal(whole.rows(name), parts.rows(name)) for name in whole.shapes)
    assert parts.extra == whole.extra
    assert any(name.startswith("critic/") for name in whole.shapes) == (algorithm == "ppo")


SPLIT: dict[str, dict[str, Any]] = {
    "grpo": {"kl_coefficient": 0.02, "mismatch": "truncate", "parallelism": FSDP2},
    "ppo": {"ptx_weight": 0.5, "kl_target": 1.0, "kl_horizon": 500, "parallelism": FSDP2},
    "reinforcePlusPlusBaseline": {"updates_per_step": 2},
    "onlineDpo": {"parallelism": FSDP2},
    "rejectionSampling": {"least_reward": 0.0},
}


def split(algorithm: str) -> RlhfSpec:
    return spec_of(algorithm, prompts_per_step=9, group_size=4, steps=1, **SPLIT[algorithm])


def _learn(folder: str) -> None:
    for algorithm in SPLIT:
        reinforce(split(algorithm), Path(folder) / algorithm, world=World.current())


def test_two_ranks_learn_what_one_does(tmp_path: Path) -> None:
    """Nine groups for two ranks, sharded or not: advantages, KL controller, critic and every loss are those of the whole step."""
    run_ranks(_learn, str(tmp_path / "two"))
    for algorithm in SPLIT:
        reinforce(split(algorithm), tmp_path / "one" / algorithm)
        one, two = (CheckpointStore(str(tmp_path / name / algorithm)).latest() for name in ("one", "two"))
        assert one is not None
        assert two is not None
        first, second = (found.history[0] for found in (one, two))
        for row in (first, second):
            row.pop("rewardAccuracy", None)  # onlineDpo begins as its reference: the sign of rounding
        assert second == pytest.approx(first, rel=1e-3, abs=1e-5), algorithm
        assert two.shapes.keys() == one.shapes.keys()
        assert two.extra is not None
        assert one.extra is not None
        assert two.extra["prompts"] == one.extra["prompts"]
        assert two.extra["learner"] == pytest.approx(one.extra["learner"])
        weights = [name for name in one.shapes if "|" not in name]
        apart = torch.cat([(one.rows(name) - two.rows(name)).abs().flatten() for name in weights])
        assert apart.mean() < 2e-6, algorithm  # Adam's first step makes much of gradients that are all but 0


def test_an_engine_with_other_weights_is_found_out(tmp_path: Path) -> None:
    """Users of other systems trained for months on rollouts of the first policy (verl#7495, unsloth#8701)."""

    class Deaf(LocalPool):
        def submit(self, tasks: list[Task], adapter: Adapter, version: int) -> list[int]:
            scaled = {name: 3 * tensor for name, tensor in adapter.items()} if version else adapter
            return super().submit(tasks, scaled, version)

    spec = spec_of("grpo", prompts_per_step=8, group_size=4, steps=3)
    with pytest.raises(InvalidInput, match=r"rlhf\.rollout\.syncTolerance: a rollout engine and the trainer differ by"):
        reinforce(spec, tmp_path, pool=Deaf)


def test_a_canary_that_is_no_number_is_found_out(tmp_path: Path) -> None:
    class Numb(LocalPool):
        def collect(self, seconds: float) -> list[tuple[int, list[Completion]]]:
            return [
                (place, found if place >= 0 else [replace(c, logprobs=[math.nan] * len(c.logprobs)) for c in found])
                for place, found in super().collect(seconds)
            ]

    spec = spec_of("grpo", prompts_per_step=4, group_size=2, steps=1)
    with pytest.raises(InvalidInput, match="differ by nan"):
        reinforce(spec, tmp_path, pool=Numb)


@pytest.mark.parametrize("algorithm", ["grpo", "drGrpo", "gspo"])
def test_groups_that_teach_nothing_count_in_the_mean(algorithm: str, tmp_path: Path) -> None:
    """Not computed where no KL asks for them, they leave the step as it is where they are (the constant of Dr.GRPO is one)."""
    told = []
    for weight in (0.0, 1e-12):
        spec = spec_of(algorithm, prompts_per_step=8, group_size=4, steps=1, kl_coefficient=weight)
        told += reinforce(spec, tmp_path / str(weight))
    assert 0 < told[0]["equalGroups"] < 1
    assert told[0]["tokens"] < told[1]["tokens"]
    for figure in ("loss", "gradNorm"):
        assert told[0][figure] == pytest.approx(told[1][figure], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("staleness", [1, 3])
def test_stale_answers_are_learned_from_within_the_bound(staleness: int, tmp_path: Path) -> None:
    spec = spec_of("grpo", prompts_per_step=8, group_size=4, steps=5, staleness=staleness, mismatch="truncate")
    history = reinforce(spec, tmp_path)
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5]
    assert history[0]["staleness"] == 0
    assert max(row["staleness"] for row in history) == min(staleness, 4)
    assert history[0]["logprobGap"] < 1e-4 < history[-1]["logprobGap"]


def test_rewards_are_summed_by_weight_and_told_apart(tmp_path: Path) -> None:
    rewards = [
        RewardSpec(weight=2.0),
        RewardSpec(type="regex", pattern="^[a-z ]+$"),
        RewardSpec(type="overlong", buffer_tokens=8),
    ]
    spec = spec_of("grpo", prompts_per_step=8, group_size=4, steps=1, rewards=rewards)
    (row,) = reinforce(spec, tmp_path)
    parts = [row[f"reward/{name}"] for name in ("exactMatch", "regex", "overlong")]
    assert row["reward"] == pytest.approx(2 * parts[0] + parts[1] + parts[2])
    assert parts[2] <= 0 < parts[1]


def sample(reward: float, token: int = 1, reason: Any = "stop") -> Sample:
    return Sample([token], [-1.0], reason, 0, 0, {"exactMatch": reward}, reward)


def test_what_is_learned_by_heart() -> None:
    group = [sample(0.0, 1), sample(1.0, 2), sample(1.0, 2), sample(0.5, 3)]
    assert chosen(group, spec_of("raft")) == [group[1]]
    assert chosen(group, spec_of("raft", least_reward=2.0)) == []
    assert [s.tokens for s in chosen(group, spec_of("rejectionSampling"))] == [[2]]  # the same answer once
    assert [s.tokens for s in chosen(group, spec_of("rejectionSampling", least_reward=0.5))] == [[2], [3]]


def test_figures_of_a_step() -> None:
    groups = [Group(0, 0, [sample(1.0), sample(0.0, reason="length")]), Group(1, 1, [sample(1.0), sample(1.0)])]
    assert measured(groups) == {
        "reward": 0.75, "answerTokens": 1.0, "entropy": 1.0, "truncated": 0.25, "equalGroups": 0.5
    }  # fmt: skip
    assert replace(groups[0], samples=groups[1].samples).equal
