"""Runs that go well: on a real API server, with the operator as a process and a fake KubeRay."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import yaml

from support.fake_kuberay.behaviours import succeed
from support.fake_kuberay.kueue import NO_QUOTA
from support.project import CHECK, DATA, LIVE, SFT, Project, changed, pipeline
from support.rest import CONFIG_MAPS, JOBS, PODS, RAY_JOBS, RAY_SERVICES, ROLES, RUNS, SERVICE_ACCOUNTS

pytestmark = pytest.mark.apiserver


def test_a_run_becomes_a_served_model(project: Project) -> None:
    project.apply(pipeline())
    project.wait_condition("Complete")
    status = project.status()
    assert [(s["name"], s["phase"], s["attempt"]) for s in status["stages"]] == [
        ("data", "Succeeded", 1),
        ("sft", "Succeeded", 1),
        ("check", "Succeeded", 1),
        ("live", "Running", 1),
    ]
    assert (status["phase"], status["gate"], status["observedGeneration"]) == ("Succeeded", "Passed", 1)
    assert status["endpoint"] == f"http://run-live-serve-svc.{project.name}.svc:8000/v1"
    assert status["report"] == project.stage("check")["artifact"]
    assert project.stage("sft")["metrics"] == {"loss": "0.5"}
    assert project.stage("sft")["child"] == "RayJob/run-sft-1"
    for type in ("Validated", "GatePassed", "Ready"):
        assert project.condition(type)["status"] == "True"
    assert {reason for _, reason, _ in project.events()} >= {"StageStarted", "StageSucceeded", "Serving", "Complete"}
    assert not [message for type, _, message in project.events() if type == "Warning"]


def test_a_second_run_finds_everything_cached(project: Project) -> None:
    project.apply(pipeline(DATA, SFT, CHECK))
    project.wait_condition("Complete")
    project.apply(pipeline(DATA, SFT, CHECK), name="again")
    project.wait_condition("Complete", name="again")
    again = project.status("again")
    assert [(s["phase"], s["cached"], s["attempt"]) for s in again["stages"]] == [("Cached", True, 0)] * 3
    assert again["gate"] == "Passed"
    assert project.fake.attempts(project.name, "sft") == [1], "a cached stage starts no cluster"


def test_branches_run_side_by_side(project: Project) -> None:
    go = threading.Event()
    project.fake.script(project.name, "one", succeed(until=go))
    project.fake.script(project.name, "two", succeed(until=go))
    two = {"name": "two", "inputs": {"model": "base"}, "sft": {"maxSteps": 3}}
    project.apply(pipeline(DATA, {**SFT, "name": "one"}, two))
    project.wait(lambda: project.stage("one").get("phase") == project.stage("two").get("phase") == "Running")
    go.set()
    project.wait_condition("Complete")


def test_progress_reaches_the_status(project: Project) -> None:
    go = threading.Event()
    project.fake.script(project.name, "sft", succeed(steps=5, until=go))
    project.apply(pipeline(DATA, SFT))
    stage = project.wait(lambda: (one := project.stage("sft")).get("progress", {}).get("step") == 5 and one)
    assert stage["progress"] == {"step": 5, "total": 5, "etaSeconds": 0}
    assert (stage["message"], stage["metrics"]) == ("training", {"loss": "0.2"})
    assert project.status()["currentStage"] == "sft"
    assert "5" in project.status()["progress"]
    go.set()
    project.wait_condition("Complete")


@pytest.mark.parametrize(("verdict", "reason"), [("Failed", "GateFailed"), ("Inconclusive", "GateInconclusive")])
def test_nothing_is_served_behind_a_gate_that_did_not_pass(project: Project, verdict: str, reason: str) -> None:
    project.fake.script(project.name, "check", succeed(verdict=verdict))
    project.apply(pipeline())
    failed = project.wait_condition("Failed", reason)
    assert f"skills: {verdict}" in failed["message"]
    assert project.condition("GatePassed")["status"] == "False"
    assert (project.stage("live")["phase"], project.stage("live")["reason"]) == ("Blocked", reason)
    assert project.on.get(RAY_SERVICES, project.name, "run-live") is None
    assert project.status()["gate"] == verdict


def test_an_ungated_model_is_served_at_once(project: Project) -> None:
    project.apply(pipeline(changed(LIVE, ungated=True)))
    project.wait_condition("Complete")
    assert project.status()["endpoint"]
    assert project.condition("GatePassed")["reason"] == "NoGate"


def test_deletion_takes_all_children(project: Project) -> None:
    project.fake.script(project.name, "sft", succeed(until=threading.Event()))
    project.apply(pipeline(changed(LIVE, ungated=True), DATA, SFT))
    project.wait_stage("sft", "Running")
    project.wait_stage("live", reason="Serving")
    project.on.delete(RUNS, project.name, "run")
    kinds = (RUNS, RAY_JOBS, RAY_SERVICES, JOBS, PODS, CONFIG_MAPS, SERVICE_ACCOUNTS, ROLES)
    project.wait(lambda: not any(project.on.list(kind, project.name) for kind in kinds))


def test_a_finished_run_is_deleted_after_its_time_to_live(project: Project) -> None:
    project.apply(pipeline(DATA, ttlSecondsAfterFinished=1))
    project.fake.wait(project.name, "data", "Complete")
    project.wait(lambda: project.on.get(RUNS, project.name, "run") is None)


def test_the_longest_names(project: Project) -> None:
    run, stage = "9" + "r" * 61 + "n", "s" * 30
    project.apply(pipeline({**DATA, "name": stage}, changed({**LIVE, "name": "l" * 30}, ungated=True)), name=run)
    project.wait_condition("Complete", name=run)
    project.apply(pipeline({**DATA, "name": stage}), name="a.b")
    project.wait_condition("Complete", name="a.b")


def test_a_huge_run(project: Project) -> None:
    sources = [{"uri": f"builtin://skills-{i}-" + "x" * 900} for i in range(64)]
    stages = [{"name": f"data{i}", "curate": {"sources": sources}} for i in range(3)]
    project.apply(pipeline(*stages))
    project.wait_condition("Complete")


def test_a_queue_holds_a_stage_back(project: Project) -> None:
    project.fake.kueue.full.add(project.name)
    project.apply(pipeline(DATA, queueName="team"))
    plan = project.wait(lambda: "team" in (one := project.status().get("plan") or {}).get("message", "") and one)
    assert plan["reason"] == "ResourceMissing"
    meta = {"name": "team", "namespace": project.name}
    project.on.apply({"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "LocalQueue", "metadata": meta})
    go = threading.Event()
    project.fake.script(project.name, "data", succeed(until=go))
    stage = project.wait(lambda: NO_QUOTA in (one := project.stage("data")).get("message", "") and one)
    assert (stage["phase"], stage["reason"]) == ("Waiting", "QuotaPending")
    project.fake.kueue.full.discard(project.name)
    project.wait_stage("data", "Running")
    project.fake.kueue.preempted.add(project.name)
    project.fake.kueue.full.add(project.name)
    stage = project.wait_stage("data", "Waiting", "Preempted")
    assert "higher priority" in stage["message"]
    project.fake.kueue.full.discard(project.name)
    project.fake.kueue.preempted.discard(project.name)
    go.set()
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1], "Kueue stops and starts one and the same RayJob"


def test_an_idle_operator_writes_nothing(project: Project) -> None:
    project.apply(pipeline())
    project.wait_condition("Complete")

    def quiet() -> bool:
        seen = len(_writes(project))
        time.sleep(4)
        return len(_writes(project)) == seen

    project.wait(quiet, 60)  # the last writes of a run may be late


def test_the_operator_leaves_no_marks(project: Project) -> None:
    """No finalizers or annotations of kopf's, which would block the deletion of a run when the operator is gone."""
    project.apply(pipeline(DATA))
    project.wait_condition("Complete")
    for kind, name in ((RUNS, "run"), (RAY_JOBS, "run-data-1"), (CONFIG_MAPS, "run-state")):
        found = project.on.get(kind, project.name, name)
        assert found is not None
        meta = found["metadata"]
        assert not [one for one in meta.get("annotations", {}) if "kopf" in one]
        assert not [one for one in meta.get("finalizers", []) if not one.startswith("ray.io/")]


def _writes(project: Project) -> list[object]:
    asked = list(project.on.proxy.requests)
    return [one for one in asked if one.writes and one.namespace == project.name]


def test_kubectl_shows_it(project: Project, kubectl: Callable[..., str]) -> None:
    run = {"apiVersion": "plumbline.dev/v1alpha1", "kind": "AlignmentRun", "metadata": {"name": "run"}}
    kubectl("apply", "-n", project.name, "-f", "-", stdin=yaml.safe_dump(run | {"spec": pipeline()}))
    project.wait_condition("Complete")
    table = kubectl("get", "arun", "-n", project.name).splitlines()
    assert table[0].split()[:2] == ["NAME", "PHASE"]
    assert {"run", "Succeeded", "Passed", project.status()["endpoint"]} <= set(table[1].split())
    described = kubectl("describe", "arun", "run", "-n", project.name)
    assert "StageSucceeded" in described, "events belong to the run"
