"""The Job controller and the planner: a plan Job resolves made-up identities and finds what the fake workspace holds."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from plumbline.api import labels
from plumbline.api.report import Failure, PlannedStage, PlanReport, plan_key, run_key
from plumbline.api.run import AlignmentRun
from plumbline.graph import build_graph, fingerprints
from plumbline.plan import Plan
from support.fake_kuberay.kubelet import LEAD, condition, now
from support.rest import JOBS, Object

if TYPE_CHECKING:
    from support.fake_kuberay.cluster import FakeCluster


class PlanJob:
    """One batch/v1 Job of a run."""

    def __init__(self, cluster: FakeCluster, value: Object) -> None:
        self.cluster, self.object = cluster, value
        meta = value["metadata"]
        self.namespace, self.name, self.uid = meta["namespace"], meta["name"], meta["uid"]
        self.labels: dict[str, str] = meta.get("labels") or {}
        self.run, self.stage = self.labels.get(labels.RUN, ""), "plan"
        self.generation = int(self.labels.get(labels.PLAN, 0))
        command = self.container.get("command", []) + self.container.get("args", [])
        self.attempt = int(command[command.index("--attempt") + 1])
        self.pod: Object = {}

    def update(self, value: Object) -> None:
        """A Job does not change."""

    @property
    def container(self) -> Object:
        first: Object = self.object["spec"]["template"]["spec"]["containers"][0]
        return first

    @property
    def environment(self) -> dict[str, str]:
        """Variables with a value of their own."""
        return {one["name"]: one["value"] for one in self.container.get("env") or () if "value" in one}

    async def start(self) -> None:
        """Its Pod runs."""
        extra = {"batch.kubernetes.io/job-name": self.name, "batch.kubernetes.io/controller-uid": self.uid}
        template = self.object["spec"]["template"]
        self.pod = await self.cluster.kubelet.create(self.object, f"{self.name}-{self.uid[:5]}", template, extra)
        await self._status(active=1, startTime=now())
        await self.cluster.kubelet.run(self.pod)
        self.cluster.note(self, "Running")

    async def end(self, code: int, message: str = "") -> None:
        """Its Pod has ended; as `backoffLimit` is 0, so has the Job."""
        await self.cluster.kubelet.terminated(self.pod, code, message=message)
        if code == 0:
            conditions = [condition("SuccessCriteriaMet", "True"), condition("Complete", "True", "CompletionsReached")]
            await self._status(active=0, succeeded=1, completionTime=now(), conditions=conditions)
        else:
            await asyncio.sleep(LEAD)
            words = "Job has reached the specified backoff limit"
            conditions = [condition(name, "True", "BackoffLimitExceeded", words) for name in ("FailureTarget", "Failed")]
            await self._status(active=0, failed=1, conditions=conditions)
        self.cluster.note(self, "Complete" if code == 0 else "Failed")

    async def _status(self, **fields: Any) -> None:
        await self.cluster.rest.patch(JOBS, self.namespace, self.name, {"status": fields}, "status")

    async def report(self, data: dict[str, str]) -> None:
        await self.cluster.state.write(self.namespace, self.run, data)

    def plan(self) -> Plan:
        """The plan of the run in its environment."""
        text = self.environment["PLUMBLINE_RUN"]
        if text.startswith("gz:"):
            text = gzip.decompress(base64.b64decode(text[3:])).decode()
        run = AlignmentRun.model_validate(json.loads(text), by_name=False, by_alias=True)
        graph = build_graph(run.spec)
        uris = {run.spec.model.base}.union(*(node.spec.external_uris().values() for node in graph.nodes))
        identities = {uri: self.cluster.identities.get(uri, f"identity of {uri}") for uri in uris}
        uri = f"/workspace/{self.namespace}/{run.spec.workspace.uri}"
        return Plan(run, graph, fingerprints(graph, run.spec, identities), identities, uri)


PlanBehaviour = Callable[[PlanJob], Awaitable[None]]


def planned() -> PlanBehaviour:
    """RUN.json and the report of the plan, in one patch."""

    async def play(job: PlanJob) -> None:
        await job.start()
        plan = job.plan()
        stages = {}
        for node in plan.graph.nodes:
            fingerprint = plan.fingerprints[node.name]
            uri = f"{plan.workspace_uri}/artifacts/{node.kind}/{fingerprint}"
            stages[node.name] = PlannedStage(fingerprint=fingerprint, result=job.cluster.artifacts.get(uri))
        report = PlanReport(attempt=job.attempt, stages=stages)
        await job.report(
            {run_key(job.generation): json.dumps(plan.to_json()), plan_key(job.generation): _json(report)},
        )
        await job.end(0)

    return play


def plan_fails(words: str, permanent: bool, reported: bool = True) -> PlanBehaviour:
    """The planner ends with exit code 2 or 1, and says why in the ConfigMap, unless it was killed."""

    async def play(job: PlanJob) -> None:
        await job.start()
        if reported:
            report = PlanReport(attempt=job.attempt, error=Failure(message=words, permanent=permanent))
            await job.report({plan_key(job.generation): _json(report)})
        await job.end(2 if permanent else 1, f"error: {words}")

    return play


def plan_hangs() -> PlanBehaviour:
    """The planner never ends."""

    async def play(job: PlanJob) -> None:
        await job.start()
        await asyncio.Event().wait()

    return play


def _json(report: PlanReport) -> str:
    return report.model_dump_json(by_alias=True, exclude_none=True)
