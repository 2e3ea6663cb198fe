"""Rollout actors and the reward model on real Ray nodes: not on the head, in Pods of their own where there are some, and training
workers find room."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from support.nodes import Nodes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

# What the driver of a stage does: first the actors, then a place for each training worker. Tells the node and the GPU of each.
WHERE = """
import json, sys
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from plumbline.ray_environment import connect

def where(*_):
    own = ray.get_runtime_context()
    (has,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == own.get_node_id())
    kind = next((kind for kind in ("rollout", "GPU", "CPU") if kind in has), "head")
    return kind, *own.get_accelerator_ids()["GPU"]

def tell(actors, bundle):
    found = ray.get([actor.__ray_call__.remote(where) for actor in actors])
    group = placement_group([bundle] * 3)
    ray.get(group.ready())
    strategies = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i) for i in range(3)]
    workers = ray.remote(num_cpus=1, num_gpus=bundle["GPU"])(where)
    print(json.dumps([found, ray.get([workers.options(scheduling_strategy=one).remote() for one in strategies])]))
    remove_placement_group(group)

connect()
"""
MANY = """
from plumbline.rollout.placement import placement

@ray.remote(num_cpus=0)
class Light:
    pass

nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
found = placement(nodes, 3, workers=6, trainers=3, judged=True, share=None)
tell([Light.options(**options).remote() for options in [found.actor] * 6 + [found.judge] * 2], {"CPU": 1, "GPU": 1})
"""
POOLS = """
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.rollout.pool import SHARED_GPU, rollout_pool

tiny, usual = ModelReference(TINY), {"workers": 1, "trainers": 3, "answers": 8, "max_length": 64}
with rollout_pool(tiny, **usual, colocated=False, reward_model=tiny) as (actors, judge):
    tell([*actors, judge], {"CPU": 1, "GPU": 1})
with rollout_pool(tiny, **usual, colocated=True) as (actors, _):
    tell(actors, {"CPU": 1, "GPU": 1 - SHARED_GPU})
"""
Where = list[list[str]]


def told(nodes: Nodes, log: Path, program: str) -> list[tuple[Where, Where]]:
    """Where actors and three training workers are, for each that the program tells of."""
    with nodes.program(log, sys.executable, "-c", WHERE + program) as process:
        process.wait(300)
    assert process.returncode == 0, log.read_text()
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("[[")]


def test_actors_find_their_places_and_leave_training_workers_theirs(tmp_path: Path) -> None:
    with Nodes() as nodes:
        nodes.start("trainers", num_cpus=3, num_gpus=3)
        ((actors, trainers),) = told(nodes, tmp_path / "many", MANY)
        assert actors == [["GPU"]] * 8  # there, and not on the head; they take nothing that training workers need
        assert sorted(trainers) == [["GPU", "0"], ["GPU", "1"], ["GPU", "2"]]
        nodes.start("kept", num_cpus=0, resources='{"rollout": 2}')
        apart, together = told(nodes, tmp_path / "pools", POOLS)
        assert apart[0] == [["rollout"]] * 2
        assert sorted(apart[1]) == [["GPU", "0"], ["GPU", "1"], ["GPU", "2"]]
        assert [kind for kind, _ in together[0]] == ["GPU"]
        assert sorted(together[1]) == [["GPU", "0"], ["GPU", "1"], ["GPU", "2"]]  # never two on one
