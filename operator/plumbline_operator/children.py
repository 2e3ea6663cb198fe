"""Children of a run: made, adopted, applied and deleted. Nothing that a run does not own is ever touched."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from plumbline.api.run import KIND, RunSpec
from plumbline_operator import names
from plumbline_operator.cache import KINDS, Cache
from plumbline_operator.cluster import ApiError, Cluster
from plumbline_operator.desired import Access, Desired, PlanJob, Reference, StageJob
from plumbline_operator.observed import Fault, Meta, PodView, RunView, project
from plumbline_operator.settings import Patience, StagePods

Object = dict[str, Any]
Build = Callable[[Desired, Meta, RunSpec, StagePods], list[Object]]
HASH = "plumbline.dev/hash"
"""Annotation: hash of the object as it was built, to see without a request that there is nothing to apply."""
TRIES = 3  # to create, where what had the name is gone when asked for
VERIFIED = 600.0  # seconds that an applied object that is not watched counts as untouched


class Trouble(Exception):
    """A child cannot be made now, for a reason that users must know."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(reason, message)


def child(run: str, desired: Desired) -> tuple[str, str]:
    """(kind, name) of the object that a desire is about; for Access the ConfigMap."""
    if isinstance(desired, Access):
        return "ConfigMap", names.state(run)
    if isinstance(desired, PlanJob):
        return "Job", names.plan_job(run, desired.generation, desired.attempt)
    if isinstance(desired, StageJob):
        return "RayJob", names.ray_job(run, desired.stage, desired.attempt)
    return "RayService", names.ray_service(run, desired.stage)


class Children:
    """Writes children of runs. The answers go into the cache at once, so that the next reconcile sees what this one did.

    Args:
        served: kinds that the API server has.
    """

    def __init__(
        self, cluster: Cluster, cache: Cache, build: Build, pods: StagePods, patience: Patience, served: Iterable[str]
    ) -> None:
        self._cluster, self._cache, self._build, self._pods = cluster, cache, build, pods
        self._ending = patience.ending
        self._served = frozenset(served)
        self._applied: dict[str, dict[tuple[str, str], tuple[str, float]]] = {}

    async def make(self, run: Meta, spec: RunSpec, desired: Desired) -> bool:
        """Create or apply; False where there was nothing to do.

        Raises:
            Trouble: it cannot be made as things are.
        """
        kind, _ = child(run.name, desired)
        if kind.startswith("Ray") and kind not in self._served:
            raise Trouble("KubeRayMissing", _kuberay_missing(kind))
        if isinstance(desired, StageJob) and not desired.first:
            await self._check_pods(run, desired)
        values = self._build(desired, run, spec, self._pods)
        if isinstance(desired, PlanJob | StageJob):
            await self._launch(run, values[0])
            return True
        state = self._cache.get("ConfigMap", run.namespace, names.state(run.name))
        known = state is not None and state.meta.owner == run.uid  # then the others are there too, most likely
        return any([await self._ensure(run, value, known) for value in values])

    async def delete(self, run: Meta, reference: Reference, now: float) -> None:
        """Delete a child that the cache knows."""
        view = self._cache.get(reference.kind, run.namespace, reference.name)
        if view is None or view.meta.owner != run.uid or view.meta.deleted is not None:
            return
        meta = view.meta
        try:
            await self._cluster.delete(reference.kind, meta.namespace, meta.name, meta.uid)
            self._cache.mark_deleted(reference.kind, meta.namespace, meta.name, meta.uid, now)
        except ApiError as error:
            if not (error.gone or error.conflict):
                raise
            self._cache.drop(reference.kind, meta.namespace, meta.name, meta.uid)

    async def prune(self, run: RunView, keys: Iterable[str]) -> None:
        """Remove keys from the run's ConfigMap."""
        name = names.state(run.meta.name)
        view = self._cache.get("ConfigMap", run.meta.namespace, name)
        if view is None or view.meta.owner != run.meta.uid:
            return
        changed = await self._cluster.merge("ConfigMap", run.meta.namespace, name, {"data": dict.fromkeys(keys)})
        self._cache.put(project(changed))

    def doubt(self, uid: str) -> None:
        """An attempt failed, perhaps for want of what is not watched: look whether it is as it was made."""
        self._applied.pop(uid, None)

    def forget(self, uid: str) -> None:
        """The run is gone."""
        self._applied.pop(uid, None)

    async def _check_pods(self, run: Meta, desired: StageJob) -> None:
        """KubeRay does not wait for the Pods of an earlier attempt, and the cache may not know of them yet."""
        for value in await self._cluster.pods(run.namespace, run.uid, desired.stage):
            pod = project(value)
            if not isinstance(pod, PodView) or pod.ended:
                continue
            if pod.meta.deleted is not None and time.time() >= pod.meta.deleted + self._ending:
                continue
            self._cache.put(pod)
            raise Trouble("EarlierAttemptEnding", f"Pod '{pod.meta.name}' of an earlier attempt is ending")

    async def _launch(self, run: Meta, value: Object) -> None:
        """Create what is never changed later. What is there already under its name, and ours, is what an earlier try made."""
        made = await self._made(run, value)
        if not _is_labelled(made, value):
            body = {"metadata": {"labels": value["metadata"]["labels"]}}
            made = await self._cluster.merge(value["kind"], run.namespace, value["metadata"]["name"], body)
        self._cache.put(project(made))

    async def _ensure(self, run: Meta, value: Object, known: bool) -> bool:
        """Create, or apply on the server's side where it differs from what was applied last."""
        kind, meta = value["kind"], value["metadata"]
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
        meta["annotations"] = {**(meta.get("annotations") or {}), HASH: digest}
        if self._is_applied(run, kind, meta["name"], digest):
            return False
        live = await self._owned(run, value) if known else None
        if live is None:
            live = await self._made(run, value)
        same = (live["metadata"].get("annotations") or {}).get(HASH) == digest and _is_labelled(live, value)
        if not same or (kind not in KINDS.values() and not _covers(live, value)):
            await self._cluster.hand_over(live)
            live = await self._apply(value, live["metadata"]["uid"])
        if kind in KINDS.values():
            self._cache.put(project(live))
        self._applied.setdefault(run.uid, {})[kind, meta["name"]] = (digest, time.monotonic())
        return True

    def _is_applied(self, run: Meta, kind: str, name: str, digest: str) -> bool:
        then, when = self._applied.get(run.uid, {}).get((kind, name), ("", 0.0))
        if kind in KINDS.values():  # watched: the cache knows better than our memory
            view = self._cache.get(kind, run.namespace, name)
            ours = view is not None and view.meta.owner == run.uid and view.meta.deleted is None
            return view is not None and ours and view.meta.annotations.get(HASH) == digest
        return then == digest and time.monotonic() < when + VERIFIED

    async def _made(self, run: Meta, value: Object) -> Object:
        """The object, created now or by an earlier try.

        Raises:
            Trouble: there is one of that name which is not the run's, or it is refused.
            ApiError: none could be made or found.
        """
        for _ in range(TRIES):  # what an earlier run left may go between the two requests
            live = await self._create(value) or await self._owned(run, value)
            if live is not None:
                return live
        raise ApiError(409, "Conflict", f"{_named(value)} was there and then gone {TRIES} times: try again")

    async def _create(self, value: Object) -> Object | None:
        """The created object; None where something of that name exists."""
        try:
            return await self._cluster.create(value)
        except ApiError as error:
            if error.exists:
                return None
            raise _explained(value, error) from error

    async def _apply(self, value: Object, uid: str) -> Object:
        try:
            return await self._cluster.apply(value, uid)
        except ApiError as error:
            raise _explained(value, error) from error

    async def _owned(self, run: Meta, value: Object) -> Object | None:
        """The object of that name, if there is one.

        Raises:
            Trouble: it is not the run's.
        """
        try:
            live = await self._cluster.get(value["kind"], run.namespace, value["metadata"]["name"])
        except ApiError as error:
            if error.not_found:
                return None
            raise
        owners = live["metadata"].get("ownerReferences") or []
        if any(owner.get("uid") == run.uid for owner in owners):
            return live
        owner = next((one for one in owners if one.get("controller")), None) or next(iter(owners), None)
        if owner is not None and (owner["kind"], owner["name"]) == (KIND, run.name):
            raise Trouble("NameTaken", f"{_named(value)} of an earlier run of this name is not deleted yet")
        whose = f"belongs to {owner['kind']} '{owner['name']}'" if owner else "has no owner"
        words = f"{_named(value)} exists and {whose}; rename or delete it, or give the run another name"
        raise Trouble("NameTaken", words)


def _is_labelled(live: Object, value: Object) -> bool:
    """Whether it still has our labels: without them the watches do not see it."""
    kept, wanted = live["metadata"].get("labels") or {}, value["metadata"].get("labels") or {}
    return all(kept.get(key) == wanted[key] for key in wanted if key.startswith("plumbline.dev/"))


def _covers(live: Any, value: Any) -> bool:
    """Whether all that we set is still so; the API server and others may have added to it."""
    if isinstance(value, dict):
        return isinstance(live, dict) and all(_covers(live.get(key), one) for key, one in value.items())
    if isinstance(value, list):
        return isinstance(live, list) and len(live) == len(value) and all(map(_covers, live, value))
    return bool(live == value)


def _explained(value: Object, error: ApiError) -> Exception:
    """What users can do something about becomes Trouble; the rest passes by itself."""
    words = f"{_named(value)}: {error}"
    if error.status == 404 and value["kind"].startswith("Ray"):
        return Trouble("KubeRayMissing", _kuberay_missing(value["kind"]))
    if error.status == 403:
        quota = "exceeded quota" in str(error)
        return Trouble("QuotaExceeded" if quota else "Forbidden", words)
    if error.status in (400, 404, 422) or (error.status == 500 and "failed calling webhook" in words):
        return Trouble("ChildRejected", words)
    return error


def _kuberay_missing(kind: str) -> str:
    return f"the cluster does not know ray.io/v1 {kind}: install KubeRay 1.7 or later; the run then goes on by itself"


def _named(value: Object) -> str:
    return f"{value['kind']} '{value['metadata']['name']}'"
