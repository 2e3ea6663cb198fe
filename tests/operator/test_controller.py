"""What the controller does with an outcome, on the real API server; what to do is decided by each test."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from plumbline.api import labels
from plumbline.api.run import RunSpec
from plumbline.api.status import RunStatus, StageProgress, StageStatus
from plumbline_operator import controller as controller_module
from plumbline_operator import names
from plumbline_operator.audit import Audit
from plumbline_operator.builders import build as real_build
from plumbline_operator.cache import Cache
from plumbline_operator.children import child
from plumbline_operator.cluster import ApiError, Cluster
from plumbline_operator.controller import Controller, significant
from plumbline_operator.desired import Access, Desired, Endpoint, PlanJob, Reference, StageJob
from plumbline_operator.draft import Outcome
from plumbline_operator.kinds import BUILT_IN, RAY, RUN
from plumbline_operator.observed import Meta, Observed, project
from plumbline_operator.reconcile import parse
from plumbline_operator.references import References
from plumbline_operator.settings import Patience, Settings, StagePods

pytestmark = pytest.mark.apiserver
Object = dict[str, Any]
SETTINGS = Settings(stage_pods=StagePods(claim="workspace"), progress_interval=3600.0)
SPEC = {
    "model": {"base": "builtin://tiny"},
    "workspace": {"uri": "s3://bucket/runs"},
    "stages": [
        {"name": "data", "curate": {"sources": [{"uri": "builtin://skills"}]}},
        {"name": "live", "serve": {"ungated": True}},
    ],
}
PLAN, STAGE = PlanJob(1, 1), StageJob("data", 1, "f" * 16, 1)


class World:
    """One run, a controller, and what the test has it decide."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace, self.key = cluster, namespace, (namespace, "run")
        self.cache = Cache()
        self.outcome = Outcome()
        self.seen: list[Observed] = []
        self.pods = SETTINGS.stage_pods
        self.requests: list[tuple[str, str]] = []
        self.controller = self.new_controller()
        whole = cluster._request

        async def recorded(verb: str, what: str, *rest: Any) -> Object:
            self.requests.append((verb, what))
            return await whole(verb, what, *rest)

        cluster._request = recorded  # type: ignore[method-assign]

    def new_controller(self, served: tuple[str, ...] = ("RayJob", "RayService")) -> Controller:
        def decide(observed: Observed, patience: Patience, now: float) -> Outcome:
            self.seen.append(observed)
            return self.outcome

        def build(desired: Desired, run: Meta, spec: RunSpec, _: StagePods) -> list[Object]:
            return real_build(desired, run, spec, self.pods)

        return Controller(self.cluster, self.cache, SETTINGS, build, "me", served, decide)

    async def make_run(self, spec: Object = SPEC) -> None:
        value = {"apiVersion": "plumbline.dev/v1alpha1", "kind": "AlignmentRun", "spec": spec}
        made = await self.cluster.create(value | {"metadata": {"name": "run", "namespace": self.namespace}})
        self.cache.put(project(made))

    @property
    def uid(self) -> str:
        run = self.cache.run(self.key)
        assert run is not None
        return run.meta.uid

    async def reconcile(self, *create: Desired, status: RunStatus | None = None, **more: Any) -> list[tuple[str, str]]:
        """One reconcile with this outcome; the requests that it made."""
        self.outcome = Outcome(status or RunStatus(phase="Running"), create, **more)
        self.requests.clear()
        await self.controller.reconcile_run(self.key)
        return list(self.requests)

    async def get(self, kind: str, name: str) -> Object:
        return await self.cluster.get(kind, self.namespace, name)

    def writes(self, requests: list[tuple[str, str]] | None = None) -> list[tuple[str, str]]:
        return [one for one in (requests or self.requests) if one[0] not in ("get", "list")]

    def unsee(self, kind: str, name: str) -> None:
        """As if no watch had told of it yet."""
        view = self.cache.get(kind, self.namespace, name)
        assert view is not None
        self.cache.drop(kind, self.namespace, name, view.meta.uid)
        self.cache._gone.clear()

    async def report(self, **data: str) -> Object:
        """As a program does in its own name."""
        path = f"/api/v1/namespaces/{self.namespace}/configmaps/{STATE}"
        body = {"data": {f"{key.replace('_', '-')}.json": text for key, text in data.items()}}
        content = "application/merge-patch+json"
        return await self.cluster._request("patch", "configmaps", path, content, body, {"fieldManager": "program"})


@pytest.fixture
def in_world(bare_namespace: str) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    def run(test: Callable[[World], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with Cluster() as cluster:
                await asyncio.wait_for(test(World(cluster, bare_namespace)), 120)

        asyncio.run(whole())

    return run


InWorld = Callable[[Callable[[World], Awaitable[None]]], None]
JOB = names.plan_job("run", 1, 1)
STATE = names.state("run")


def foreign(kind: str, name: str, namespace: str, **body: Any) -> Object:
    api = {"Job": "batch/v1", "RayJob": "ray.io/v1", "RayService": "ray.io/v1", "ConfigMap": "v1", "ServiceAccount": "v1"}
    return {"apiVersion": api[kind], "kind": kind, "metadata": {"name": name, "namespace": namespace}, **body}


def test_status_comes_before_children_and_everything_once(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        made = await world.reconcile(Access(), PLAN)
        assert made == [
            ("patch", "alignmentruns/status"),
            ("create", "configmaps"),
            ("create", "serviceaccounts"),
            ("create", "roles"),
            ("create", "rolebindings"),
            ("create", "jobs"),
        ]
        observed = world.cache.observed(world.key)
        assert observed is not None
        assert [job.meta.name for job in observed.plan_jobs] == [JOB]  # before any watch told of it
        assert observed.state is not None
        assert await world.reconcile() == []
        assert await world.reconcile(Access(), STAGE) == [("list", "pods"), ("create", "rayjobs")]

    in_world(test)


def test_a_child_of_an_earlier_try_is_adopted_and_its_labels_put_back(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        await world.reconcile(Access(), PLAN)
        first = await world.get("Job", JOB)
        world.unsee("Job", JOB)
        assert ("patch", "jobs") not in await world.reconcile(Access(), PLAN)
        observed = world.cache.observed(world.key)
        assert observed is not None
        assert [job.meta.uid for job in observed.plan_jobs] == [first["metadata"]["uid"]]

        nothing = {"metadata": {"labels": {labels.RUN_UID: None}}}
        await world.cluster.merge("Job", world.namespace, JOB, nothing)
        world.unsee("Job", JOB)
        assert ("patch", "jobs") in await world.reconcile(Access(), PLAN)
        assert (await world.get("Job", JOB))["metadata"]["labels"][labels.RUN_UID] == world.uid

    in_world(test)


def test_a_taken_name_is_told_and_the_object_left_alone(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        somebody = await world.cluster.create(foreign("ConfigMap", "somebody", world.namespace))
        uid = somebody["metadata"]["uid"]
        owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "somebody", "uid": uid, "controller": True}
        other = foreign("Job", JOB, world.namespace, spec={})
        other["metadata"]["ownerReferences"] = [owner]
        before = await world.cluster.create(other)
        await world.make_run()
        await world.reconcile(Access(), PLAN)
        await world.reconcile(Access(), PLAN)
        fault = world.seen[-1].faults["Job", JOB]
        assert fault.reason == "NameTaken"
        assert "ConfigMap 'somebody'" in fault.message
        assert (await world.get("Job", JOB))["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]

        await world.cluster.delete("Job", world.namespace, JOB, before["metadata"]["uid"])
        await let_faults_pass(world)
        await world.reconcile(Access(), PLAN)
        await world.reconcile()
        assert world.seen[-1].faults == {}
        assert (await world.get("Job", JOB))["metadata"]["ownerReferences"][0]["uid"] == world.uid

    in_world(test)


def test_a_run_of_a_used_name_waits_for_what_the_first_one_left(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        await world.reconcile(Access(), PLAN)
        first = world.uid
        await world.cluster.merge("Job", world.namespace, JOB, {"metadata": {"finalizers": ["test.example/hold"]}})
        await world.cluster.delete("AlignmentRun", world.namespace, "run", first)
        await world.make_run()
        assert world.uid != first
        await world.reconcile(Access(), PLAN)
        await world.reconcile(Access(), PLAN)
        fault = world.seen[-1].faults["Job", JOB]
        assert fault.reason == "NameTaken"
        assert "of an earlier run of this name is not deleted yet" in fault.message

    in_world(test)


@pytest.mark.parametrize("desired", [Access(), PLAN])
def test_what_is_deleted_while_it_is_asked_for_is_made_anew(in_world: InWorld, desired: Desired) -> None:
    kind, name = child("run", desired)

    async def test(world: World) -> None:
        await world.cluster.create(foreign(kind, name, world.namespace, spec={}))
        await world.make_run()
        get = world.cluster.get

        async def deleted_first(*where: str) -> Object:
            world.cluster.get = get  # type: ignore[method-assign]
            theirs = await get(kind, world.namespace, name)
            await world.cluster.delete(kind, world.namespace, name, theirs["metadata"]["uid"])
            return await get(*where)

        world.cluster.get = deleted_first  # type: ignore[method-assign]
        await world.reconcile(desired)
        assert (await get(kind, world.namespace, name))["metadata"]["ownerReferences"][0]["uid"] == world.uid

    in_world(test)


async def let_faults_pass(world: World) -> None:
    """As if their delay were over."""
    for troubles in world.controller._troubles.values():
        for trouble in troubles.values():
            trouble.again = 0.0


@pytest.mark.parametrize("kind", ["ConfigMap", "ServiceAccount"])
def test_access_under_a_taken_name_holds_the_launch_back(in_world: InWorld, kind: str) -> None:
    async def test(world: World) -> None:
        name = STATE if kind == "ConfigMap" else names.stage_account("run")
        before = await world.cluster.create(foreign(kind, name, world.namespace))
        await world.make_run()
        requests = await world.reconcile(Access(), STAGE)
        assert ("create", "rayjobs") not in requests
        await world.reconcile(Access(), STAGE)
        assert world.seen[-1].faults["RayJob", names.ray_job("run", "data", 1)].reason == "NameTaken"
        after = await world.get(kind, name)
        assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]

    in_world(test)


def test_a_fault_is_told_at_once_and_tried_again_later(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.cluster.create(foreign("Job", JOB, world.namespace, spec={}))
        await world.make_run()
        await world.reconcile(Access(), PLAN)
        assert await asyncio.wait_for(world.controller.queue.get(), 1) == world.key  # to say it
        world.controller.queue.done(world.key)
        assert ("create", "jobs") not in await world.reconcile(Access(), PLAN)  # not yet
        await let_faults_pass(world)
        assert ("create", "jobs") in await world.reconcile(Access(), PLAN)

    in_world(test)


def test_without_kuberay_nothing_is_asked_for(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        world.controller = world.new_controller(served=())
        assert {what for _, what in await world.reconcile(Access(), STAGE)} <= {
            "alignmentruns/status",
            "configmaps",
            "serviceaccounts",
            "roles",
            "rolebindings",
        }
        await world.reconcile(Access(), STAGE)
        fault = world.seen[-1].faults["RayJob", names.ray_job("run", "data", 1)]
        assert fault.reason == "KubeRayMissing"
        assert "install KubeRay" in fault.message

    in_world(test)


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (404, "the server could not find the requested resource", "KubeRayMissing"),
        (403, 'rayjobs "x" is forbidden: exceeded quota: gpus, requested: 8', "QuotaExceeded"),
        (403, "rayjobs is forbidden: User cannot create", "Forbidden"),
        (422, "spec.entrypoint: Invalid value", "ChildRejected"),
        (500, 'Internal error occurred: failed calling webhook "mrayjob.kb.io": no endpoints available', "ChildRejected"),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(in_world: InWorld, status: int, message: str, reason: str) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        whole = world.cluster._request

        async def refuse(verb: str, what: str, *rest: Any) -> Object:
            if (verb, what) == ("create", "rayjobs"):
                raise ApiError(status, "", message)
            return await whole(verb, what, *rest)

        world.cluster._request = refuse  # type: ignore[method-assign]
        await world.reconcile(Access(), STAGE)
        await world.reconcile(Access(), STAGE)
        fault = world.seen[-1].faults["RayJob", names.ray_job("run", "data", 1)]
        assert fault.reason == reason
        assert message in fault.message or reason == "KubeRayMissing"

    in_world(test)


def test_what_the_run_names_must_be_there(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        spec = SPEC | {"workspace": {"uri": "runs", "persistentVolumeClaim": "disk"}, "queueName": "gpus"}
        await world.make_run(spec)
        await world.reconcile(Access(), PLAN)
        assert world.seen[-1].missing == (("PersistentVolumeClaim", "disk"), ("LocalQueue", "gpus"))
        assert world.seen[-2].missing == ()
        count = len(world.seen)
        await world.reconcile()
        assert len(world.seen) == count + 1  # nothing is launched, so nothing is looked up

    in_world(test)


def test_secrets_with_files_are_looked_up_where_they_may_be(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        settings = dataclasses.replace(SETTINGS, readable_secrets=("our-keys",))
        references = References(world.cluster, settings)
        live = {"name": "live", "serve": {"ungated": True, "admission": {"apiKeys": {"secret": "our-keys"}}}}
        missing = await references.missing(world.namespace, parse("run", SPEC | {"stages": [live]}))
        assert ("Secret", "our-keys") in missing

    in_world(test)


def test_what_many_runs_name_is_asked_for_once(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        now = 0.0
        references = References(world.cluster, SETTINGS, lambda: now)
        workspace = {"uri": "runs", "persistentVolumeClaim": "disk"}
        spec = parse("run", SPEC | {"workspace": workspace})
        for _ in range(5):
            assert await references.missing(world.namespace, spec) == (("PersistentVolumeClaim", "disk"),)
        assert len(world.requests) == 1
        size = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": size}
        await world.cluster.create(claim | {"metadata": {"name": "disk", "namespace": world.namespace}})
        now = SETTINGS.patience.recheck
        assert await references.missing(world.namespace, spec) == ()

    in_world(test)


def test_an_endpoint_is_applied_and_fields_that_go_go(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        world.pods = StagePods(pod_template={"spec": {"nodeSelector": {"old": "x"}, "schedulerName": "mine"}})
        await world.reconcile(Access(), Endpoint("live", "a" * 16, 1, "shape"))
        name = names.ray_service("run", "live")
        made = await world.get("RayService", name)
        head = made["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
        assert (head["nodeSelector"], head["schedulerName"]) == ({"old": "x"}, "mine")
        # Kueue's field is not ours.
        suspended = {"spec": {"rayClusterConfig": {"suspend": False}}}
        path = f"/apis/ray.io/v1/namespaces/{world.namespace}/rayservices/{name}"
        manager = {"fieldManager": "kueue"}
        await world.cluster._request("patch", "rayservices", path, "application/merge-patch+json", suspended, manager)

        assert await world.reconcile(Access(), Endpoint("live", "a" * 16, 1, "shape")) == []
        world.pods = StagePods(pod_template={"spec": {"nodeSelector": {"new": "y"}}})
        requests = await world.reconcile(Access(), Endpoint("live", "b" * 16, 1, "shape"))
        assert requests[-3:] == [("get", "rayservices"), ("patch", "rayservices"), ("patch", "rayservices")]
        after = await world.get("RayService", name)
        head = after["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
        assert head["nodeSelector"] == {"new": "y"}
        assert "schedulerName" not in head
        assert after["spec"]["rayClusterConfig"]["suspend"] is False
        assert after["metadata"]["uid"] == made["metadata"]["uid"]

        world.pods = StagePods()  # from now on one request less
        requests = await world.reconcile(Access(), Endpoint("live", "c" * 16, 1, "shape"))
        assert requests[-2:] == [("get", "rayservices"), ("patch", "rayservices")]

    in_world(test)


def test_applying_never_touches_what_programs_wrote(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        await world.reconcile(Access(), PLAN)
        await world.report(plan_1="{}")
        spoilt = {"metadata": {"annotations": {"plumbline.dev/hash": "of an earlier version"}}}
        written = await world.cluster.merge("ConfigMap", world.namespace, STATE, spoilt)
        world.cache.put(project(written))
        assert ("patch", "configmaps") in await world.reconcile(Access(), STAGE)
        assert (await world.get("ConfigMap", STATE))["data"] == {"plan-1.json": "{}"}

    in_world(test)


def test_a_new_leader_looks_before_it_applies(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        await world.reconcile(Access(), PLAN)
        world.controller = world.new_controller()
        requests = await world.reconcile(Access(), STAGE)
        assert world.writes(requests) == [("create", "rayjobs")]

    in_world(test)


def test_deletion_is_of_our_own_children_and_seen_at_once(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        await world.reconcile(Access(), PLAN)
        held = {"metadata": {"finalizers": ["test.example/hold"]}}
        world.cache.put(project(await world.cluster.merge("Job", world.namespace, JOB, held)))
        other = await world.cluster.create(foreign("Job", "other", world.namespace, spec={}))
        world.cache.put(project(other))
        await world.reconcile(delete=(Reference("Job", JOB), Reference("Job", "other"), Reference("Job", "none")))
        assert world.writes() == [("delete", "jobs")]
        view = world.cache.get("Job", world.namespace, JOB)
        assert view is not None
        assert view.meta.deleted is not None
        assert "deletionTimestamp" in (await world.get("Job", JOB))["metadata"]
        await world.reconcile(delete=(Reference("Job", JOB),))
        assert world.writes() == []

    in_world(test)


def test_pruning_takes_keys_away_and_leaves_others(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        await world.reconcile(Access(), PLAN)
        await world.report(run_1="{}", run_2="{}")
        await world.reconcile(prune=("run-1.json",))
        assert (await world.get("ConfigMap", STATE))["data"] == {"run-2.json": "{}"}
        observed = world.cache.observed(world.key)
        assert observed is not None
        assert observed.state is not None
        assert observed.state.keys == {"run-2.json"}

    in_world(test)


def test_a_stale_view_writes_nothing_and_is_made_fresh(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        await world.cluster.merge("AlignmentRun", world.namespace, "run", {"metadata": {"labels": {"edited": "yes"}}})
        await world.reconcile(Access(), PLAN)
        assert world.writes() == [("patch", "alignmentruns/status")]  # refused; no child follows
        assert "status" not in await world.get("AlignmentRun", "run")
        assert await asyncio.wait_for(world.controller.queue.get(), 1) == world.key
        world.controller.queue.done(world.key)
        await world.reconcile(Access(), PLAN)
        assert (await world.get("AlignmentRun", "run"))["status"] == {"phase": "Running"}

    in_world(test)


def test_a_status_is_replaced_whole(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        await world.reconcile(status=RunStatus(phase="Running", progress="1/2", current_stage="sft"))
        await world.reconcile(status=RunStatus(phase="Succeeded"))
        assert (await world.get("AlignmentRun", "run"))["status"] == {"phase": "Succeeded"}

    in_world(test)


def test_progress_alone_is_written_at_a_bounded_rate(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        stage = StageStatus(name="sft", kind="sft", phase="Running", progress=StageProgress(step=1))
        await world.reconcile(status=RunStatus(phase="Running", stages=[stage]))
        for step in range(2, 9):
            later = stage.model_copy(update={"progress": StageProgress(step=step)})
            await world.reconcile(status=RunStatus(phase="Running", stages=[later]))
            assert world.writes() == []
        failed = later.model_copy(update={"phase": "Failed"})
        await world.reconcile(status=RunStatus(phase="Running", stages=[failed]))
        assert ("patch", "alignmentruns/status") in world.writes()

    in_world(test)


def test_significant_is_what_is_more_than_progress() -> None:
    old = {"phase": "Running", "progress": "1/9", "stages": [{"name": "a", "phase": "Running", "message": "x"}]}
    assert not significant(old, old | {"progress": "2/9"})
    assert not significant(old, old | {"stages": [old["stages"][0] | {"message": "y", "metrics": {"loss": "1"}}]})
    assert significant(old, old | {"phase": "Failed"})
    assert significant(old, old | {"stages": [old["stages"][0] | {"attempt": 2}]})
    assert significant(old, old | {"stages": []})


def test_a_run_that_is_gone_is_forgotten(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        await world.cluster.delete("AlignmentRun", world.namespace, "run", world.uid)
        await world.reconcile(Access(), PLAN)
        assert world.writes() == [("patch", "alignmentruns/status")]
        assert world.cache.run(world.key) is None
        assert await world.reconcile(Access(), PLAN) == []

    in_world(test)


def test_time_to_live_deletes_the_run_that_it_saw(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        uid = world.uid
        await world.reconcile(delete_run=True)
        with pytest.raises(ApiError, match="not found"):
            await world.get("AlignmentRun", "run")
        await world.make_run()
        run = world.cache.run(world.key)
        assert run is not None
        await world.controller._delete_run(dataclasses.replace(run, meta=dataclasses.replace(run.meta, uid=uid)))
        await world.get("AlignmentRun", "run")

    in_world(test)


def test_events_are_posted_once_and_never_hold_anything_up(in_world: InWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        note = controller_module.events.Note("Warning", "OutOfMemory", "Retry", "stage 'sft': killed")
        monkeypatch.setattr(controller_module.events, "notes", lambda old, new: [note, note])
        await world.reconcile()
        await world.controller.told()
        listed = await world.cluster._request("list", "events", f"/api/v1/namespaces/{world.namespace}/events")
        (event,) = listed["items"]
        assert (event["type"], event["reason"], event["message"]) == (note.type, note.reason, note.message)
        assert event["involvedObject"]["uid"] == world.uid
        assert event["reportingInstance"] == "me"

    in_world(test)


def audit_of(world: World) -> Audit:
    return Audit(world.cluster, world.cache, world.controller, (RUN, *BUILT_IN, *RAY), [world.namespace], patience=0.1)


def test_the_audit_finds_what_the_watches_missed(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        await world.reconcile(Access(), PLAN)
        audit = audit_of(world)
        assert await audit.once() == set()

        made = await world.get("Job", JOB)
        ghost = {**made, "metadata": {**made["metadata"], "name": "ghost", "uid": "ghost"}}
        world.cache.put(project(ghost))
        await world.report(run_3="{}")
        world.unsee("AlignmentRun", "run")
        assert await audit.once() == {"AlignmentRun", "Job", "ConfigMap"}
        assert audit.deaf == frozenset()
        assert world.cache.get("Job", world.namespace, "ghost") is None
        observed = world.cache.observed(world.key)
        assert observed is not None
        assert observed.state is not None
        assert observed.state.keys == {"run-3.json"}
        assert await asyncio.wait_for(world.controller.queue.get(), 1) == world.key
        world.controller.queue.done(world.key)

        await world.report(run_4="{}")
        assert await audit.once() == {"ConfigMap"}
        assert audit.deaf == {"ConfigMap"}
        assert await audit.once() == set()
        assert audit.deaf == frozenset()

    in_world(test)


def test_a_watch_that_is_late_is_not_deaf(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        await world.reconcile(Access(), PLAN)
        audit = audit_of(world)
        for number in "345":
            late = await world.report(**{f"run_{number}": "{}"})
            assert await audit.once() == {"ConfigMap"}
            assert audit.deaf == frozenset()
            world.controller.saw(project(late))

    in_world(test)


def test_the_audit_goes_on_whatever_goes_wrong(in_world: InWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        audit = audit_of(world)
        again = asyncio.Event()
        errors: list[Exception] = [ApiError(500, "", "no"), TimeoutError(), KeyError("status")]

        async def once() -> set[str]:
            if errors:
                raise errors.pop()
            again.set()
            return set()

        monkeypatch.setattr(audit, "once", once)
        running = asyncio.create_task(audit.run(0.01))
        await asyncio.wait_for(again.wait(), 60)
        running.cancel()

    in_world(test)


def test_the_audit_gives_events_under_way_their_time(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        await world.reconcile(Access(), PLAN)
        audit = audit_of(world)
        late = await world.report(run_3="{}")
        asyncio.get_running_loop().call_later(0.05, world.controller.saw, project(late))
        assert await audit.once() == set()

    in_world(test)


def test_workers_try_again_what_failed(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        whole, failures = world.cluster._request, [ApiError(500, "InternalError", "try"), TimeoutError(), ValueError("bug")]

        async def unlucky(verb: str, what: str, *rest: Any) -> Object:
            if what == "alignmentruns/status" and failures:
                raise failures.pop()
            return await whole(verb, what, *rest)

        world.cluster._request = unlucky  # type: ignore[method-assign]
        world.outcome = Outcome(RunStatus(phase="Running"))
        working = asyncio.create_task(world.controller.work())
        run = world.cache.run(world.key)
        assert run is not None
        world.controller.wake(run)
        while "status" not in await world.get("AlignmentRun", "run"):
            await asyncio.sleep(0.05)
        world.controller.queue.close()
        await working

    in_world(test)


def test_what_could_not_be_written_for_a_moment_is_not_forgotten(in_world: InWorld) -> None:
    """A renewal of the lease that is answered late: this process does not lead for a moment, and then it does again."""

    async def test(world: World) -> None:
        await world.make_run()
        leads = False
        world.cluster._may_write = lambda: leads
        world.outcome = Outcome(RunStatus(phase="Running"))
        working = asyncio.create_task(world.controller.work())
        run = world.cache.run(world.key)
        assert run is not None
        world.controller.wake(run)
        while not world.seen:
            await asyncio.sleep(0.01)
        leads = True
        while "status" not in await world.get("AlignmentRun", "run"):
            await asyncio.sleep(0.05)
        world.controller.queue.close()
        await working

    in_world(test)


def test_a_kind_that_the_server_does_not_know_yet_is_no_run_that_is_gone(in_world: InWorld) -> None:
    """An API server that starts says 404 to everything."""

    async def test(world: World) -> None:
        await world.make_run()
        await world.reconcile(Access(), PLAN)
        whole = world.cluster._request

        async def starting(verb: str, what: str, *rest: Any) -> Object:
            if verb != "list":
                raise ApiError(404, "", "404 page not found")
            return await whole(verb, what, *rest)

        world.cluster._request = starting  # type: ignore[method-assign]
        with pytest.raises(ApiError):
            await world.reconcile(status=RunStatus(phase="Failed"))
        with pytest.raises(ApiError):
            await world.reconcile(status=RunStatus(phase="Running"), delete=(Reference("Job", JOB),))
        world.cluster._request = whole  # type: ignore[method-assign]
        assert world.cache.run(world.key) is not None
        assert world.cache.get("Job", world.namespace, JOB) is not None
        await world.reconcile(status=RunStatus(phase="Failed"))
        assert (await world.get("AlignmentRun", "run"))["status"] == {"phase": "Failed"}

    in_world(test)


def test_access_that_somebody_took_away_is_back_for_the_next_attempt(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        await world.reconcile(Access(), STAGE)
        name = names.stage_account("run")
        before = await world.get("Role", name)
        account = await world.get("ServiceAccount", name)
        await world.cluster.merge("Role", world.namespace, name, {"rules": []})
        await world.cluster.delete("ServiceAccount", world.namespace, name, account["metadata"]["uid"])
        requests = await world.reconcile(Access(), dataclasses.replace(STAGE, attempt=2))
        assert (await world.get("Role", name))["rules"] == before["rules"]
        assert (await world.get("ServiceAccount", name))["metadata"]["uid"] != account["metadata"]["uid"]
        assert ("patch", "rolebindings") not in requests
        assert requests[-1] == ("create", "rayjobs")

    in_world(test)


def test_every_run_is_looked_at_now_and_then(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.make_run()
        world.outcome = Outcome(RunStatus())
        working = [asyncio.create_task(world.controller.work()), asyncio.create_task(world.controller.resync(0.1))]
        while len(world.seen) < 3:  # nothing happens to it
            await asyncio.sleep(0.05)
        world.controller.queue.close()
        await working[0]
        working[1].cancel()

    in_world(test)
