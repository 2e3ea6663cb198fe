"""What goes wrong with a stage: it is told in words, told apart, tried again with growing delay, or not at all."""

from __future__ import annotations

import threading

import pytest

from plumbline_operator.observed import unix
from support.fake_kuberay import behaviours as b
from support.fake_kuberay.plan_jobs import plan_fails, plan_hangs
from support.fake_kuberay.ray_jobs import Behaviour
from support.project import DATA, SFT, Project, pipeline
from support.rest import JOBS, RAY_JOBS

pytestmark = pytest.mark.apiserver

RETRIED = [
    (b.crash(1), "ProgramFailed", "RuntimeError: loss is nan"),
    (b.crash(1, reported=False), "ProgramFailed", "RuntimeError: loss is nan"),
    (b.crash(137, "Killed", reported=False), "OutOfMemory", "memory"),
    (b.out_of_memory(), "OutOfMemory", "OOMKilled"),
    (b.stopped(), "Stopped", "stopped the Ray job"),
    (b.submission_failed(), "SubmissionFailed", "dashboard answered 500"),
    (b.deadline_exceeded(), "ClusterFailed", "activeDeadlineSeconds"),
    (b.unreachable(gives_up=True), "DashboardUnreachable", "timed out after 300s"),
    (b.unreachable(), "DashboardUnreachable", "has not been reachable"),
    (b.node_lost(), "PodLost", "NoExecute taint"),
]
PERMANENT = [
    (b.crash(2, "curate.sources[0].uri: no such file"), "InvalidInput", "no such file"),
    (b.crash(2, "no such file", reported=False), "InvalidInput", "no such file"),
    (b.validation_failed("spec.x is wrong"), "ChildRejected", "spec.x is wrong"),
]


def _ids(cases: list[tuple[Behaviour, str, str]]) -> list[str]:
    return [f"{reason} {i}" for i, (_, reason, _) in enumerate(cases)]


@pytest.mark.parametrize(("behaviour", "reason", "words"), RETRIED, ids=_ids(RETRIED))
def test_tried_again(project: Project, behaviour: Behaviour, reason: str, words: str) -> None:
    project.fake.script(project.name, "data", behaviour)
    project.apply(pipeline(DATA))
    stage = project.saw_stage("data", lambda one: "retryTime" in one)
    assert (stage["phase"], stage["reason"]) == ("Waiting", reason)
    assert words in stage["message"]
    assert "attempt 2" in stage["message"]
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1, 2]
    assert project.stage("data")["attempt"] == 2
    assert any(type == "Warning" and seen == reason and words in told for type, seen, told in project.events())


@pytest.mark.parametrize(("behaviour", "reason", "words"), PERMANENT, ids=_ids(PERMANENT))
def test_not_tried_again(project: Project, behaviour: Behaviour, reason: str, words: str) -> None:
    project.fake.script(project.name, "data", behaviour)
    project.apply(pipeline(DATA, SFT))
    failed = project.wait_condition("Failed", "StageFailed")
    assert words in failed["message"]
    assert (project.stage("data")["phase"], project.stage("data")["reason"]) == ("Failed", reason)
    assert (project.stage("sft")["phase"], project.stage("sft")["reason"]) == ("Blocked", "UpstreamFailed")
    assert project.fake.attempts(project.name, "data") == [1]


def test_delays_grow_and_end(project: Project) -> None:
    project.fake.script(project.name, "data", b.crash(1), b.crash(1), b.crash(1))
    project.apply(pipeline(DATA, backoffLimit=2))
    project.wait_condition("Failed", "StageFailed")
    assert project.fake.attempts(project.name, "data") == [1, 2, 3]
    made = [project.on.get(RAY_JOBS, project.name, f"run-data-{i}") for i in (1, 2, 3)]
    times = [unix(one["metadata"]["creationTimestamp"]) or 0.0 for one in made if one]
    assert times[2] - times[1] >= 1
    assert project.stage("data")["failures"] == 3


WAITING = [
    (b.image_pull, "ImagePull", b.NO_IMAGE),
    (b.unschedulable, "Unschedulable", b.NO_GPU),
    (b.quota_exceeded, "QuotaExceeded", "exceeded quota: gpus"),
]


@pytest.mark.parametrize(("behaviour", "reason", "words"), WAITING, ids=[reason for _, reason, _ in WAITING])
def test_why_a_stage_waits(project: Project, behaviour: object, reason: str, words: str) -> None:
    resolved = threading.Event()
    project.fake.script(project.name, "data", behaviour(until=resolved))  # type: ignore[operator]
    project.apply(pipeline(DATA))
    stage = project.wait_stage("data", "Waiting", reason)
    assert words in stage["message"]
    project.wait(lambda: any(seen == reason for _, seen, _ in project.events()))
    resolved.set()
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1]


def test_a_lost_worker_does_not_end_the_stage(project: Project) -> None:
    back = threading.Event()
    project.fake.script(project.name, "sft", b.worker_lost(back))
    project.apply(pipeline(DATA, SFT))
    project.fake.wait(project.name, "sft", "Running")
    project.wait_stage("sft", "Running")
    back.set()
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "sft") == [1]


def test_a_dashboard_that_comes_back(project: Project) -> None:
    back = threading.Event()
    project.fake.script(project.name, "data", b.unreachable(back=back))
    project.apply(pipeline(DATA))
    project.fake.wait(project.name, "data", "Running")
    back.set()
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1]


def test_a_late_result(project: Project) -> None:
    project.fake.script(project.name, "data", b.succeed(late=1.0))
    project.apply(pipeline(DATA))
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1]


@pytest.mark.parametrize("left", ["missing", "rubbish"])
def test_a_lost_result_is_found_by_planning(project: Project, left: str) -> None:
    project.fake.script(project.name, "data", b.succeed(result=left))  # type: ignore[arg-type]
    project.apply(pipeline(DATA, SFT))
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1], "the artifact is there: nothing is done twice"
    assert project.stage("data")["artifact"]


def test_attempts_do_not_overlap(project: Project) -> None:
    """KubeRay does not wait for old Pods; we do. The fixture checks that nothing overlapped."""
    project.fake.linger(project.name, 15.0)  # shorter than the operator waits for the end of a Pod
    project.fake.script(project.name, "data", b.unreachable())
    project.apply(pipeline(DATA))
    project.saw_stage("data", lambda one: one["reason"] == "EarlierAttemptEnding")
    project.fake.linger(project.name, 0.0)
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1, 2]


def test_pods_on_a_lost_node_do_not_hold_the_run_up(project: Project) -> None:
    project.fake.linger(project.name, None)
    project.fake.script(project.name, "data", b.unreachable())
    project.apply(pipeline(DATA))
    project.saw_stage("data", lambda one: one["reason"] == "EarlierAttemptEnding")
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1, 2]


def test_other_branches_go_on(project: Project) -> None:
    project.fake.script(project.name, "bad", b.crash(2))
    bad = {"name": "bad", "inputs": {"model": "base"}, "sft": {"maxSteps": 3}}
    project.apply(pipeline(DATA, bad, {**SFT, "inputs": {"model": "base"}}))
    project.wait_condition("Failed", "StageFailed")
    assert project.stage("sft")["phase"] == "Succeeded"


def test_planning_fails_for_good(project: Project) -> None:
    words = "spec.stages[0].curate.sources[0].uri: s3://bucket/x does not exist"
    project.fake.script_plan(project.name, plan_fails(words, permanent=True))
    project.apply(pipeline(DATA))
    assert words in project.wait_condition("Failed", "PlanFailed")["message"]
    assert project.fake.attempts(project.name, "plan") == [1]


@pytest.mark.parametrize("reported", [True, False])
def test_planning_is_tried_again(project: Project, reported: bool) -> None:
    words = "the hub does not answer"
    project.fake.script_plan(project.name, plan_fails(words, permanent=False, reported=reported))
    project.apply(pipeline(DATA))

    def said() -> bool:  # for a second only
        plans = [one.get("plan") or {} for one in list(project.fake.statuses[project.name, "run"])]
        return any(one.get("failures") == 1 and words in one.get("message", "") for one in plans)

    project.wait(said)
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "plan") == [1, 2]


@pytest.mark.parametrize("where", ["plan", "stage"])
def test_the_deadline_of_the_run(project: Project, where: str) -> None:
    if where == "plan":
        project.fake.script_plan(project.name, plan_hangs())
    project.fake.script(project.name, "data", b.succeed(until=threading.Event()))
    project.apply(pipeline(DATA, SFT, activeDeadlineSeconds=3))
    project.wait_condition("Failed", "DeadlineExceeded")
    project.wait(lambda: not project.on.list(RAY_JOBS, project.name))
    if where == "plan":
        project.wait(lambda: not project.on.list(JOBS, project.name))
