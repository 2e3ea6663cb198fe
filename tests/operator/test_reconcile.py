"""The reconciler, one situation after the other. It is pure: no API server, no clock."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from plumbline.api.labels import RETRY
from plumbline_operator.desired import Endpoint, PlanJob, Reference, Restored, StageJob
from plumbline_operator.events import notes
from plumbline_operator.observed import project
from support.simulated_cluster import PATIENCE, STAGES, Simulation, run_object
from support.simulated_runs import ONE, job, planned, running, serving, step, update


def test_a_plan_comes_before_everything_else() -> None:
    world = Simulation()
    outcome = step(world)
    assert [type(one).__name__ for one in outcome.create] == ["Access", "PlanJob"]
    assert world.status["observedGeneration"] == 1
    assert world.status["phase"] == "Pending"


def test_branches_run_beside_each_other() -> None:
    world = Simulation(run_object([STAGES[0], *({"name": f"sft-{i}", "sft": {"maxSteps": i + 1}} for i in range(3))]))
    for one in world.run["spec"]["stages"][1:]:
        one["inputs"] = {"model": "base"}
    step(world)
    world.plan(world.of("Job")[0])
    step(world)
    world.move(job(world, "data"), "start")
    world.move(job(world, "data"), "succeed")
    outcome = step(world)
    assert {one.stage for one in outcome.create if isinstance(one, StageJob)} == {"sft-0", "sft-1", "sft-2"}


def test_what_is_cached_starts_nothing() -> None:
    world = Simulation()
    world.artifacts |= {
        one: name for name, one in world._fingerprints().items() if name in ("data", "sft", "other", "check")
    }
    world.settle()
    assert not world.of("RayJob")
    assert {stage["phase"] for stage in world.status["stages"][:4]} == {"Cached"}
    assert world.stage("sft")["cached"] is True
    assert world.condition("Complete")["status"] == "True"


def test_success_needs_succeeded_and_not_only_complete() -> None:
    world = running()
    world.move(job(world, "data"), "stop")
    step(world)
    assert world.stage("data")["reason"] == "Stopped"
    assert world.stage("data")["failures"] == 1


def test_retries_wait_longer_each_time_and_end() -> None:
    world = running(backoffLimit=2)
    waits = []
    for attempt in (1, 2, 3):
        for to in ("start", "run", "fail"):
            world.move(job(world, "data", attempt), to, **({"message": f"boom {attempt}"} if to == "fail" else {}))
        outcome = step(world)
        world.end_pods()
        if attempt < 3:
            waits.append(outcome.requeue)
            world.now += outcome.requeue
            step(world)
    assert waits == [10, 20]
    assert world.stage("data")["phase"] == "Failed"
    assert "boom 3" in world.stage("data")["message"]
    assert world.stage("sft")["phase"] == "Blocked"
    assert world.condition("Failed")["reason"] == "StageFailed"
    assert world.status["phase"] == "Failed"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (
            {"message": "Job entrypoint command failed with exit code 2, last available logs:\nerror: no such file"},
            "InvalidInput",
        ),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "entrypoint is empty"}, "ChildRejected"),
    ],
)
def test_what_cannot_get_better_is_not_tried_again(how: dict[str, str], reason: str) -> None:
    world = running()
    world.move(job(world, "data"), "fail", **how)
    step(world)
    assert (world.stage("data")["phase"], world.stage("data")["reason"]) == ("Failed", reason)
    assert how["message"].splitlines()[-1] in world.stage("data")["message"]


def test_the_program_s_own_words_are_preferred() -> None:
    world = running()
    error = {"message": "stage 'data': alpaca.json, line 3: no field 'output'", "permanent": True}
    world._report("stage-data.json", {"attempt": 1, "fingerprint": world.stage("data")["fingerprint"], "error": error})
    world.move(job(world, "data"), "fail", message="Job entrypoint command failed with exit code 2")
    step(world)
    assert world.stage("data")["message"] == error["message"]


def test_out_of_memory_and_lost_pods_are_told_apart() -> None:
    for terminated, reason in (
        ({"reason": "OOMKilled", "exitCode": 137}, "OutOfMemory"),
        ({"reason": "Error", "exitCode": 1}, "PodLost"),
    ):
        world = running()
        pod = world.store["Pod", "demo-data-1-head"]
        pod["status"]["containerStatuses"] = [{"name": "ray-head", "state": {"terminated": terminated}}]
        world.put(pod)
        world.move(job(world, "data"), "fail", reason="JobStatusCheckTimeoutExceeded")
        step(world)
        assert world.stage("data")["reason"] == reason


def test_an_attempt_waits_for_the_pods_of_the_one_before() -> None:
    world = running()
    world.move(job(world, "data"), "fail")
    step(world)
    world.now += 11
    step(world)
    assert world.stage("data")["attempt"] == 1
    assert "demo-data-1-head" in world.stage("data")["message"]
    world.end_pods()
    step(world)
    assert world.stage("data")["attempt"] == 2


def test_an_unreachable_dashboard_ends_the_attempt_in_the_end() -> None:
    world = running()
    world.move(job(world, "data"), "run", jobStatusCheckFailureStartTime="1970-01-01T00:16:40Z")  # 1000 s
    assert step(world).requeue == PATIENCE.unreachable
    world.now += PATIENCE.unreachable
    outcome = step(world)
    assert Reference("RayJob", "demo-data-1") in outcome.delete
    assert world.stage("data")["reason"] == "DashboardUnreachable"


def test_a_head_that_is_gone_counts_as_unreachable_for_old_kuberay() -> None:
    world = running()
    gone = {
        "type": "HeadPodReady",
        "status": "False",
        "reason": "HeadPodNotFound",
        "lastTransitionTime": "1970-01-01T00:16:40Z",
    }
    world.move(job(world, "data"), "run", rayClusterStatus={"state": "ready", "conditions": [gone]})
    world.now += PATIENCE.unreachable + 1
    step(world)
    assert world.stage("data")["reason"] == "DashboardUnreachable"


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/5 nodes are available: 5 Insufficient nvidia.com/gpu.",
                    }
                ]
            },
            "Unschedulable",
            "Insufficient nvidia.com/gpu",
        ),
        (
            {
                "containerStatuses": [
                    {
                        "name": "ray-head",
                        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}},
                    }
                ]
            },
            "ImagePull",
            "Back-off pulling image",
        ),
        (
            {
                "containerStatuses": [
                    {
                        "name": "ray-head",
                        "state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}},
                    }
                ]
            },
            "ContainerConfig",
            'secret "s3" not found',
        ),
    ],
)
def test_a_stage_says_why_it_waits(status: dict[str, Any], reason: str, words: str) -> None:
    world = planned()
    world.move(job(world, "data"), "start")
    pod = world.store["Pod", "demo-data-1-head"]
    pod["status"] = {"phase": "Pending"} | status
    world.put(pod)
    before = project(world.run).status  # type: ignore[union-attr]
    outcome = step(world)
    assert (world.stage("data")["phase"], world.stage("data")["reason"]) == ("Waiting", reason)
    assert words in world.stage("data")["message"]
    assert words in world.condition("Progressing")["message"]
    assert any(words in note.message and note.type == "Warning" for note in notes(before, outcome.status))


def test_quota_is_told_from_the_ray_cluster() -> None:
    world = planned()
    condition = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreateWorkerPod",
        "message": "exceeded quota: gpus, requested: 8, used: 8, limited: 8",
    }
    world.move(job(world, "data"), "start", rayClusterStatus={"conditions": [condition]})
    step(world)
    assert world.stage("data")["reason"] == "QuotaExceeded"
    assert "limited: 8" in world.stage("data")["message"]


def test_progress_reaches_the_status() -> None:
    world = running()
    report = {
        "attempt": 1,
        "fingerprint": "f",
        "message": "training",
        "progress": {"step": 3, "total": 10},
        "metrics": {"loss": "1.5"},
    }
    world._report("stage-data.json", report)
    step(world)
    assert world.stage("data")["progress"] == {"step": 3, "total": 10}
    assert world.status["progress"] == "3/10"
    assert world.stage("data")["metrics"] == {"loss": "1.5"}


def test_progress_of_an_earlier_attempt_is_not_shown() -> None:
    world = running()
    world._report("stage-data.json", {"attempt": 7, "fingerprint": "f", "progress": {"step": 3, "total": 10}})
    step(world)
    assert "progress" not in world.stage("data")


def test_rubbish_in_the_config_map_is_said_and_survived() -> None:
    world = running()
    world.store["ConfigMap", "demo-state"]["data"]["stage-data.json"] = "{]"
    world.put(world.store["ConfigMap", "demo-state"])
    step(world)
    assert "cannot be read" in world.stage("data")["message"]
    world.settle()
    assert world.condition("Complete")["status"] == "True"


def test_a_result_that_got_lost_is_found_by_planning_again() -> None:
    world = running()
    world.move(job(world, "data"), "succeed", tell=False)
    step(world)
    assert world.stage("data")["reason"] == "ResultPending"
    world.now += PATIENCE.result + 1
    step(world)
    outcome = step(world)
    assert PlanJob(1, 2) in outcome.create
    world.settle()
    assert world.stage("data")["phase"] == "Cached"
    assert len([one for one in world.created if "data" in one]) == 1


def test_suspend_deletes_first_and_says_suspended_when_nothing_is_left() -> None:
    world = running()
    world.edit(suspend=True)
    outcome = step(world)
    assert Reference("RayJob", "demo-data-1") in outcome.delete
    assert world.condition("Suspended")["status"] == "False"
    assert world.condition("Suspended")["reason"] == "Suspending"
    world.end_pods()
    step(world)
    assert world.condition("Suspended")["status"] == "True"
    assert world.status["phase"] == "Suspended"
    assert "startTime" not in world.status
    world.edit(suspend=False)
    world.settle()
    assert world.stage("data")["attempt"] == 2
    assert world.stage("data")["failures"] == 0
    assert world.condition("Complete")["status"] == "True"


def test_a_run_that_is_born_suspended_starts_nothing() -> None:
    world = Simulation(run_object(suspend=True))
    outcome = step(world)
    assert outcome.create == ()
    assert world.condition("Suspended")["status"] == "True"


def test_an_edit_of_a_running_run_redoes_only_what_changed() -> None:
    world = running()
    world.move(job(world, "data"), "succeed")
    step(world)
    stages = copy.deepcopy(STAGES)
    stages[2]["sft"]["maxSteps"] = 99  # type: ignore[index]
    world.edit(stages=stages)
    world.settle()
    assert world.stage("data")["attempt"] == 1
    assert world.stage("sft")["attempt"] == 1
    assert world.stage("other")["attempt"] == 2


def test_an_edit_of_a_finished_run_starts_it_anew_and_keeps_serving() -> None:
    world = serving()
    stages = copy.deepcopy(STAGES)
    stages[1]["sft"]["maxSteps"] = 99  # type: ignore[index]
    world.edit(stages=stages)
    step(world)
    assert world.condition("Complete")["status"] == "False"
    assert world.condition("Ready")["status"] == "True"
    assert "completionTime" not in world.status
    world.settle()
    assert world.condition("Complete")["status"] == "True"
    assert world.stage("data")["attempt"] == 1
    assert world.created["demo-live"] == 1
    assert world.of("RayService")[0]["spec"]["serves"] == world._fingerprints()["live"]


def test_a_stage_taken_out_of_the_run_is_ended() -> None:
    world = running()
    world.edit(stages=[{"name": "words", "curate": {"sources": [{"uri": "builtin://skills"}]}}])
    outcome = step(world)
    assert Reference("RayJob", "demo-data-1") in outcome.delete


def test_an_invalid_spec_is_named_with_its_field_and_has_no_child() -> None:
    world = Simulation(run_object([{"name": "sft", "sft": {"maxSteps": -3}}]))
    outcome = step(world)
    assert outcome.create == ()
    assert world.condition("Validated")["status"] == "False"
    assert "spec.stages[0].sft.maxSteps" in world.condition("Validated")["message"]
    assert world.condition("Failed")["status"] == "True"
    world.edit(stages=ONE)
    world.settle()
    assert world.condition("Complete")["status"] == "True"


def test_what_serves_is_watched_while_the_spec_is_invalid() -> None:
    world = serving()
    url = world.status["endpoint"]
    world.edit(stages=[{"name": "live", "serve": {"replicas": -1}}])
    assert step(world).delete == ()
    assert (world.condition("Failed")["reason"], world.condition("Ready")["status"]) == ("InvalidSpec", "True")
    assert world.status["endpoint"] == url
    service = world.of("RayService")[0]
    service["status"]["conditions"][0]["status"] = "False"
    world.put(service)
    step(world)
    assert world.condition("Ready")["status"] == "False"
    assert "endpoint" not in world.status
    world.edit(stages=STAGES)
    world.serve(service)
    world.settle()
    assert (world.condition("Complete")["status"], world.condition("Ready")["status"]) == ("True", "True")


def test_a_path_needs_a_claim() -> None:
    run = run_object()
    run["spec"]["workspace"] = {"uri": ".plumbline/demo"}
    world = Simulation(run)
    step(world)
    assert "spec.workspace.persistentVolumeClaim" in world.condition("Validated")["message"]


@pytest.mark.parametrize("uri", ["/", "/tmp", "file:///tmp", "/dev/shm", "/plumbline/state", "/workspace/../tmp"])
def test_a_path_that_the_container_needs_is_no_workspace(uri: str) -> None:
    world = Simulation(run_object(workspace={"uri": uri, "persistentVolumeClaim": "claim"}))
    step(world)
    assert world.condition("Validated")["status"] == "False"
    assert uri in world.condition("Validated")["message"]
    assert not world.of("Job")


def test_an_accelerator_that_nobody_knows_is_said() -> None:
    stages = [{**ONE[0], "cluster": {"workers": [{"name": "gpu", "gpus": 1, "accelerator": "H100"}]}}]
    world = Simulation(run_object(stages=stages))
    step(world)
    assert world.condition("Validated")["status"] == "True"
    assert "accelerator H100 chooses no node" in world.condition("Validated")["message"]
    stages[0]["cluster"]["workers"][0]["nodeSelector"] = {"gpu": "h100"}
    world.edit(stages=stages)
    step(world)
    assert not world.condition("Validated")["message"]


def test_a_missing_claim_is_named_until_it_appears() -> None:
    world = Simulation()
    world.missing = (("PersistentVolumeClaim", "models"),)
    outcome = step(world)
    assert outcome.create == ()
    assert outcome.requeue == PATIENCE.recheck
    assert world.condition("Progressing")["reason"] == "ResourceMissing"
    assert "models" in world.condition("Progressing")["message"]
    world.missing = ()
    world.settle()
    assert world.condition("Complete")["status"] == "True"


def test_a_plan_that_fails_for_good_fails_the_run() -> None:
    world = Simulation()
    step(world)
    world.plan(world.of("Job")[0], {"message": "spec.stages[0].curate.sources[0].uri: no such file", "permanent": True})
    step(world)
    assert world.condition("Failed")["reason"] == "PlanFailed"
    assert "sources[0].uri" in world.condition("Failed")["message"]
    world.edit(stages=ONE)
    world.settle()
    assert world.condition("Complete")["status"] == "True"


def test_a_plan_that_fails_by_chance_is_tried_again() -> None:
    world = Simulation()
    step(world)
    world.plan(world.of("Job")[0], {"message": "the hub does not answer"})
    outcome = step(world)
    world.now += outcome.requeue
    assert PlanJob(1, 2) in step(world).create


def test_retry_gives_a_failed_stage_one_more_budget() -> None:
    world = running(backoffLimit=0)
    world.move(job(world, "data"), "fail")
    step(world)
    assert world.condition("Failed")["status"] == "True"
    world.run["metadata"]["annotations"] = {f"{RETRY}data": "1"}
    world.put(world.run)
    world.settle()
    assert world.stage("data")["attempt"] == 2
    assert world.condition("Complete")["status"] == "True"


def test_the_deadline_ends_what_runs() -> None:
    world = running(activeDeadlineSeconds=100)
    world.now += 101
    outcome = step(world)
    assert Reference("RayJob", "demo-data-1") in outcome.delete
    assert world.condition("Failed")["reason"] == "DeadlineExceeded"
    outcome = step(world)
    assert outcome.create == ()
    assert world.condition("Failed")["reason"] == "DeadlineExceeded"


def test_the_deadline_during_planning() -> None:
    world = Simulation(run_object(activeDeadlineSeconds=100))
    step(world)
    world.now += 101
    step(world)
    step(world)
    assert world.condition("Failed")["reason"] == "DeadlineExceeded"
    assert world.condition("Complete")["status"] == "False"


def test_time_to_live() -> None:
    world = Simulation(run_object(ONE, ttlSecondsAfterFinished=500))
    while (world.status.get("phase")) != "Succeeded":
        step(world)
        for one in world.of("Job"):
            if "status" not in one:
                world.plan(one)
        for one in world.of("RayJob"):
            world.move(one, "succeed")
    outcome = step(world)
    assert outcome.requeue is not None
    assert outcome.requeue <= 500
    world.now += outcome.requeue
    assert step(world).delete_run


def test_a_run_that_serves_does_not_expire() -> None:
    world = serving()
    world.edit(ttlSecondsAfterFinished=0)
    world.settle()
    assert not step(world).delete_run


def test_nothing_is_served_behind_a_gate_that_did_not_pass() -> None:
    world = Simulation()
    world.bad_gates.add(world._fingerprints()["check"])
    world.settle()
    assert not world.of("RayService")
    assert world.status["gate"] == "Failed"
    assert world.condition("GatePassed")["status"] == "False"
    assert world.condition("Failed")["reason"] == "GateFailed"
    assert world.stage("live")["phase"] == "Blocked"


def test_an_update_that_does_not_get_healthy_is_taken_back() -> None:
    world = serving()
    before = copy.deepcopy(world.of("RayService")[0]["spec"])
    update(world)
    assert world.stage("live")["reason"] == "Deploying"
    assert world.condition("Ready")["status"] == "True"
    world.serve(world.of("RayService")[0], healthy=False)
    outcome = step(world)
    assert any(isinstance(one, Restored) for one in outcome.create)
    assert world.of("RayService")[0]["spec"] == before
    world.serve(world.of("RayService")[0])
    step(world)
    assert world.stage("live")["reason"] == "RolledBack"
    assert "no such model" in world.stage("live")["message"]
    assert world.condition("Failed")["reason"] == "StageFailed"
    assert world.condition("Ready")["status"] == "True"
    assert step(world).create == ()


def test_the_old_version_does_not_count_as_the_new_one() -> None:
    world = serving()
    update(world)
    service = world.of("RayService")[0]
    service["status"]["observedGeneration"] = service["metadata"]["generation"]  # before the second cluster is there
    world.put(service)
    step(world)
    assert world.stage("live")["reason"] == "Deploying"


def test_an_update_gives_up_after_a_while() -> None:
    world = serving()
    update(world)
    world.now += PATIENCE.healthy
    step(world)
    assert world.stage("live")["reason"] == "RolledBack"


def test_replicas_change_the_endpoint_and_nothing_else() -> None:
    world = serving()
    stages = copy.deepcopy(STAGES)
    stages[4]["serve"]["replicas"] = 3  # type: ignore[index]
    world.edit(stages=stages)
    generation = world.of("RayService")[0]["metadata"]["generation"]
    world.settle()
    assert world.of("RayService")[0]["metadata"]["generation"] == generation + 1
    assert world.stage("sft")["attempt"] == 1


def test_a_release_is_told_and_its_rules_change_nothing_that_runs() -> None:
    world = serving()
    assert "message" not in world.stage("live")
    told = {"attempt": 1, "fingerprint": world.stage("live")["fingerprint"], "message": "canary: b serves 5 %"}
    world._report("stage-live.json", told)
    world.settle()
    assert world.stage("live")["message"] == "canary: b serves 5 %"
    world._report("stage-live.json", told | {"fingerprint": "of another"})
    world.settle()
    assert "message" not in world.stage("live")
    stages = copy.deepcopy(STAGES)
    stages[4]["serve"]["release"] = {"steps": [50]}  # type: ignore[index]
    attempt = world.stage("live")["attempt"]
    world.edit(stages=stages)
    world.settle()
    assert world.stage("live")["attempt"] == attempt


def test_a_child_deleted_by_hand_comes_back_once_its_pods_are_gone() -> None:
    world = running()
    world.delete_by_user(("RayJob", "demo-data-1"))
    step(world)
    assert world.stage("data")["reason"] == "EarlierAttemptEnding"
    world.end_pods()
    outcome = step(world)
    assert [one.attempt for one in outcome.create if isinstance(one, StageJob)] == [1]


def test_an_endpoint_deleted_by_hand_comes_back() -> None:
    world = serving()
    world.delete_by_user(("RayService", "demo-live"))
    outcome = step(world)
    assert any(isinstance(one, Endpoint) for one in outcome.create)
    world.settle()
    assert world.condition("Ready")["status"] == "True"


def test_runs_of_another_controller_and_deleted_runs_are_left_alone() -> None:
    for change in ({"managedBy": "kueue.x-k8s.io/multikueue"}, {}):
        world = Simulation(run_object(**change))
        if not change:
            world.run["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        outcome = step(world)
        assert outcome.status is None
        assert outcome.create == ()


def test_events_are_told_once() -> None:
    world = running()
    outcome = step(world)
    assert notes(project(world.run).status, outcome.status) == []  # type: ignore[union-attr]


def test_old_plans_are_removed_from_the_config_map() -> None:
    world = serving()
    world.edit(stages=[*copy.deepcopy(STAGES), {"name": "more", "inputs": {"model": "base"}, "sft": {"maxSteps": 4}}])
    world.settle()
    keys = set(world.store["ConfigMap", "demo-state"]["data"])
    assert {"run-2.json", "plan-2.json"} <= keys
    assert "run-1.json" in keys  # the endpoint still follows it
    world.edit(stages=copy.deepcopy(STAGES[:3]))
    world.settle()
    keys = set(world.store["ConfigMap", "demo-state"]["data"])
    assert keys == {"run-3.json", "plan-3.json", "stage-data.json", "stage-sft.json", "stage-other.json"}
