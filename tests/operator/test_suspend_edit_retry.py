"""What people do to a run: suspend, resume, edit, retry."""

from __future__ import annotations

import threading

import pytest

from plumbline.api.labels import RETRY
from support.fake_kuberay import behaviours as b
from support.fake_kuberay.plan_jobs import plan_hangs
from support.project import CHECK, DATA, LIVE, SFT, Project, changed, pipeline
from support.rest import JOBS, PODS, RAY_JOBS, RAY_SERVICES

pytestmark = pytest.mark.apiserver


def _suspend(project: Project, value: bool = True) -> None:
    project.patch({"spec": {"suspend": value}})


def _nothing_runs(project: Project) -> bool:
    jobs = [one for one in project.on.list(RAY_JOBS, project.name) if "endTime" not in one.get("status", {})]
    pods = [p for p in project.on.list(PODS, project.name) if p["status"]["phase"] not in ("Succeeded", "Failed")]
    return not jobs and not pods


SUSPENDED_AT = {
    "running": [b.succeed(until=threading.Event())],
    "waiting for nodes": [b.unschedulable()],
    "waiting for a retry": [b.crash(1)] * 4,  # the wait doubles: the fourth, of 8 s, leaves a busy machine time to suspend
    "unreachable": [b.unreachable(back=threading.Event())],
}


@pytest.mark.parametrize("at", SUSPENDED_AT)
def test_suspend_and_resume(project: Project, at: str) -> None:
    behaviours = SUSPENDED_AT[at]
    project.fake.script(project.name, "sft", *behaviours)
    project.apply(pipeline(DATA, SFT, backoffLimit=4))
    if at == "running":
        project.wait_stage("sft", "Running")
    elif at == "waiting for nodes":
        project.wait_stage("sft", reason="Unschedulable")
    elif at == "waiting for a retry":
        project.wait(lambda: (one := project.stage("sft")).get("failures") == len(behaviours) and "retryTime" in one)
    else:
        project.fake.wait(project.name, "sft", "Running")
    _suspend(project)
    project.wait_condition("Suspended")
    assert _nothing_runs(project), "Suspended is said only when nothing holds resources any more"
    assert project.status()["phase"] == "Suspended"
    assert project.stage("data")["phase"] == "Succeeded"
    _suspend(project, False)
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1]
    assert project.fake.attempts(project.name, "sft") == [*range(1, len(behaviours) + 2)]


def test_suspended_while_planning(project: Project) -> None:
    project.fake.script_plan(project.name, plan_hangs())
    project.apply(pipeline(DATA))
    project.fake.wait(project.name, "plan", "Running")
    _suspend(project)
    project.wait_condition("Suspended")
    project.wait(lambda: not project.on.list(JOBS, project.name))
    _suspend(project, False)
    project.wait_condition("Complete")


def test_suspended_from_the_start(project: Project) -> None:
    project.apply(pipeline(DATA, suspend=True))
    project.wait_condition("Suspended")
    assert project.on.list(RAY_JOBS, project.name) == []
    _suspend(project, False)
    project.wait_condition("Complete")


def test_suspended_and_resumed_at_once(project: Project) -> None:
    """The resumed attempt waits for the Pods of the one before."""
    project.fake.linger(project.name, 1.5)
    project.fake.script(project.name, "data", b.succeed(until=threading.Event()))
    project.apply(pipeline(DATA))
    project.wait_stage("data", "Running")
    _suspend(project)
    project.wait(lambda: project.condition("Suspended").get("reason") in ("Suspending", "Suspended"))
    _suspend(project, False)
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1, 2]


def test_suspension_leaves_the_endpoint(project: Project) -> None:
    project.fake.script(project.name, "data", b.succeed(until=threading.Event()))
    project.apply(pipeline(changed(LIVE, ungated=True), DATA))
    project.wait_stage("live", reason="Serving")
    project.wait_stage("data", "Running")
    _suspend(project)
    project.wait_condition("Suspended")
    assert project.on.get(RAY_SERVICES, project.name, "run-live") is not None
    assert project.status()["endpoint"]


def test_an_edit_redoes_only_what_changed(project: Project) -> None:
    project.apply(pipeline(DATA, SFT, CHECK))
    project.wait_condition("Complete")
    project.apply(pipeline(DATA, changed(SFT, maxSteps=11), CHECK))
    project.wait_condition("Complete")
    assert [project.fake.attempts(project.name, stage) for stage in ("data", "sft", "check")] == [[1], [1, 2], [1, 2]]
    project.apply(pipeline(DATA, SFT, CHECK))
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "sft") == [1, 2], "the first artifact is still there"
    assert [one["phase"] for one in project.status()["stages"]] == ["Succeeded", "Cached", "Cached"]
    assert project.status()["observedGeneration"] == 3


def test_an_edit_under_way_replaces_the_attempt(project: Project) -> None:
    project.fake.script(project.name, "sft", b.succeed(until=threading.Event()))
    project.apply(pipeline(DATA, SFT, CHECK))
    project.wait_stage("sft", "Running")
    project.apply(pipeline(DATA, changed(SFT, maxSteps=11), CHECK))
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1]
    assert project.fake.attempts(project.name, "sft") == [1, 2]
    assert project.fake.attempts(project.name, "check") == [1]


def test_an_edit_that_does_not_matter_leaves_the_attempt_alone(project: Project) -> None:
    go = threading.Event()
    project.fake.script(project.name, "sft", b.succeed(until=go))
    project.apply(pipeline(DATA, SFT))
    project.wait_stage("sft", "Running")
    project.apply(pipeline(DATA, SFT, backoffLimit=5))
    project.wait(lambda: project.status().get("plan", {}).get("generation") == 2 and project.status()["plan"].get("done"))
    go.set()
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "sft") == [1]


def test_an_edit_gives_a_failed_run_another_chance(project: Project) -> None:
    project.fake.script(project.name, "sft", b.crash(2))
    project.apply(pipeline(DATA, SFT))
    project.wait_condition("Failed")
    project.apply(pipeline(DATA, changed(SFT, maxSteps=11)))
    project.wait_condition("Complete")
    assert project.condition("Failed")["status"] == "False"
    assert project.fake.attempts(project.name, "data") == [1]


def test_external_data_that_changed(project: Project) -> None:
    project.apply(pipeline(DATA, SFT))
    project.wait_condition("Complete")
    project.fake.identities["builtin://skills"] = "another etag"
    try:
        project.apply(pipeline(DATA, SFT, backoffLimit=4))
        project.wait_condition("Complete")
    finally:
        del project.fake.identities["builtin://skills"]
    assert project.fake.attempts(project.name, "sft") == [1, 2]


def test_a_stage_that_is_taken_out(project: Project) -> None:
    project.fake.script(project.name, "sft", b.succeed(until=threading.Event()))
    project.apply(pipeline(DATA, SFT))
    project.wait_stage("sft", "Running")
    project.apply(pipeline(DATA))
    project.wait_condition("Complete")
    project.wait(lambda: project.on.get(RAY_JOBS, project.name, "run-sft-1") is None)
    assert [one["name"] for one in project.status()["stages"]] == ["data"]


def test_retry_works_once(project: Project) -> None:
    project.fake.script(project.name, "sft", b.crash(2), b.crash(2))
    project.apply(pipeline(DATA, SFT))
    project.wait_condition("Failed")
    retry = f"{RETRY}sft"
    project.patch({"metadata": {"annotations": {retry: "1"}}})
    project.wait(lambda: project.stage("sft")["attempt"] == 2 and project.stage("sft")["phase"] == "Failed")
    project.wait(lambda: project.condition("Failed")["status"] == "True")
    assert project.fake.attempts(project.name, "sft") == [1, 2], "the annotation is inert now"
    project.patch({"metadata": {"annotations": {retry: "2"}}})
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1]
    assert project.fake.attempts(project.name, "sft") == [1, 2, 3]
