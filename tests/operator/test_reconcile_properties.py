"""From any reachable state, with events in any order, lost or doubled, and the operator killed between any two writes."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from plumbline.api.labels import ATTEMPT, PLAN, RETRY, STAGE
from support.simulated_cluster import STAGES, Simulation

DEPLOYMENTS = {"": "start", "Initializing": "run", "Running": "succeed"}
CHECK, LIVE = STAGES[3], STAGES[4]
OTHERS: dict[str, list[dict[str, Any]]] = {
    "whole": STAGES,
    "no graph": [one for one in STAGES if one is not CHECK],
    "stage gone": [one for one in STAGES if one["name"] != "other"],
    "stage renamed": [one | {"name": "another"} if one["name"] == "other" else one for one in STAGES],
    "kind changed": [
        {"name": "other", "inputs": {"model": "sft"}, "evaluate": {"tasks": [{"name": "skills", "benchmark": "skills"}]}}
        if one["name"] == "other"
        else one
        for one in STAGES
    ],
    "endpoint gone": STAGES[:4],
    "endpoint renamed": [*STAGES[:4], LIVE | {"name": "prod"}],
    "two endpoints": [*STAGES, LIVE | {"name": "prod"}],
    "no gate": [*STAGES[:4], LIVE | {"serve": {"ungated": True}}],
}


class Cluster(RuleBasedStateMachine):
    """Users, KubeRay, a lagging cache and a mortal operator do whatever they like; in the end all goes well."""

    def __init__(self) -> None:
        super().__init__()
        self.world = Simulation()

    @initialize(done=st.booleans())
    def begin(self, done: bool) -> None:
        """Half of the walks begin with a run that is complete and serves."""
        if done:
            self.world.settle()

    def _pick(self, kind: str, number: int) -> dict[str, Any] | None:
        found = self.world.of(kind)
        return found[number % len(found)] if found else None

    @rule(crash=st.sampled_from([None, None, None, "before", "between", "first"]))
    def reconcile(self, crash: str | None) -> None:
        self.world.reconcile(crash)

    @rule(moves=st.sampled_from([0, 1, 3, 9]))
    def all_goes_well_for_a_while(self, moves: int) -> None:
        """Takes the walk to states that single steps rarely reach."""
        for _ in range(moves + 1):
            self.plan(good=True, permanent=False)
            for number in range(len(self.world.of("RayJob"))):
                self.kuberay_moves(number)
            self.world.sync()
            self.world.reconcile()

    @rule()
    def deliver_all(self) -> None:
        self.world.sync()

    @rule(numbers=st.lists(st.integers(0, 40), max_size=4))
    def deliver_some(self, numbers: list[int]) -> None:
        keys = sorted({*self.world.store, *self.world.cache})
        self.world.sync(*(keys[number % len(keys)] for number in numbers))

    @rule(number=st.integers(0, 9))
    def kuberay_moves(self, number: int) -> None:
        job = self._pick("RayJob", number)
        if job is not None and job.get("status", {}).get("jobDeploymentStatus", "") in DEPLOYMENTS:
            self.world.move(job, DEPLOYMENTS[job.get("status", {}).get("jobDeploymentStatus", "")])

    @rule(number=st.integers(0, 9), how=st.sampled_from(["fail", "stop", "silent", "unreachable", "suspended"]))
    def kuberay_misbehaves(self, number: int, how: str) -> None:
        at_work = [job for job in self.world.of("RayJob") if job.get("status", {}).get("jobDeploymentStatus") == "Running"]
        if not at_work:
            return
        job = at_work[number % len(at_work)]
        if how == "silent":
            self.world.move(job, "succeed", tell=False)
        elif how == "unreachable":
            self.world.move(job, "run", jobStatusCheckFailureStartTime="1970-01-01T00:16:40Z")
        elif how == "suspended":
            self.world.move(job, "run", jobDeploymentStatus="", jobStatus="")
        else:
            self.world.move(job, how)

    @rule(good=st.booleans(), permanent=st.booleans())
    def plan(self, good: bool, permanent: bool) -> None:
        for job in self.world.of("Job"):
            if "status" not in job:
                self.world.plan(job, None if good else {"message": "no such file", "permanent": permanent})

    @rule(healthy=st.booleans())
    def serve(self, healthy: bool) -> None:
        for service in self.world.of("RayService"):
            self.world.serve(service, healthy)

    @rule()
    def pods_end(self) -> None:
        self.world.end_pods()

    @rule(seconds=st.sampled_from([1, 15, 130, -60]))
    def time_passes(self, seconds: int) -> None:
        """Or the clock is set back."""
        self.world.now += seconds

    @rule(stage=st.sampled_from(["data", "sft", "other", "check"]), steps=st.integers(1, 3))
    def edit(self, stage: str, steps: int) -> None:
        stages = copy.deepcopy(self.world.run["spec"]["stages"])
        changed = next((one for one in stages if one["name"] == stage), None)
        if changed is None:
            return
        if stage == "data":
            changed["curate"]["sources"][0]["limit"] = steps
        elif stage == "check":
            changed["evaluate"]["tasks"][0]["limit"] = steps
        elif "sft" in changed:
            changed["sft"]["maxSteps"] = steps
        self.world.edit(stages=stages)

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        if self.world.run["spec"].get("suspend", False) != suspend:
            self.world.edit(suspend=suspend)

    @rule(limit=st.sampled_from([0, 3]))
    def change_limit(self, limit: int) -> None:
        self.world.edit(backoffLimit=limit)

    @rule(name=st.sampled_from(sorted(OTHERS)))
    def change_stages(self, name: str) -> None:
        """Stages come, go, change their kind; one of these edits leaves no graph."""
        self.world.edit(stages=OTHERS[name])
        self.world.forget()

    @rule(seconds=st.sampled_from([None, 40, 400]), ttl=st.sampled_from([None, 0, 60]))
    def bound_time(self, seconds: int | None, ttl: int | None) -> None:
        self.world.edit(activeDeadlineSeconds=seconds, ttlSecondsAfterFinished=ttl)

    @rule()
    def come_back(self) -> None:
        """A run whose time to live was over is made again: here, by taking the deletion back."""
        self.world.run["metadata"].pop("deletionTimestamp", None)
        self.world.put(self.world.run)

    @rule(there=st.booleans())
    def claim(self, there: bool) -> None:
        self.world.missing = () if there else (("PersistentVolumeClaim", "models"),)

    @rule(stage=st.sampled_from([stage["name"] for stage in STAGES]))
    def retry(self, stage: str) -> None:
        found = next((one for one in self.world.status.get("stages", []) if one["name"] == stage), None)
        if found is not None:
            annotations = self.world.run["metadata"].setdefault("annotations", {})
            annotations[f"{RETRY}{stage}"] = str(found.get("attempt", 0))
            self.world.put(self.world.run)

    @rule(kind=st.sampled_from(["RayJob", "RayService", "ConfigMap", "Job"]), number=st.integers(0, 9))
    def delete_by_hand(self, kind: str, number: int) -> None:
        child = self._pick(kind, number)
        if child is not None:
            self.world.delete_by_user((kind, child["metadata"]["name"]))

    @rule(number=st.integers(0, 9), text=st.sampled_from(["", "null", "{", '{"attempt": -1}', "[" * 9]))
    def rubbish(self, number: int, text: str) -> None:
        for state in self.world.of("ConfigMap"):
            keys = sorted(state["data"])
            if keys:
                state["data"][keys[number % len(keys)]] = text
                self.world.put(state)

    @rule(number=st.integers(0, 9), label=st.sampled_from([ATTEMPT, STAGE, PLAN]), text=st.sampled_from(["", "7", "sft"]))
    def edit_label(self, number: int, label: str, text: str) -> None:
        job = self._pick("RayJob", number)
        if job is not None:
            job["metadata"]["labels"][label] = text
            self.world.put(job)

    @rule(all_of_it=st.booleans())
    def forget_status(self, all_of_it: bool) -> None:
        """Somebody wipes what the operator remembers."""
        self.world.run["status"] = {} if all_of_it else {"stages": self.world.status.get("stages", [])}
        self.world.forget()
        self.world.put(self.world.run)

    @rule()
    def gate_turns_bad(self) -> None:
        if self._is_valid() and (one := self.world._fingerprints()["check"]) not in self.world.artifacts:
            self.world.bad_gates.add(one)

    @rule()
    def model_turns_bad(self) -> None:
        """What `live` is to serve, and has not served yet, never gets healthy."""
        live = self.world._fingerprints().get("live") if self._is_valid() else None
        if live is not None and not any(live in json.dumps(one) for one in self.world.of("RayService")):
            self.world.bad_models.add(live)

    def _is_valid(self) -> bool:
        return any(stage["name"] == "check" for stage in self.world.run["spec"]["stages"])

    @invariant()
    def nothing_forbidden(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        """In the end everybody behaves. Without a further edit the run comes to an end that it explains; and with the whole spec
        it completes, or fails for its gate alone. Then nothing is written."""
        self.world.run["metadata"].pop("deletionTimestamp", None)
        self.world.missing = ()
        self.world.settle()
        self._ended()
        self._complete()

    def _ended(self) -> None:
        world = self.world
        ended = [one["type"] for one in world.status["conditions"] if one["status"] == "True"]
        told = json.dumps(world.status, indent=1)
        assert {"Complete", "Failed"} & {*ended} or (world.run["spec"].get("suspend") and "Suspended" in ended), told
        if not self._is_valid():
            return
        for job in world.of("RayJob"):
            assert job["status"]["jobDeploymentStatus"] in ("Complete", "Failed"), (
                f"{job['metadata']['name']} is left: {told}"
            )
        for service in world.of("RayService"):
            assert service["spec"]["serves"] not in world.bad_models, f"what never gets healthy is left: {told}"

    def _complete(self) -> None:
        world = self.world
        world.bad_models.clear()
        world.edit(stages=STAGES, suspend=False, backoffLimit=3, activeDeadlineSeconds=None, ttlSecondsAfterFinished=None)
        world.forget()
        world.run["metadata"].pop("deletionTimestamp", None)
        world.settle()
        bad = world._fingerprints()["check"] in world.bad_gates
        assert world.condition("Failed" if bad else "Complete")["status"] == "True", json.dumps(world.status, indent=1)
        if bad:
            assert world.condition("Failed")["reason"] == "GateFailed"
        else:
            assert world.condition("Ready")["status"] == "True"
            assert world.of("RayService")[0]["spec"]["serves"] == world._fingerprints()["live"]
        version = world.version
        outcome = world.reconcile()
        assert (outcome.create, outcome.delete, outcome.prune) == ((), (), ())
        assert world.version == version


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # shrinking takes longer than a test may
    suppress_health_check=list(HealthCheck),
)
