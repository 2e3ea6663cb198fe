"""KubeRay's RayJob controller: each RayJob goes through the documented states as its behaviour says."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from plumbline.api import labels
from plumbline.api.report import Result, StageReport, stage_key
from plumbline.plan import Plan
from support.fake_kuberay.kubelet import condition, now
from support.rest import RAY_JOBS, Object

if TYPE_CHECKING:
    from support.fake_kuberay.cluster import FakeCluster

FINALIZER = "ray.io/rayjob-finalizer"
TERMINAL = ("Complete", "Failed", "ValidationFailed")
RESET = dict.fromkeys(("rayClusterName", "dashboardURL", "jobId", "jobStatus", "reason", "message"))


class RayJob:
    """One RayJob. Behaviours call its methods; each leaves a state that KubeRay documents.

    Attributes:
        object: as the API server last told it.
        heads, workers: Pods of its Ray cluster.
    """

    def __init__(self, cluster: FakeCluster, value: Object) -> None:
        self.cluster, self.object = cluster, value
        meta = value["metadata"]
        self.namespace, self.name, self.uid = meta["namespace"], meta["name"], meta["uid"]
        self.labels: dict[str, str] = meta.get("labels") or {}
        self.run, self.stage = self.labels.get(labels.RUN, ""), self.labels.get(labels.STAGE, "")
        self.attempt = int(self.labels.get(labels.ATTEMPT, 0))
        self.fingerprint: str = (meta.get("annotations") or {}).get(labels.FINGERPRINT, "")
        self.heads: list[Object] = []
        self.workers: list[Object] = []
        self.deployment = ""
        self._changed = asyncio.Event()
        self._incarnation = 0

    @property
    def spec(self) -> Object:
        spec: Object = self.object["spec"]
        return spec

    @property
    def pods(self) -> list[Object]:
        return self.heads + self.workers

    def update(self, value: Object) -> None:
        self.object = value
        self._changed.set()

    async def live(self, behaviour: Behaviour) -> None:
        """From creation to deletion."""
        await self._patch({"metadata": {"finalizers": [FINALIZER]}})
        while True:
            acting = asyncio.create_task(self._act(behaviour))
            halted = asyncio.create_task(self._until(lambda: self._deleted or self._to_suspend))
            await asyncio.wait({acting, halted}, return_when=asyncio.FIRST_COMPLETED)
            if acting.done():
                acting.result()
                await asyncio.wait({halted})
            acting.cancel()
            halted.cancel()
            await asyncio.gather(acting, halted, return_exceptions=True)
            if self._deleted:
                await self._patch({"metadata": {"finalizers": None}})  # the collector takes the Pods
                return
            await self.status(jobDeploymentStatus="Suspending")
            await self.end_pods()
            await self.status(jobDeploymentStatus="Suspended", **RESET)
            await self._until(lambda: self._deleted or not self.spec.get("suspend"))
            await self.status(jobDeploymentStatus="")

    async def _act(self, behaviour: Behaviour) -> None:
        if (problem := invalid(self.object)) is not None:
            await validation_failed(problem)(self)
            return
        await behaviour(self)
        if self.deployment in TERMINAL and self.spec.get("shutdownAfterJobFinishes"):
            await self.end_pods()

    @property
    def _deleted(self) -> bool:
        return "deletionTimestamp" in self.object["metadata"]

    @property
    def _to_suspend(self) -> bool:
        return bool(self.spec.get("suspend")) and self.deployment in ("Initializing", "Running")

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            self._changed.clear()
            if not true():
                await self._changed.wait()

    async def _patch(self, body: Object, subresource: str | None = None) -> None:
        await self.cluster.rest.patch(RAY_JOBS, self.namespace, self.name, body, subresource)

    async def status(self, **fields: Any) -> None:
        """Write status fields; None removes one."""
        await self._patch({"status": fields}, "status")
        if "jobDeploymentStatus" in fields:
            self.deployment = fields["jobDeploymentStatus"]
            self.cluster.note(self, self.deployment or "New")
            self._changed.set()

    async def begin(self) -> None:
        """`Initializing`: the cluster has a name and its Pods wait for nodes."""
        self._incarnation += 1
        name = f"{self.name}-{self.uid[:5]}{self._incarnation}"
        await self.status(jobDeploymentStatus="Initializing", rayClusterName=name, jobId=name, startTime=now())
        # Suspended from the start: `live` ends this, unless somebody resumes the job at this very moment.
        await self._until(lambda: not self.spec.get("suspend"))
        spec, common = self.spec["rayClusterSpec"], {"ray.io/cluster": name, "ray.io/is-ray-node": "yes"}
        create = self.cluster.kubelet.create
        self.heads = [
            await create(
                self.object,
                f"{name}-head",
                spec["headGroupSpec"]["template"],
                common | {"ray.io/node-type": "head", "ray.io/group": "headgroup"},
            )
        ]
        self.workers = [
            await create(
                self.object,
                f"{name}-{group['groupName']}-{i}",
                group["template"],
                common | {"ray.io/node-type": "worker", "ray.io/group": group["groupName"]},
            )
            for group in spec.get("workerGroupSpecs") or ()
            for i in range(max(group.get("replicas", 0), group.get("minReplicas", 0)))
        ]
        await self.cluster_status("False")

    async def cluster_status(self, provisioned: str, ready: int = 0, extra: list[dict[str, str]] | None = None) -> None:
        """`rayClusterStatus`. `state: ready` latches: it is set with the first full cluster and never taken back."""
        reason = "AllPodRunningAndReadyFirstTime" if provisioned == "True" else "RayClusterPodsProvisioning"
        status: Object = {
            "desiredWorkerReplicas": len(self.workers),
            "readyWorkerReplicas": ready,
            "conditions": [condition("RayClusterProvisioned", provisioned, reason), *(extra or ())],
        }
        await self.status(rayClusterStatus=status | ({"state": "ready"} if provisioned == "True" else {}))

    async def ready(self) -> None:
        """All Pods run, so that the job can be submitted."""
        await asyncio.gather(*(self.cluster.kubelet.run(pod) for pod in self.pods))
        head_ready = condition("HeadPodReady", "True", "HeadPodRunningAndReady")
        await self.cluster_status("True", len(self.workers), [head_ready])

    async def submit(self) -> None:
        """`Running`, first PENDING, then RUNNING."""
        url = f"{self.name}-head-svc.{self.namespace}.svc.cluster.local:8265"
        await self.status(jobDeploymentStatus="Running", jobStatus="PENDING", dashboardURL=url)
        await self.status(jobStatus="RUNNING", rayJobInfo={"startTime": now()})

    async def start(self) -> None:
        """All of it, up to a running program."""
        await self.begin()
        await self.ready()
        await self.submit()

    async def end(
        self, deployment: str, job: str | None = None, reason: str | None = None, message: str | None = None
    ) -> None:
        """A terminal state."""
        counts = {"succeeded": int(job == "SUCCEEDED"), "failed": int(deployment == "Failed")}
        await self.status(
            jobDeploymentStatus=deployment, jobStatus=job, reason=reason, message=message, endTime=now(), **counts
        )

    async def end_pods(self) -> None:
        pods, self.heads, self.workers = self.pods, [], []
        await self.cluster.kubelet.delete(pods)

    async def plan(self) -> Plan | None:
        """The RUN.json that the entrypoint names, as the mounted ConfigMap has it."""
        path = next(word for word in shlex.split(self.spec["entrypoint"]) if word.endswith(".json"))
        return await self.cluster.state.plan(self.namespace, self.run, path.rpartition("/")[2])

    async def report(self, **fields: Any) -> None:
        """Write into the run's ConfigMap, as the stage program does."""
        report = StageReport(attempt=self.attempt, fingerprint=self.fingerprint, time=self.cluster.clock(), **fields)
        await self.cluster.state.report(self.namespace, self.run, self.stage, report)

    async def write(self, text: str) -> None:
        """Anything instead of a report."""
        await self.cluster.state.write(self.namespace, self.run, {stage_key(self.stage): text})

    def artifact(self, plan: Plan, **fields: Any) -> Result:
        """Put the stage's artifact into the workspace, unless it is there."""
        node = plan.graph[self.stage]
        uri = f"{plan.workspace_uri}/artifacts/{node.kind}/{self.fingerprint}"
        return self.cluster.artifacts.setdefault(uri, Result(artifact=uri, **fields))


Behaviour = Callable[[RayJob], Awaitable[None]]


def validation_failed(message: str = "spec is wrong") -> Behaviour:
    """KubeRay does not even begin."""

    async def play(job: RayJob) -> None:
        await job.status(jobDeploymentStatus="ValidationFailed", reason="ValidationFailed", message=message)

    return play


def invalid(value: Object) -> str | None:
    """What KubeRay's own validation says of a RayJob (`utils/validation.go`), as far as ours could break it."""
    name, spec = value["metadata"]["name"], value["spec"]
    cluster = spec["rayClusterSpec"]
    if len(name) > 47 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        return f"RayJob name '{name}' should be a DNS-1035 label of at most 47 characters"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        return "a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended"
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        return "a RayJob with shutdownAfterJobFinishes set to false cannot have TTLSecondsAfterFinished"
    if (cluster.get("authOptions") or {}).get("mode") == "token" and not cluster.get("rayVersion"):
        return "authOptions.mode is 'token' but RayVersion was not specified"
    names = [group["groupName"] for group in cluster.get("workerGroupSpecs") or ()]
    if len(set(names)) < len(names):
        return "worker group names must be unique"
    for group in cluster.get("workerGroupSpecs") or ():
        low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not low <= high:
            return f"worker group {group['groupName']} has minReplicas > maxReplicas"
    return None
