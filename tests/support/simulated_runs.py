"""Runs in a simulated cluster, taken to where a test begins."""

from __future__ import annotations

import copy
from typing import Any

from plumbline_operator import names
from support.simulated_cluster import STAGES, Simulation, run_object

ONE = [{"name": "data", "curate": {"sources": [{"uri": "builtin://skills"}]}}]


def step(world: Simulation) -> Any:
    """All events delivered, one reconcile."""
    world.sync()
    outcome = world.reconcile()
    world.check()
    return outcome


def planned(**spec: Any) -> Simulation:
    """A run whose plan is done and whose first attempts have begun."""
    world = Simulation(run_object(**spec))
    step(world)
    world.plan(world.of("Job")[0])
    step(world)
    return world


def running(**spec: Any) -> Simulation:
    """A run whose first stage is at work."""
    world = planned(**spec)
    for to in ("start", "run"):
        world.move(world.store["RayJob", "demo-data-1"], to)
    step(world)
    return world


def job(world: Simulation, stage: str, attempt: int = 1) -> Any:
    return world.store["RayJob", names.ray_job("demo", stage, attempt)]


def serving() -> Simulation:
    world = Simulation()
    world.settle()
    assert world.condition("Complete")["status"] == "True"
    return world


def update(world: Simulation) -> None:
    """Edit the served model and let everything but the endpoint happen."""
    stages = copy.deepcopy(STAGES)
    stages[1]["sft"]["maxSteps"] = 99  # type: ignore[index]
    world.edit(stages=stages)
    for _ in range(30):
        step(world)
        for one in world.of("Job"):
            if "status" not in one:
                world.plan(one)
        for one in world.of("RayJob"):
            if one.get("status", {}).get("jobDeploymentStatus") != "Complete":
                world.move(one, "succeed")
        world.end_pods()
