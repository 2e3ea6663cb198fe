"""Scheduler and kubelet: Pods that pass through the states that the operator reads, and end when they are let."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from plumbline.api import labels
from support.rest import CLAIMS, PODS, SECRETS, Object, Rest

FINALIZER = "plumbline.test/kubelet"  # a Pod stays visible as terminating until the kubelet lets go
NODE = "node-1"
POLL = 0.05
LEAD = 5.0
"""Seconds from what happened to a Pod to the end of its job, where the operator tells the one by the other: watches of
different kinds need not be equally fast, and nothing that the operator writes says that it has seen the Pod."""


def now(shift: float = 0.0) -> str:
    """The time in whole seconds, or one that is later by so many seconds."""
    return (datetime.now(UTC) + timedelta(seconds=shift)).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(type: str, status: str, reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": type, "status": status, "reason": reason or type, "message": message, "lastTransitionTime": now()}


async def happens(signal: threading.Event) -> None:
    """Wait for a signal that a test gives from its own thread."""
    while not signal.is_set():
        await asyncio.sleep(POLL / 2)


class Kubelet:
    """All nodes.

    Attributes:
        linger: seconds that deleted Pods of a namespace take to end; None: their node is gone, they never end.
        overlaps: what it saw of two attempts at a stage at once.
    """

    def __init__(self, rest: Rest) -> None:
        self._rest = rest
        self._alive: dict[str, Object] = {}
        self._ended: set[str] = set()
        self._ending: dict[str, asyncio.Task[None]] = {}
        self.linger: dict[str, float | None] = {}
        self.overlaps: list[str] = []

    async def create(self, owner: Object, name: str, template: Object, extra: dict[str, str]) -> Object:
        """A Pod of a template, pending."""
        meta = template.get("metadata") or {}
        of = owner["metadata"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": of["namespace"],
                "labels": {**(meta.get("labels") or {}), **extra},
                "annotations": meta.get("annotations") or {},
                "finalizers": [FINALIZER],
                "ownerReferences": [
                    {
                        "apiVersion": owner["apiVersion"],
                        "kind": owner["kind"],
                        "name": of["name"],
                        "uid": of["uid"],
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        self._check_overlap(pod["metadata"])
        created = await self._rest.create(PODS, pod)
        self._alive[created["metadata"]["uid"]] = created
        return created

    def _check_overlap(self, meta: Object) -> None:
        mine = meta["labels"]
        if labels.STAGE not in mine or labels.ATTEMPT not in mine:  # plans and endpoints
            return
        for other in self._alive.values():
            its = other["metadata"]["labels"]
            if other["metadata"]["uid"] in self._ended:
                continue
            same = all(its.get(key) == mine.get(key) for key in (labels.RUN_UID, labels.STAGE))
            lost = self.linger.get(other["metadata"]["namespace"], 0.0) is None
            if same and not lost and its.get(labels.ATTEMPT) != mine[labels.ATTEMPT]:
                self.overlaps.append(f"{meta['name']} was started while {other['metadata']['name']} was there")

    async def run(self, pod: Object) -> None:
        """Until its containers run: as soon as the claims and Secrets that it needs exist."""
        while missing := await self._missing(pod["metadata"]["namespace"], CLAIMS, _claims(pod)):
            await self.unschedulable(pod, f'0/3 nodes are available: persistentvolumeclaim "{missing}" not found.')
            await asyncio.sleep(POLL)
        await self._rest.patch(PODS, *_key(pod), {"spec": {"nodeName": NODE}})
        while missing := await self._missing(pod["metadata"]["namespace"], SECRETS, _secrets(pod)):
            await self.waiting(pod, "CreateContainerConfigError", f'secret "{missing}" not found')
            await asyncio.sleep(POLL)
        state = {"running": {"startedAt": now()}}
        ready = [condition("PodScheduled", "True"), condition("ContainersReady", "True"), condition("Ready", "True")]
        await self.status(pod, phase="Running", conditions=ready, containerStatuses=[container(pod, state, ready=True)])

    async def unschedulable(self, pod: Object, message: str) -> None:
        await self.status(pod, phase="Pending", conditions=[condition("PodScheduled", "False", "Unschedulable", message)])

    async def waiting(self, pod: Object, reason: str, message: str) -> None:
        """Scheduled, but its container cannot start."""
        await self.status(
            pod,
            phase="Pending",
            conditions=[condition("PodScheduled", "True"), condition("Ready", "False", "ContainersNotReady")],
            containerStatuses=[container(pod, {"waiting": {"reason": reason, "message": message}})],
        )

    async def terminated(self, pod: Object, code: int, reason: str = "", message: str = "") -> None:
        """Its container ended for good."""
        self._ended.add(pod["metadata"]["uid"])
        ended = {"exitCode": code, "reason": reason or ("Completed" if code == 0 else "Error"), "message": message}
        await self.status(
            pod,
            phase="Succeeded" if code == 0 else "Failed",
            conditions=[condition("PodScheduled", "True"), condition("Ready", "False", "PodFailed")],
            containerStatuses=[container(pod, {"terminated": ended | {"startedAt": now(), "finishedAt": now()}})],
        )

    async def disrupted(self, pod: Object, reason: str, message: str) -> None:
        """The Pod is taken away: its node is lost, or somebody more important needs it."""
        self._ended.add(pod["metadata"]["uid"])
        await self.status(pod, phase="Failed", conditions=[condition("DisruptionTarget", "True", reason, message)])

    async def status(self, pod: Object, **fields: Any) -> None:
        await self._rest.patch(PODS, *_key(pod), {"status": fields}, "status")

    async def delete(self, pods: list[Object]) -> None:
        """And wait until they are gone."""
        for pod in pods:
            await self._rest.delete(PODS, *_key(pod))
        while any(pod["metadata"]["uid"] in self._alive for pod in pods):
            await asyncio.sleep(POLL)

    async def follow(self) -> None:
        """Let go of Pods that are being deleted."""
        async for type, pod in self._rest.follow(PODS):
            meta = pod["metadata"]
            if type == "DELETED":
                self._alive.pop(meta["uid"], None)
            elif "deletionTimestamp" in meta and meta["uid"] in self._alive and meta["uid"] not in self._ending:
                self._ending[meta["uid"]] = asyncio.create_task(self._end(pod))

    async def _end(self, pod: Object) -> None:
        deleted = time.monotonic()
        while (linger := self.linger.get(pod["metadata"]["namespace"], 0.0)) is None or (
            time.monotonic() - deleted < linger
        ):
            await asyncio.sleep(POLL)
        self._alive.pop(pod["metadata"]["uid"], None)
        await self._rest.patch(PODS, *_key(pod), {"metadata": {"finalizers": None}})
        del self._ending[pod["metadata"]["uid"]]

    async def _missing(self, namespace: str, kind: Any, names: list[str]) -> str | None:
        for name in names:
            if await self._rest.get(kind, namespace, name) is None:
                return name
        return None


def container(pod: Object, state: Object, ready: bool = False, restarts: int = 0, last: Object | None = None) -> Object:
    """Status of the first container."""
    first = pod["spec"]["containers"][0]
    status = {
        "name": first["name"],
        "image": first.get("image", ""),
        "imageID": "",
        "ready": ready,
        "restartCount": restarts,
        "state": state,
    }
    return status | ({"lastState": last} if last else {})


def _key(pod: Object) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def _claims(pod: Object) -> list[str]:
    volumes = pod["spec"].get("volumes") or ()
    return [v["persistentVolumeClaim"]["claimName"] for v in volumes if v.get("persistentVolumeClaim")]


def _secrets(pod: Object) -> list[str]:
    found = []
    for one in pod["spec"]["containers"]:
        found += [s["secretRef"]["name"] for s in one.get("envFrom") or () if s.get("secretRef")]
        sources = [e.get("valueFrom") or {} for e in one.get("env") or ()]
        found += [s["secretKeyRef"]["name"] for s in sources if s.get("secretKeyRef")]
    return found
