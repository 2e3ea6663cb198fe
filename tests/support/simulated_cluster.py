"""A cluster in memory for tests of the pure reconciler: a store, a cache that lags behind it, and whoever acts on it.

Objects are what the API server would hold, so that `observed.project` is tested too. Nothing here knows how the reconciler
decides; `Simulation` checks, after every step, what must never happen.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from plumbline.api import labels
from plumbline.api.report import plan_key, run_key, stage_key
from plumbline.api.run import KIND
from plumbline.graph import build_graph, fingerprints
from plumbline_operator import names
from plumbline_operator.desired import Access, Desired, Endpoint, PlanJob, Reference, Restored, StageJob
from plumbline_operator.draft import Outcome
from plumbline_operator.observed import (
    HEALTHY,
    HEALTHY_FINGERPRINT,
    REFUSED,
    REPLACES,
    SHAPE,
    Observed,
    PlanJobView,
    PodView,
    RayJobView,
    RayServiceView,
    RunView,
    StateView,
    WorkloadView,
    project,
    unix,
)
from plumbline_operator.reconcile import parse, reconcile
from plumbline_operator.settings import Patience
from plumbline_operator.status import timestamp

Object = dict[str, Any]
Key = tuple[str, str]
UID = "11111111-2222-3333-4444-555555555555"
PATIENCE = Patience(retry_base=10, retry_limit=100, unreachable=60, result=20, ending=120, healthy=200, recheck=5)
STAGES = [
    {"name": "data", "curate": {"sources": [{"uri": "builtin://skills"}]}},
    {"name": "sft", "sft": {"maxSteps": 10}},
    {"name": "other", "inputs": {"model": "base"}, "sft": {"maxSteps": 20}},
    {
        "name": "check",
        "inputs": {"model": "sft"},
        "evaluate": {
            "tasks": [{"name": "skills", "benchmark": "skills"}],
            "gates": [{"task": "skills", "threshold": 0.5}],
        },
    },
    {"name": "live", "inputs": {"model": "sft"}, "serve": {}},
]


def run_object(stages: list[Object] | None = None, **spec: Any) -> Object:
    return {
        "apiVersion": "plumbline.dev/v1alpha1",
        "kind": KIND,
        "metadata": {
            "name": "demo",
            "namespace": "default",
            "uid": UID,
            "generation": 1,
            "creationTimestamp": timestamp(0),
        },
        "spec": {
            "model": {"base": "builtin://tiny"},
            "workspace": {"uri": "s3://bucket/demo"},
            "stages": copy.deepcopy(stages or STAGES),
            **spec,
        },
    }


class Simulation:
    """A run, its children, KubeRay and friends, and the operator with a cache of its own."""

    def __init__(self, run: Object | None = None) -> None:
        self.now = 1000.0
        self.version = 0
        self.store: dict[Key, Object] = {}
        self.cache: dict[Key, Object] = {}
        self.created: dict[str, int] = {}
        self.deletions: dict[str, int] = {}
        self.bad_gates: set[str] = set()
        self.bad_models: set[str] = set()
        """What never gets healthy, by fingerprint of the serve stage."""
        self.attempts: dict[str, int] = {}
        self.artifacts: dict[str, str] = {}
        self.last: Outcome | None = None
        self.missing: tuple[tuple[str, str], ...] = ()
        self.put(run or run_object())
        self.sync()

    # The store and the cache

    def put(self, value: Object) -> Object:
        self.version += 1
        value["metadata"]["resourceVersion"] = str(self.version)
        self.store[value["kind"], value["metadata"]["name"]] = value
        return value

    def sync(self, *keys: Key) -> None:
        """Deliver the latest events of some objects, or of all."""
        for key in keys or [*self.store, *self.cache]:
            if key in self.store:
                self.cache[key] = copy.deepcopy(self.store[key])
            else:
                self.cache.pop(key, None)

    @property
    def run(self) -> Object:
        return self.store[KIND, "demo"]

    @property
    def status(self) -> Object:
        return self.run.get("status") or {}

    def stage(self, name: str) -> Object:
        return next(stage for stage in self.status["stages"] if stage["name"] == name)

    def condition(self, name: str) -> Object:
        return next(one for one in self.status["conditions"] if one["type"] == name)

    def of(self, kind: str) -> list[Object]:
        return [value for (k, _), value in sorted(self.store.items()) if k == kind]

    # The operator

    def observe(self) -> Observed:
        views = [project(value) for value in self.cache.values()]

        def pick(kind: type) -> tuple[Any, ...]:
            return tuple(view for view in views if isinstance(view, kind))

        states = pick(StateView)
        return Observed(
            run=pick(RunView)[0],
            plan_jobs=pick(PlanJobView),
            ray_jobs=pick(RayJobView),
            services=pick(RayServiceView),
            pods=pick(PodView),
            workloads=pick(WorkloadView),
            state=states[0] if states else None,
            missing=self.missing,
        )

    def reconcile(self, crash: str | None = None) -> Outcome:
        """One reconcile with what the cache knows.

        Args:
            crash: end `before` the status is written, `between` status and children, or after the `first` child.
        """
        outcome = reconcile(self.observe(), PATIENCE, self.now)
        self.last = outcome
        if crash == "before" or outcome.status is None:
            return outcome
        if self.cache[KIND, "demo"]["metadata"]["resourceVersion"] != self.run["metadata"]["resourceVersion"]:
            self.sync((KIND, "demo"))  # a conflict: read again, do nothing
            return outcome
        stored = json.loads(outcome.status.model_dump_json(by_alias=True, exclude_none=True))
        if stored != self.status:
            self.run["status"] = stored
            self.put(self.run)
            self.sync((KIND, "demo"))
        if crash == "between":
            return outcome
        if not (outcome.create or outcome.delete or outcome.prune or outcome.requeue == 0):
            # No event need ever come: whatever follows from the new status must have been decided with it.
            again = reconcile(self.observe(), PATIENCE, self.now)
            assert (again.status, again.create, again.delete) == (outcome.status, (), ())
        for done, desired in enumerate(outcome.create):
            if crash == "first" and done > 1:
                return outcome
            self._create(desired)
        for reference in outcome.delete:
            self._check_deletion(reference)
            self._delete((reference.kind, reference.name))
            if reference.kind == "RayService":  # one that never got healthy comes anew; a RayJob never does
                self.deletions[reference.name] = self.deletions.get(reference.name, 0) + 1
            self.sync((reference.kind, reference.name))
        state = self.store.get(("ConfigMap", names.state("demo")))
        if state is not None and outcome.prune:
            for key in outcome.prune:
                state["data"].pop(key, None)
            self.put(state)
        if outcome.delete_run:
            serving = [
                one for one in self.status["stages"] if one["kind"] == "serve" and one["phase"] in ("Waiting", "Running")
            ]
            assert not serving, "a run that serves is deleted"
            self.run["metadata"]["deletionTimestamp"] = timestamp(self.now)
        return outcome

    def _create(self, desired: Desired) -> None:
        for value in self._objects(desired):
            key = value["kind"], value["metadata"]["name"]
            there = self.store.get(key)
            if there is None:
                if isinstance(desired, StageJob) and self._finds_pods(desired):
                    return
                self.created[key[1]] = self.created.get(key[1], 0) + 1
                self.put(value)
            elif isinstance(desired, Endpoint | Restored):
                there["spec"] = value["spec"]
                there["metadata"]["annotations"] = value["metadata"]["annotations"]
                there["metadata"]["labels"] = value["metadata"]["labels"]
                there["metadata"]["generation"] += 1
                self.put(there)
            if isinstance(desired, Endpoint):
                assert self._gate_passed(desired), f"{desired} is served behind a gate that did not pass"
            self.sync(key)

    def _objects(self, desired: Desired) -> list[Object]:
        name, extra, spec = "", {}, {}
        annotations: dict[str, str] = {}
        match desired:
            case Access():
                return [self._child("ConfigMap", names.state("demo"), {}, {}, {"data": {}})]
            case PlanJob(generation=generation, attempt=attempt):
                name = names.plan_job("demo", generation, attempt)
                return [self._child("Job", name, {labels.PLAN: str(generation), labels.ATTEMPT: str(attempt)}, {}, {})]
            case StageJob(stage=stage, attempt=attempt, fingerprint=fingerprint, generation=generation):
                name = names.ray_job("demo", stage, attempt)
                extra = {labels.STAGE: stage, labels.ATTEMPT: str(attempt), labels.PLAN: str(generation)}
                ours = {labels.STAGE: stage, labels.ATTEMPT: str(attempt)}  # beyond the reach of those who edit labels
                return [self._child("RayJob", name, extra, {labels.FINGERPRINT: fingerprint}, {"spec": ours})]
            case Endpoint(stage=stage, fingerprint=fingerprint, generation=generation, shape=shape):
                annotations = {labels.FINGERPRINT: fingerprint, SHAPE: shape}
                annotations |= {REPLACES: desired.replaces} if desired.replaces else {}
                if desired.keep is not None:
                    annotations |= {HEALTHY: json.dumps(desired.keep), HEALTHY_FINGERPRINT: str(desired.keep_fingerprint)}
                extra = {labels.STAGE: stage, labels.PLAN: str(generation)}
                spec = {"serves": fingerprint, "run": f"run-{generation}.json"}
            case Restored(stage=stage, fingerprint=fingerprint, refused=refused):
                annotations = {labels.FINGERPRINT: fingerprint, REFUSED: refused}
                extra, spec = {labels.STAGE: stage}, dict(desired.spec)
        return [self._child("RayService", names.ray_service("demo", stage), extra, annotations, {"spec": spec})]

    def _child(self, kind: str, name: str, extra: Object, annotations: Object, rest: Object) -> Object:
        owner = {"kind": KIND, "name": "demo", "uid": UID, "controller": True}
        return {
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": "default",
                "uid": f"{kind}-{name}-{self.version}",
                "generation": 1,
                "creationTimestamp": timestamp(self.now),
                "labels": {labels.RUN: "demo", labels.RUN_UID: UID, **extra},
                "annotations": annotations,
                "ownerReferences": [owner] if kind != "Pod" else [],
            },
            **rest,
        }

    def _delete(self, key: Key) -> None:
        value = self.store.pop(key, None)
        if value is not None and key[0] == "RayJob":
            for pod in self.of("Pod"):  # they end in their own time: KubeRay does not wait for them
                if pod["metadata"]["labels"].get("job") == key[1] and "deletionTimestamp" not in pod["metadata"]:
                    pod["metadata"]["deletionTimestamp"] = timestamp(self.now)
                    self.put(pod)

    # What must never happen

    def _finds_pods(self, desired: StageJob) -> bool:
        """What the controller does before it creates a RayJob: it reads the stage's Pods afresh."""
        for job in self.of("RayJob"):
            same = job["spec"][labels.STAGE] == desired.stage
            ended = (job.get("status") or {}).get("jobDeploymentStatus") in ("Complete", "Failed", "ValidationFailed")
            assert not same or ended, f"{desired} begins beside {job['metadata']['name']}"
        keys = [
            ("Pod", pod["metadata"]["name"])
            for pod in self.of("Pod")
            if pod["metadata"]["labels"].get(labels.STAGE) == desired.stage
            and self.now < (unix(pod["metadata"].get("deletionTimestamp")) or self.now) + PATIENCE.ending
        ]
        assert not any(key in self.cache for key in keys), f"{desired} begins beside a Pod that was known"
        assert not (desired.first and keys), f"{desired} begins beside a Pod and does not look"
        if keys:
            self.sync(*keys)
        return bool(keys)

    def check(self) -> None:
        for name, count in self.created.items():
            assert count <= 1 + self.deletions.get(name, 0), f"{name} was created {count} times"
        conditions = {one["type"]: one["status"] for one in self.status.get("conditions", [])}
        assert not (conditions.get("Complete") == "True" and conditions.get("Failed") == "True")
        for stage in self.status.get("stages", []):
            name, attempt = stage["name"], stage.get("attempt", 0)
            assert attempt >= self.attempts.get(name, 0), f"'{name}' counts its attempts anew"
            self.attempts[name] = attempt

    def forget(self) -> None:
        """Nothing tells any more which attempts there were of stages that left nothing behind."""
        self.attempts.clear()
        for name in self.created:
            if not any(name == there for _, there in self.store):
                self.deletions[name] = self.created[name]

    def _check_deletion(self, reference: Reference) -> None:
        """An endpoint that answers is taken away only with its stage."""
        value = self.store.get((reference.kind, reference.name))
        if reference.kind == "RayService" and value is not None and value.get("status", {}).get("activeServiceStatus"):
            serving = {
                names.ray_service("demo", one["name"])
                for one in self.cache[KIND, "demo"]["spec"]["stages"]
                if "serve" in one
            }
            assert reference.name not in serving, f"{reference.name} is deleted while it serves"

    def _gate_passed(self, endpoint: Endpoint) -> bool:
        node = build_graph(parse("demo", self.run["spec"]))[endpoint.stage]
        if getattr(node.spec, "ungated", False):
            return True
        report = node.inputs["report"][0]
        fingerprint = self._fingerprints()[report]
        return fingerprint in self.artifacts and fingerprint not in self.bad_gates

    # Everybody else

    def _fingerprints(self) -> dict[str, str]:
        spec = parse("demo", self.run["spec"])
        return fingerprints(build_graph(spec), spec, {"builtin://tiny": "tiny", "builtin://skills": "skills"})

    def _report(self, key: str, value: Object) -> None:
        state = self.store.get(("ConfigMap", names.state("demo")))
        if state is not None:
            state["data"][key] = json.dumps(value)
            self.put(state)

    def _result(self, name: str, fingerprint: str) -> Object:
        result: Object = {"artifact": f"s3://bucket/{fingerprint}"}
        if name == "check":
            result |= {"verdict": "Failed" if fingerprint in self.bad_gates else "Passed", "verdictReason": "so it is"}
        return result

    def plan(self, job: Object, error: Object | None = None) -> None:
        """The plan Job does its work; with an error it fails."""
        generation = int(job["metadata"]["labels"][labels.PLAN])
        report: Object = {"attempt": int(job["metadata"]["labels"][labels.ATTEMPT])}
        if error is not None:
            report["error"] = error
        elif generation == self.run["metadata"]["generation"]:
            report["stages"] = {
                name: {"fingerprint": one} | ({"result": self._result(name, one)} if one in self.artifacts else {})
                for name, one in self._fingerprints().items()
            }
            self._report(run_key(generation), {})
        if generation == self.run["metadata"]["generation"]:
            self._report(plan_key(generation), report)
        kind = "Failed" if error else "Complete"
        job["status"] = {"conditions": [{"type": kind, "status": "True", "lastTransitionTime": timestamp(self.now)}]}
        self.put(job)

    def move(self, job: Object, to: str, **status: Any) -> None:
        """KubeRay moves a RayJob: `start`, `run`, `succeed`, `fail`, `stop`."""
        labelled, name = job["spec"], job["metadata"]["name"]
        job.setdefault("status", {})
        match to:
            case "start":
                job["status"] = {"jobDeploymentStatus": "Initializing"}
                pod = self._child("Pod", f"{name}-head", labelled | {"job": name}, {}, {"status": {"phase": "Running"}})
                self.put(pod)
            case "run":
                job["status"] = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
            case "succeed":
                fingerprint = job["metadata"]["annotations"][labels.FINGERPRINT]
                self.artifacts[fingerprint] = labelled[labels.STAGE]
                if status.pop("tell", True):
                    stage = labelled[labels.STAGE]
                    told = {"attempt": int(labelled[labels.ATTEMPT]), "fingerprint": fingerprint}
                    self._report(stage_key(stage), told | {"result": self._result(stage, fingerprint)})
                job["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "endTime": timestamp(self.now)}
            case "fail":
                job["status"] = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}
            case "stop":
                job["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}
        job["status"] |= status
        self.put(job)

    def end_pods(self) -> None:
        """Pods whose RayJob is gone or has ended are gone."""
        for pod in self.of("Pod"):
            job = self.store.get(("RayJob", pod["metadata"]["labels"].get("job", "")))
            ended = job is None or job.get("status", {}).get("jobDeploymentStatus") in ("Complete", "Failed")
            if ended:
                del self.store["Pod", pod["metadata"]["name"]]

    def serve(self, service: Object, healthy: bool = True) -> None:
        """KubeRay brings a RayService to what its spec says, or fails to."""
        before = copy.deepcopy(service.get("status"))
        status = service.setdefault("status", {})
        status["observedGeneration"] = service["metadata"]["generation"]
        cluster = f"cluster-{json.dumps(service['spec'], sort_keys=True)}"
        active = status.get("activeServiceStatus", {})
        if (healthy and service["spec"]["serves"] not in self.bad_models) or active.get("rayClusterName") == cluster:
            application = {"applicationStatuses": {"model": {"status": "RUNNING"}}}
            status["activeServiceStatus"] = {"rayClusterName": cluster, **application}
            status.pop("pendingServiceStatus", None)
            ready, upgrading = "True", "False"
        else:
            failed = {"applicationStatuses": {"model": {"status": "DEPLOY_FAILED", "message": "no such model"}}}
            status["pendingServiceStatus"] = {"rayClusterName": cluster, **failed}
            ready, upgrading = ("True", "True") if active else ("False", "False")
        status["conditions"] = [
            {"type": "Ready", "status": ready, "reason": "NonZeroServeEndpoints" if ready == "True" else "Initializing"},
            {"type": "UpgradeInProgress", "status": upgrading, "reason": "R"},
        ]
        if status != before:
            self.put(service)

    def edit(self, **spec: Any) -> None:
        """A user changes the spec."""
        self.run["spec"] |= copy.deepcopy(spec)
        self.run["metadata"]["generation"] += 1
        self.put(self.run)

    def delete_by_user(self, key: Key) -> None:
        if key in self.store:
            self.deletions[key[1]] = self.deletions.get(key[1], 0) + 1
            self._delete(key)

    def settle(self, steps: int = 300) -> None:
        """Everything goes well from here on, until nothing changes any more."""
        quiet = 0
        for _ in range(steps):
            self.sync()
            before = self.version
            self.reconcile()
            self.check()
            for job in self.of("Job"):
                if "status" not in job:
                    self.plan(job)
            for job in self.of("RayJob"):
                deployment = job.get("status", {}).get("jobDeploymentStatus", "")
                if deployment in ("", "Initializing", "Running"):
                    self.move(job, {"": "start", "Initializing": "run", "Running": "succeed"}[deployment])
            self.end_pods()
            for service in self.of("RayService"):
                wanted = service["metadata"]["generation"]
                if (
                    service.get("status", {}).get("observedGeneration") != wanted
                    or "pendingServiceStatus" in service["status"]
                ):
                    self.serve(service)
            self.now += 15
            quiet = quiet + 1 if self.version == before else 0
            if quiet > 20:
                return
        raise AssertionError(f"it does not settle: {json.dumps(self.status, indent=1)}")
