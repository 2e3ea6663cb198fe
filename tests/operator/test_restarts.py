"""The operator and the API server end at every point of a run: it comes to the same end, and nothing is done twice."""

from __future__ import annotations

import threading

import pytest

from support.api_proxy import Request
from support.fake_kuberay import behaviours as b
from support.fake_kuberay.ray_jobs import Behaviour, RayJob
from support.patience import wait_for
from support.project import CHECK, DATA, LIVE, SFT, Project, changed, pipeline

pytestmark = pytest.mark.apiserver

POINTS = ("planning", "new", "initializing", "running", "reported", "ended", "failed", "deploying")


def _stops_at(point: str, go: threading.Event) -> Behaviour:
    """A stage that stands still at a point until it may go on."""

    async def play(job: RayJob) -> None:
        if point == "new":
            await b.happens(go)
        await job.begin()
        if point == "initializing":
            await b.happens(go)
        await job.ready()
        await job.submit()
        if point == "running":
            await b.happens(go)
        plan = await job.plan()
        assert plan is not None
        await job.report(result=job.artifact(plan))
        if point == "reported":
            await b.happens(go)
        await job.end("Complete", "SUCCEEDED")

    return play


@pytest.mark.parametrize("end", ["operator killed", "API server restarted"])
def test_at_every_state_of_a_child(project: Project, end: str) -> None:
    """One run stands at each point when the lights go out."""
    from support.fake_kuberay.plan_jobs import PlanJob, planned
    from support.fake_kuberay.ray_services import healthy

    go = threading.Event()

    async def slow_plan(job: PlanJob) -> None:
        if job.run == "planning":
            await b.happens(go)
        await planned()(job)

    project.fake.script_plan(project.name, *[slow_plan] * len(POINTS))
    for i, point in enumerate(POINTS):
        stage = f"s-{point}"
        if point == "failed":
            project.fake.script(project.name, stage, b.crash(1))
        elif point != "ended":
            project.fake.script(project.name, stage, _stops_at(point, go))
        project.fake.script_service(project.name, stage, healthy(until=go))
        if point == "deploying":
            stages = [changed({**LIVE, "name": stage}, ungated=True)]
        else:  # each makes something of its own
            stages = [{**DATA, "name": f"d-{point}"}, changed({**SFT, "name": stage}, seed=i)]
        project.apply(pipeline(*stages), name=point)
    for point in POINTS:
        if point == "planning":
            project.fake.wait(project.name, "plan", "Created")
        elif point == "deploying":
            project.fake.wait(project.name, f"s-{point}", "DEPLOYING")
        else:
            states = {"new": "Created", "initializing": "Initializing", "ended": "Complete", "failed": "Failed"}
            project.fake.wait(project.name, f"s-{point}", states.get(point, "Running"))
    go.set()
    if end == "API server restarted":
        project.on.restart_server()
    else:
        project.on.operator.kill()
        project.on.take_lease()
        project.on.operator.start()
    for point in POINTS:
        project.wait_condition("Complete", name=point)
        stage = project.stage(f"s-{point}", point)
        if point != "deploying":
            expected = [1, 2] if point == "failed" else [1]
            assert project.fake.attempts(project.name, f"s-{point}") == expected
            assert stage["attempt"] == len(expected)


@pytest.mark.timeout(600)
def test_killed_after_every_write(project: Project) -> None:
    """The operator ends with the very answer to a write: each first write of a kind to an object, and each status."""
    operator, proxy = project.on.operator, project.on.proxy
    seen: set[tuple[str, str, str, int]] = set()
    statuses = 0
    dead = threading.Event()

    def strike(request: Request) -> bool:
        nonlocal statuses
        if dead.is_set():
            return True
        if not request.writes or request.namespace != project.name or request.resource == "events":
            return False
        statuses += request.resource == "alignmentruns/status"
        key = (request.verb, request.resource, request.name, statuses if request.resource.endswith("/status") else 0)
        if request.code >= 300 or key in seen:
            return False
        seen.add(key)
        dead.set()
        return True

    project.fake.script(project.name, "sft", b.crash(1))
    proxy.after = strike
    try:
        project.apply(pipeline(DATA, SFT))

        def complete() -> bool:
            if dead.is_set():
                operator.kill()
                dead.clear()
                project.on.take_lease()
                operator.start(wait=False)
            return project.condition("Complete").get("status") == "True"

        wait_for(complete, 400, lambda: (seen, project.status()))
    finally:
        proxy.after = lambda request: False
        if dead.is_set():
            operator.kill()
            project.on.take_lease()
            operator.start()
    assert len(seen) > 10
    assert [project.fake.attempts(project.name, stage) for stage in ("plan", "data", "sft")] == [[1], [1], [1, 2]]


def test_answers_that_get_lost(project: Project) -> None:
    """Every third write is done, and its answer never arrives."""
    count = 0

    def swallow(request: Request) -> bool:
        nonlocal count
        if not request.writes or request.namespace != project.name:
            return False
        count += 1
        return count % 3 == 0

    project.on.proxy.after = swallow
    try:
        project.fake.script(project.name, "sft", b.crash(1))
        project.apply(pipeline(DATA, SFT, CHECK, LIVE))
        project.wait_condition("Complete")
    finally:
        project.on.proxy.after = lambda request: False
    assert [project.fake.attempts(project.name, stage) for stage in ("data", "sft", "check")] == [[1], [1, 2], [1]]


def test_deleted_while_the_operator_is_away(project: Project) -> None:
    project.fake.script(project.name, "data", b.succeed(until=threading.Event()))
    project.apply(pipeline(DATA))
    project.wait_stage("data", "Running")
    project.on.operator.stop()
    from support.rest import RAY_JOBS, RUNS

    project.on.delete(RUNS, project.name, "run")
    project.fake.wait(project.name, "data", "Deleted")
    project.apply(pipeline(DATA))
    project.on.operator.start()
    project.wait_condition("Complete")
    found = project.on.list(RAY_JOBS, project.name)
    assert len(found) == 1, "a new run of the same name is another run"
