"""Kueue, as far as a RayJob with a queue can tell: a Workload that waits with words, and the end of `suspend`."""

from __future__ import annotations

import asyncio

from support.fake_kuberay.kubelet import POLL, condition
from support.rest import LOCAL_QUEUES, RAY_JOBS, WORKLOADS, Object, Rest

QUEUE = "kueue.x-k8s.io/queue-name"
NO_QUOTA = (
    "couldn't assign flavors to pod set workers: insufficient unused quota for nvidia.com/gpu in flavor h100, 4 more needed"
)


class Kueue:
    """Admits RayJobs.

    Attributes:
        full: namespaces whose queue has no quota left.
        preempted: namespaces whose admitted jobs have to go back.
    """

    def __init__(self, rest: Rest) -> None:
        self._rest = rest
        self.full: set[str] = set()
        self.preempted: set[str] = set()

    async def manage(self, job: Object) -> None:
        """One RayJob, until it is cancelled."""
        meta = job["metadata"]
        namespace, queue = meta["namespace"], meta["labels"][QUEUE]
        workload = await self._rest.create(
            WORKLOADS,
            {
                "apiVersion": "kueue.x-k8s.io/v1beta1",
                "kind": "Workload",
                "metadata": {
                    "namespace": namespace,
                    "name": f"rayjob-{meta['name']}-{meta['uid'][:5]}",
                    "ownerReferences": [
                        {
                            "apiVersion": "ray.io/v1",
                            "kind": "RayJob",
                            "name": meta["name"],
                            "uid": meta["uid"],
                            "controller": True,
                        }
                    ],
                },
                "spec": {"queueName": queue, "active": True},
            },
        )
        name, waits = workload["metadata"]["name"], ""
        while True:
            while (words := await self._waits(namespace, queue)) is not None:
                if words != waits:
                    reason = "Pending" if namespace in self.full else "Inadmissible"
                    await self._conditions(namespace, name, condition("QuotaReserved", "False", reason, words))
                    waits = words
                await asyncio.sleep(POLL)
            reserved = condition("QuotaReserved", "True", "QuotaReserved", f"Quota reserved in ClusterQueue of {queue}")
            await self._conditions(namespace, name, reserved, condition("Admitted", "True", "Admitted"))
            await self._rest.patch(RAY_JOBS, namespace, meta["name"], {"spec": {"suspend": False}})
            while namespace not in self.preempted:
                await asyncio.sleep(POLL)
            words = "Preempted to accommodate a workload of higher priority"
            evicted = condition("Evicted", "True", "Preempted", words)
            await self._conditions(
                namespace,
                name,
                evicted,
                condition("QuotaReserved", "False", "Pending", words),
                condition("Admitted", "False", "NoReservation", words),
            )
            await self._rest.patch(RAY_JOBS, namespace, meta["name"], {"spec": {"suspend": True}})
            while namespace in self.preempted:
                await asyncio.sleep(POLL)

    async def _waits(self, namespace: str, queue: str) -> str | None:
        """Why the job cannot be admitted."""
        if namespace in self.full:
            return NO_QUOTA
        if await self._rest.get(LOCAL_QUEUES, namespace, queue) is None:
            return f"LocalQueue {queue} doesn't exist"
        return None

    async def _conditions(self, namespace: str, name: str, *conditions: dict[str, str]) -> None:
        await self._rest.patch(WORKLOADS, namespace, name, {"status": {"conditions": list(conditions)}}, "status")


def definitions() -> list[Object]:
    """Minimal CustomResourceDefinitions in place of Kueue's."""
    return [_definition("Workload", "workloads"), _definition("LocalQueue", "localqueues")]


def _definition(kind: str, plural: str) -> Object:
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1beta1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": free, "status": free}}},
        "subresources": {"status": {}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.kueue.x-k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in for tests"},
        },
        "spec": {
            "group": "kueue.x-k8s.io",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "scope": "Namespaced",
            "versions": [version],
        },
    }
