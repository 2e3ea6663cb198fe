"""The reconciler where things go wrong at a bad moment: crashes, edits by hand, lost memory, clocks, late news."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest

from plumbline.api.labels import ATTEMPT, RETRY, STAGE
from plumbline.api.run import RunSpec
from plumbline.api.stages.serve import ServeSpec
from plumbline.graph import Graph, build_graph
from plumbline_operator.desired import Reference
from plumbline_operator.observed import REPLACES, SHAPE
from plumbline_operator.status import timestamp
from support.simulated_cluster import PATIENCE, STAGES, Simulation, run_object
from support.simulated_runs import ONE, job, running, serving, step, update


def edited(**change: Any) -> list[dict[str, Any]]:
    """The stages with another `sft`."""
    stages = copy.deepcopy(STAGES)
    stages[1]["sft"] |= change  # type: ignore[operator]
    return stages


def plan(world: Simulation, error: dict[str, Any] | None = None) -> None:
    for one in world.of("Job"):
        if "status" not in one:
            world.plan(one, error)


def live(world: Simulation) -> Any:
    return world.store["RayService", "demo-live"]


def updating() -> tuple[Simulation, Any]:
    """A run whose endpoint is being updated, and the spec that serves meanwhile."""
    world = serving()
    before = copy.deepcopy(live(world)["spec"])
    update(world)
    assert live(world)["spec"] != before
    return world, before


# The operator ends between two writes


@pytest.mark.parametrize("why", ["unhealthy", "deadline", "suspend", "edit"])
def test_an_update_is_taken_back_though_the_operator_ended_before_it_did(why: str) -> None:
    world, before = updating()
    if why == "unhealthy":
        world.serve(live(world), healthy=False)
    elif why == "deadline":
        world.edit(activeDeadlineSeconds=500)
        step(world)
        plan(world)
        step(world)
        world.now += 500
    elif why == "suspend":
        world.edit(suspend=True)
    else:
        world.edit(stages=edited(maxSteps=77))
        step(world)
        plan(world)
    world.sync()
    world.reconcile(crash="between")
    assert live(world)["spec"] != before
    step(world)
    assert live(world)["spec"] == before
    assert not step(world).create


def test_a_first_version_that_failed_is_deleted_though_the_operator_ended_before_it_did() -> None:
    world = Simulation(run_object(backoffLimit=0))
    update(world)
    world.serve(live(world), healthy=False)
    world.sync()
    world.reconcile(crash="between")
    assert world.condition("Failed")["status"] == "True"
    assert step(world).delete == (Reference("RayService", "demo-live"),)


# Serving


def test_a_version_that_was_put_back_is_kept_by_the_next_update() -> None:
    world, before = updating()
    world.serve(live(world), healthy=False)
    step(world)
    assert world.stage("live")["reason"] == "RolledBack"
    world.run["metadata"]["annotations"] = {f"{RETRY}live": str(world.stage("live")["attempt"])}
    world.put(world.run)
    step(world)  # before KubeRay has looked at what was put back
    assert world.stage("live")["reason"] == "Deploying"
    world.serve(live(world), healthy=False)
    step(world)
    assert live(world)["spec"] == before


def test_a_version_that_is_ill_when_it_is_replaced_is_kept() -> None:
    world = serving()
    before = copy.deepcopy(live(world)["spec"])
    live(world)["status"]["activeServiceStatus"]["applicationStatuses"]["model"]["status"] = "UNHEALTHY"
    update(world)
    world.serve(live(world), healthy=False)
    step(world)
    assert live(world)["spec"] == before


@pytest.mark.parametrize("what", [SHAPE, REPLACES])
def test_annotations_of_an_endpoint_that_somebody_removed_come_back(what: str) -> None:
    world = serving()
    before = copy.deepcopy(live(world)["spec"])
    live(world)["metadata"]["annotations"].pop(what, None)
    world.put(live(world))
    world.settle()
    assert live(world)["spec"] == before
    assert (world.stage("live")["reason"], world.stage("live")["failures"]) == ("Serving", 0)


def test_an_edit_back_to_what_serves_deploys_nothing() -> None:
    world = serving()
    generation = live(world)["metadata"]["generation"]
    world.edit(stages=edited(maxSteps=77))
    step(world)
    plan(world)
    step(world)
    assert world.stage("live")["phase"] == "Pending"
    world.edit(stages=STAGES)
    world.settle()
    assert world.condition("Complete")["status"] == "True"
    assert live(world)["metadata"]["generation"] == generation


def test_a_field_that_a_later_operator_adds_deploys_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(ServeSpec):
        more: int = 3

    world = serving()
    before = copy.deepcopy(live(world))

    def built(spec: RunSpec) -> Graph:
        *others, last = build_graph(spec).nodes
        return Graph((*others, dataclasses.replace(last, spec=Later())))

    monkeypatch.setattr("plumbline_operator.reconcile.build_graph", built)
    assert step(world).create == ()
    assert live(world) == before


def test_kuberay_s_words_about_the_version_before_do_not_fail_the_next() -> None:
    world, _ = updating()
    service = live(world)
    refused = {"type": "Ready", "status": "False", "reason": "ValidationFailed", "message": "no image"}
    service["status"]["conditions"] = [refused | {"observedGeneration": service["metadata"]["generation"] - 1}]
    world.put(service)
    step(world)
    assert world.stage("live")["phase"] == "Waiting"
    service["status"]["conditions"][0]["observedGeneration"] += 1
    world.put(service)
    step(world)
    assert world.stage("live")["reason"] == "RolledBack"


def test_time_in_kueue_s_queue_does_not_count_against_an_endpoint() -> None:
    world = Simulation(run_object(queueName="gpus"))
    update(world)

    def workload(admitted: str, **more: Any) -> None:
        condition = {"type": "Admitted", "status": admitted, "reason": "R", "message": "8 of 8 GPUs are taken"} | more
        reserved = {"type": "QuotaReserved", "status": admitted, "reason": "Pending", "message": "8 of 8 GPUs are taken"}
        owner = {"kind": "RayService", "name": "demo-live"}
        meta = {"name": "w", "namespace": "default", "uid": "w", "ownerReferences": [owner]}
        world.put({"kind": "Workload", "metadata": meta, "status": {"conditions": [condition, reserved]}})

    workload("False")
    world.now += 10 * PATIENCE.healthy
    step(world)
    assert (world.stage("live")["phase"], world.stage("live")["reason"]) == ("Waiting", "QuotaPending")
    assert "8 of 8" in world.stage("live")["message"]
    workload("True", lastTransitionTime=timestamp(world.now))
    step(world)
    assert world.stage("live")["reason"] == "Deploying"
    world.now += PATIENCE.healthy
    step(world)
    assert world.stage("live")["reason"] == "Unhealthy"


def test_a_run_whose_endpoint_was_deleted_by_hand_does_not_expire() -> None:
    world = serving()
    world.edit(ttlSecondsAfterFinished=0)
    world.settle()
    world.delete_by_user(("RayService", "demo-live"))
    outcome = step(world)
    assert outcome.create
    assert not outcome.delete_run


# What the operator remembers is gone


def test_a_run_that_serves_and_whose_status_got_lost_goes_on_serving() -> None:
    world = serving()
    generation = live(world)["metadata"]["generation"]
    world.run["status"] = {}
    world.forget()
    world.put(world.run)
    world.settle()
    assert world.condition("Complete")["status"] == "True"
    assert live(world)["metadata"]["generation"] == generation


def test_attempts_that_only_a_report_tells_of_are_counted() -> None:
    world = running()
    world._report("stage-data.json", {"attempt": 5, "fingerprint": "f"})
    world.delete_by_user(("RayJob", "demo-data-1"))
    world.end_pods()
    world.run["status"] = {}
    world.forget()
    world.put(world.run)
    step(world)
    assert world.stage("data")["attempt"] == 6  # the stage program gives way to later ones


@pytest.mark.parametrize("text", ["9" * 900_000, "\ud800"])
def test_a_report_that_no_status_can_hold_is_passed_over(text: str) -> None:
    world = running()
    for metrics in ({"loss": text}, {text: "1"}):
        world._report("stage-data.json", {"attempt": 1, "fingerprint": "f", "metrics": metrics})
        step(world)
        assert "metrics" not in world.stage("data")
        assert "cannot be read" in world.stage("data")["message"]


# Edits by hand


@pytest.mark.parametrize(
    ("label", "text"), [(ATTEMPT, None), (ATTEMPT, "7"), (STAGE, "sft"), (STAGE, "gone"), (STAGE, None)]
)
def test_a_label_that_somebody_edits_ends_nothing(label: str, text: str | None) -> None:
    world = running()
    labels = job(world, "data")["metadata"]["labels"]
    if text is None:
        del labels[label]
    else:
        labels[label] = text
    world.put(job(world, "data"))
    assert step(world).delete == ()
    world.settle()
    assert world.stage("data")["attempt"] == 1
    assert world.condition("Complete")["status"] == "True"


# No way on


def test_a_plan_that_fails_ends_the_run_though_a_stage_waits_for_it() -> None:
    world = running()
    world.edit(stages=edited(maxSteps=77))
    step(world)
    plan(world, {"message": "no such file", "permanent": True})
    step(world)
    assert world.condition("Failed")["status"] == "False"  # what runs since before the edit may end
    world.delete_by_user(("RayJob", "demo-data-1"))
    world.end_pods()
    step(world)
    assert world.condition("Failed")["reason"] == "PlanFailed"
    assert world.stage("data")["reason"] == "PlanFailed"
    world.edit(stages=STAGES)
    world.settle()
    assert world.condition("Complete")["status"] == "True"


def test_a_resumed_run_ends_when_what_a_suspended_stage_needs_fails() -> None:
    world = running(backoffLimit=0)
    world.move(job(world, "data"), "succeed")
    step(world)
    assert world.stage("sft")["attempt"] == 1
    stages = copy.deepcopy(STAGES)
    stages[0]["curate"]["sources"][0]["limit"] = 3  # type: ignore[index]
    world.edit(stages=stages)
    for suspend in (True, False):
        step(world)
        plan(world)
        step(world)
        world.end_pods()
        step(world)
        world.edit(suspend=suspend)
    assert world.stage("sft")["phase"] == "Suspended"
    step(world)
    plan(world)
    step(world)
    world.end_pods()
    step(world)
    world.move(job(world, "data", world.stage("data")["attempt"]), "fail")
    step(world)
    assert world.stage("sft")["phase"] == "Blocked"
    world.settle()
    assert world.condition("Failed")["reason"] == "StageFailed"


def test_a_run_that_was_invalid_goes_on_once_the_operator_s_settings_make_it_valid() -> None:
    run = run_object()
    run["spec"]["workspace"] = {"uri": ".plumbline/demo"}
    world = Simulation(run)
    step(world)
    assert world.condition("Failed")["reason"] == "InvalidSpec"
    observe = world.observe
    world.observe = lambda: dataclasses.replace(observe(), default_claim="shared")  # type: ignore[method-assign]
    world.settle()
    assert world.condition("Complete")["status"] == "True"


# Times


def test_a_run_that_ended_in_time_is_complete_though_that_is_seen_late() -> None:
    world = Simulation(run_object(ONE, activeDeadlineSeconds=100))
    step(world)
    plan(world)
    step(world)
    world.move(job(world, "data"), "succeed")
    world.now += 200
    step(world)
    assert world.condition("Complete")["status"] == "True"


def test_a_clock_that_is_set_back_does_not_put_off_a_retry() -> None:
    world = running()
    world.move(job(world, "data"), "fail")
    world.end_pods()
    step(world)
    world.now -= 100_000
    step(world)
    assert world.stage("data")["attempt"] == 2


def test_an_edit_does_not_wait_for_the_retry() -> None:
    world = running()
    world.move(job(world, "data"), "fail")
    world.end_pods()
    step(world)
    assert "retryTime" in world.stage("data")
    world.edit(cluster={"image": "mended"})
    step(world)
    plan(world)
    step(world)
    assert world.stage("data")["attempt"] == 2


# Words


def test_a_run_is_not_suspended_as_long_as_pods_of_a_stage_it_no_longer_has_run() -> None:
    world = running()
    world.edit(stages=[{"name": "words", "curate": {"sources": [{"uri": "builtin://skills"}]}}], suspend=True)
    step(world)
    step(world)
    assert "demo-data-1-head" in world.condition("Suspended")["message"]
    world.end_pods()
    step(world)
    assert world.condition("Suspended")["status"] == "True"


def test_the_gate_that_failed_is_named_and_not_one_that_was_inconclusive() -> None:
    checks: list[dict[str, Any]] = [copy.deepcopy(STAGES[3]) | {"name": name} for name in ("unsure", "bad")]
    checks[0]["evaluate"]["tasks"][0]["limit"] = 7
    world = Simulation(run_object([*STAGES[:2], *checks]))
    result, verdicts = world._result, {"unsure": "Inconclusive", "bad": "Failed"}

    def judged(name: str, fingerprint: str) -> Any:
        verdict = {"verdict": verdicts[name], "verdictReason": "so it is"} if name in verdicts else {}
        return result(name, fingerprint) | verdict

    world._result = judged  # type: ignore[method-assign]
    world.settle()
    assert world.status["gate"] == "Failed"
    assert world.condition("Failed")["reason"] == "GateFailed"
    assert "'bad'" in world.condition("Failed")["message"]


def test_words_of_an_earlier_plan_are_not_those_of_the_next() -> None:
    world = Simulation()
    step(world)
    world.plan(world.of("Job")[0], {"message": "the hub does not answer"})
    ended = {"terminated": {"exitCode": 2, "reason": "Error", "message": "old words"}}
    pod = world._child("Pod", "demo-plan-1-1-x", {}, {}, {"status": {"phase": "Failed"}})
    pod["status"]["containerStatuses"] = [{"name": "plan", "state": ended}]
    world.put(pod)
    world.now += step(world).requeue
    step(world)
    second = world.store["Job", "demo-plan-1-2"]
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too slow"}
    second["status"] = {"conditions": [failed]}
    world.put(second)
    step(world)
    assert "too slow" in json.dumps(world.status["plan"])
    assert "old words" not in json.dumps(world.status["plan"])
