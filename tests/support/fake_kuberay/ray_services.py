"""KubeRay's RayService controller: a changed cluster gets a second Ray cluster, which takes over once it is healthy."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import yaml

from plumbline.api import labels
from support.fake_kuberay.kubelet import condition, happens, now
from support.rest import RAY_SERVICES, Object

if TYPE_CHECKING:
    from support.fake_kuberay.cluster import FakeCluster


@dataclass
class Backend:
    """One Ray cluster of a RayService."""

    name: str
    spec: Object
    pods: list[Object] = field(default_factory=list)
    applications: Object = field(default_factory=dict)
    play: asyncio.Task[None] | None = None

    def status(self) -> Object:
        return {"rayClusterName": self.name, "applicationStatuses": self.applications}


class RayService:
    """One RayService. Behaviours call `deploy`, `application` and `promote` for the cluster that is to be made healthy."""

    def __init__(self, cluster: FakeCluster, value: Object) -> None:
        self.cluster, self.object = cluster, value
        meta = value["metadata"]
        self.namespace, self.name, self.uid = meta["namespace"], meta["name"], meta["uid"]
        self.labels: dict[str, str] = meta.get("labels") or {}
        self.run, self.stage, self.attempt = self.labels.get(labels.RUN, ""), self.labels.get(labels.STAGE, ""), 0
        self.active: Backend | None = None
        self.pending: Backend | None = None
        self.timed_out = False
        self._changed = asyncio.Event()
        self._conditions: list[dict[str, str]] = []
        self._versions = 0

    def update(self, value: Object) -> None:
        self.object = value
        self._changed.set()

    async def live(self, _: object = None) -> None:
        """From creation until it is cancelled on deletion."""
        seen = None
        try:
            while not self.timed_out:
                spec = copy.deepcopy(self.object["spec"])
                if spec != seen:
                    seen = spec
                    await self._steer(spec)
                self._changed.clear()
                if self.object["spec"] == seen:
                    await self._changed.wait()
        finally:
            for backend in (self.active, self.pending):
                if backend is not None and backend.play is not None:
                    backend.play.cancel()

    async def _steer(self, spec: Object) -> None:
        """Towards a spec that has just come."""
        if self.pending is not None and _same(self.pending.spec, spec) and self.pending.spec == spec:
            return
        if self.active is not None and _same(self.active.spec, spec):
            await self._drop()
            if spec["serveConfigV2"] != self.active.spec["serveConfigV2"]:
                await self.application(self.active, "DEPLOYING")
                await self.application(self.active, "RUNNING")
            self.active.spec = spec
            await self.write()
            return
        await self._drop()
        self._versions += 1
        self.pending = Backend(f"{self.name}-{self.uid[:4]}{self._versions}", spec)
        await self.write()
        behaviour = self.cluster.service_behaviour(self)
        self.pending.play = asyncio.create_task(self.cluster.guarded(behaviour(self, self.pending)))

    async def _drop(self) -> None:
        """End the cluster that was to take over."""
        if self.pending is not None:
            dropped, self.pending = self.pending, None
            if dropped.play is not None:
                dropped.play.cancel()
            self.cluster.note(self, "Dropped")
            await self.cluster.kubelet.delete(dropped.pods)

    async def deploy(self, backend: Backend) -> None:
        """Pods run and the applications are being deployed."""
        spec, common = backend.spec["rayClusterConfig"], {"ray.io/cluster": backend.name, "ray.io/is-ray-node": "yes"}
        create = self.cluster.kubelet.create
        template = spec["headGroupSpec"]["template"]
        backend.pods = [await create(self.object, f"{backend.name}-head", template, common | {"ray.io/node-type": "head"})]
        for group in spec.get("workerGroupSpecs") or ():
            for i in range(group.get("replicas", 0)):
                extra = common | {"ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
                name = f"{backend.name}-{group['groupName']}-{i}"
                backend.pods.append(await create(self.object, name, group["template"], extra))
        await asyncio.gather(*(self.cluster.kubelet.run(pod) for pod in backend.pods))
        await self.application(backend, "DEPLOYING")

    async def application(self, backend: Backend, status: str, message: str = "") -> None:
        """State of all applications of a cluster."""
        named = [one["name"] for one in yaml.safe_load(backend.spec["serveConfigV2"])["applications"]]
        health = {"RUNNING": "HEALTHY", "DEPLOYING": "UPDATING"}.get(status, "UNHEALTHY")
        deployments = {"ModelServer": {"status": health, "message": message}}
        backend.applications = {
            name: {"status": status, "message": message, "serveDeploymentStatuses": deployments} for name in named
        }
        await self.write()
        self.cluster.note(self, status)

    async def promote(self, backend: Backend) -> None:
        """The cluster is healthy: the traffic goes there, and the one before ends."""
        await self.application(backend, "RUNNING")
        before, self.active, self.pending = self.active, backend, None
        await self.write()
        self.cluster.note(self, "Active")
        if before is not None:
            if before.play is not None:
                before.play.cancel()
            await self.cluster.kubelet.delete(before.pods)

    async def write(self) -> None:
        """The status that follows from the clusters."""
        running = self.active is not None and any(one["status"] == "RUNNING" for one in self.active.applications.values())
        if running:
            ready = condition("Ready", "True", "NonZeroServeEndpoints", "Number of serve endpoints is greater than 0")
        elif self.timed_out:
            ready = condition("Ready", "False", "InitializingTimeout", "The RayService did not become ready in time")
        else:
            reason = "ZeroServeEndpoints" if self.active is not None else "Initializing"
            ready = condition("Ready", "False", reason, "RayService is initializing")
        if self.active is not None and self.pending is not None:
            upgrade = condition("UpgradeInProgress", "True", "BothActivePendingClustersExist")
        else:
            upgrade = condition("UpgradeInProgress", "False", "NoPendingCluster" if self.active else "Initializing")
        status: Object = {
            "observedGeneration": self.object["metadata"]["generation"],
            "serviceStatus": "Running" if running else "",
            "numServeEndpoints": int(running),
            "activeServiceStatus": self.active.status() if self.active else None,
            "pendingServiceStatus": self.pending.status() if self.pending else None,
            "lastUpdateTime": now(),
        }
        status["conditions"] = self._conditions = [_kept(one, self._conditions) for one in (ready, upgrade)]
        await self.cluster.rest.replace_status(RAY_SERVICES, self.namespace, self.name, status)

    async def time_out(self) -> None:
        """`InitializingTimeout`: terminal."""
        self.timed_out = True
        await self.write()


ServiceBehaviour = Callable[[RayService, Backend], Awaitable[None]]


def healthy(until: threading.Event | None = None, ill: threading.Event | None = None) -> ServiceBehaviour:
    """It becomes healthy.

    Args:
        until: not before this is set.
        ill: once this is set its replicas fail their health checks.
    """

    async def play(service: RayService, backend: Backend) -> None:
        await service.deploy(backend)
        if until is not None:
            await happens(until)
        await service.promote(backend)
        if ill is not None:
            await happens(ill)
            await service.application(backend, "UNHEALTHY", "replica failed its health check")

    return play


def never_healthy() -> ServiceBehaviour:
    """Its replicas start for ever."""

    async def play(service: RayService, backend: Backend) -> None:
        await service.deploy(backend)
        await asyncio.Event().wait()

    return play


def deploy_failed(message: str = "RuntimeError: no such model") -> ServiceBehaviour:
    """Its replicas cannot be built."""

    async def play(service: RayService, backend: Backend) -> None:
        await service.deploy(backend)
        await service.application(backend, "DEPLOY_FAILED", message)

    return play


def initializing_timeout() -> ServiceBehaviour:
    """KubeRay gives up for good."""

    async def play(service: RayService, backend: Backend) -> None:
        await service.deploy(backend)
        await service.time_out()

    return play


def _kept(one: dict[str, str], before: list[dict[str, str]]) -> dict[str, str]:
    """A condition with the time of its last change."""
    same = [b for b in before if b["type"] == one["type"] and b["status"] == one["status"]]
    return one | {"lastTransitionTime": same[0]["lastTransitionTime"]} if same else one


def _same(one: Object, other: Object) -> bool:
    """Whether two specs share a Ray cluster: KubeRay's hash passes over the numbers of workers."""
    return _hashed(one) == _hashed(other)


def _hashed(spec: Object) -> str:
    config = copy.deepcopy(spec["rayClusterConfig"])
    for group in config.get("workerGroupSpecs") or ():
        for key in ("replicas", "minReplicas", "maxReplicas", "scaleStrategy"):
            group.pop(key, None)
    return json.dumps(config, sort_keys=True)
