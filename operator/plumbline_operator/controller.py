"""The controller: takes runs from the queue, asks `reconcile` what to do, and does it."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp

from plumbline.api.run import API_VERSION, KIND
from plumbline.api.status import RunStatus
from plumbline_operator import events, logs, metrics
from plumbline_operator.cache import KINDS, Cache, RunKey
from plumbline_operator.children import Build, Children, Trouble, child
from plumbline_operator.cluster import FIELD_MANAGER, ApiError, Cluster, NotLeading
from plumbline_operator.desired import Access, PlanJob, StageJob
from plumbline_operator.draft import Outcome
from plumbline_operator.observed import Fault, Observed, RunView, View, project
from plumbline_operator.queue import WorkQueue, backoff
from plumbline_operator.reconcile import parse, reconcile
from plumbline_operator.references import References
from plumbline_operator.settings import Patience, Settings

log = logging.getLogger(__name__)
WORKERS = 8
POSTS = 2  # Events that are posted at the same time
RESYNC = 600.0  # seconds
Decide = Callable[[Observed, Patience, float], Outcome]


@dataclass
class _Trouble:
    """A child that could not be made.

    Attributes:
        again: when to try again, on the monotonic clock.
    """

    fault: Fault
    failures: int
    again: float


class Controller:
    """Reconciles runs, one worker at a time for each.

    Args:
        identity: of this process, for Events.
        served: kinds that the API server has.
    """

    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        settings: Settings,
        build: Build,
        identity: str = FIELD_MANAGER,
        served: Iterable[str] = ("RayJob", "RayService"),
        decide: Decide = reconcile,
    ) -> None:
        self._cluster, self._cache, self._settings, self._decide = cluster, cache, settings, decide
        self._children = Children(cluster, cache, build, settings.stage_pods, settings.patience, served)
        self._references = References(cluster, settings)
        self._identity = identity
        self.queue: WorkQueue[RunKey] = WorkQueue()
        self.heard: Counter[tuple[str, str]] = Counter()
        """How many events the watches have told of, by kind and namespace."""
        self._troubles: dict[str, dict[tuple[str, str], _Trouble]] = {}  # by run UID and child
        self._uids: dict[RunKey, str] = {}
        self._written: dict[RunKey, float] = {}  # when the status was written last
        self._woken: dict[RunKey, float] = {}  # when the first event came that no reconcile has answered
        self._numbers = itertools.count(1)
        self._posts: set[asyncio.Task[None]] = set()
        self._posting = asyncio.Semaphore(POSTS)

    def saw(self, view: View) -> None:
        """A watch told of an object."""
        self.heard[KINDS[type(view)], view.meta.namespace] += 1
        if self._cache.put(view):
            self.wake(view)

    def gone(self, kind: str, namespace: str, name: str, uid: str, version: int) -> None:
        """A watch told that an object is gone, or that it no longer has the label that the watch selects by."""
        self.heard[kind, namespace] += 1
        view = self._cache.get(kind, namespace, name)
        key = self._cache.run_of(view) if view is not None else None
        if self._cache.drop(kind, namespace, name, uid, version) is not None and key is not None:
            self._woken.setdefault(key, time.monotonic())
            self.queue.add(key)

    def wake(self, view: View) -> None:
        """Something about the run of this object may have changed."""
        key = self._cache.run_of(view)
        if key is not None:
            self._woken.setdefault(key, time.monotonic())
            self.queue.add(key)

    async def resync(self, interval: float = RESYNC) -> None:
        """Look at every run in each interval, whatever the watches tell and however the clock was set; for ever."""
        while True:
            runs = self._cache.runs()
            for number, key in enumerate(runs):
                self.queue.add_after(key, interval * (number + 1) / len(runs))
            await asyncio.sleep(interval)

    async def work(self) -> None:
        """Work until the queue is closed; what is in hand then is finished."""
        await asyncio.gather(*(self._worker() for _ in range(WORKERS)))
        await self.told()

    async def told(self) -> None:
        """Return when every Event so far is posted."""
        await asyncio.gather(*self._posts)

    async def _worker(self) -> None:
        while (key := await self.queue.get()) is not None:
            with logs.about(run="/".join(key), reconcile=next(self._numbers)):
                try:
                    await self._attempt(key)
                finally:
                    self.queue.done(key)

    async def _attempt(self, key: RunKey) -> None:
        woken = self._woken.pop(key, None)
        try:
            with metrics.RECONCILE_DURATION.time():
                await self.reconcile_run(key)
        except NotLeading:
            log.info("not leading: left to the next leader")
            self.queue.retry(key)  # a renewal of the lease that was only late makes this process the next one
            return
        except Exception as error:
            name = error.reason or str(error.status) if isinstance(error, ApiError) else type(error).__name__
            metrics.RECONCILE_ERRORS.labels(name).inc()
            delay = self.queue.retry(key)
            expected = isinstance(error, ApiError | aiohttp.ClientError | TimeoutError)
            log.warning("failed, again in %.1f s: %s", delay, str(error) or name, exc_info=not expected)
            if woken is not None:
                self._woken.setdefault(key, woken)
            return
        self.queue.succeeded(key)
        if woken is not None:
            metrics.EVENT_LAG.observe(time.monotonic() - woken)

    async def reconcile_run(self, key: RunKey) -> None:
        """One reconcile: the status first, because an attempt's number must be on record before a child carries it."""
        observed = self._observed(key)
        if observed is None:
            self._forget(key)
            return
        outcome = await self._decided(observed)
        if outcome.status is None:
            return
        old, new = observed.run.status, outcome.status
        if not await self._write_status(key, observed.run, new):
            return
        metrics.observe(*key, old, new)
        try:
            await self._write_children(key, observed.run, outcome)
        finally:
            for note in events.notes(old, new):  # told beside the work: nobody waits for them
                task = asyncio.create_task(self._post(observed.run, note))
                self._posts.add(task)
                task.add_done_callback(self._posts.discard)
        if outcome.delete_run:
            log.info("the run's time to live is over: deleting it")
            await self._delete_run(observed.run)
        elif outcome.requeue is not None:
            self.queue.add_after(key, outcome.requeue)

    def _observed(self, key: RunKey) -> Observed | None:
        observed = self._cache.observed(key)
        if observed is None:
            return None
        uid = observed.run.meta.uid
        if self._uids.get(key, uid) != uid:  # a new run of an old name
            self._forget(key)
        self._uids[key] = uid
        faults = {one: trouble.fault for one, trouble in self._troubles.get(uid, {}).items()}
        pods = self._settings.stage_pods
        known = frozenset(pods.accelerators)
        return dataclasses.replace(observed, faults=faults, default_claim=pods.claim, accelerators=known)

    async def _decided(self, observed: Observed) -> Outcome:
        outcome = self._decide(observed, self._settings.patience, time.time())
        if not any(not isinstance(desired, Access) for desired in outcome.create):
            return outcome
        run = observed.run
        missing = await self._references.missing(run.meta.namespace, parse(run.meta.name, run.spec))
        if not missing:
            return outcome
        return self._decide(dataclasses.replace(observed, missing=missing), self._settings.patience, time.time())

    async def _write_status(self, key: RunKey, run: RunView, status: RunStatus) -> bool:
        """Write the status if it changed; False where the run is not what it was when this reconcile began."""
        value = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        if value == run.raw_status:
            return True
        if not significant(run.raw_status, value):
            wait = self._written.get(key, float("-inf")) + self._settings.progress_interval - time.monotonic()
            if wait > 0:
                self.queue.add_after(key, wait)
                return True
        try:
            written = await self._cluster.write_status(*key, str(run.meta.version), value)
        except ApiError as error:
            if error.gone:
                self._cache.drop(KIND, *key, run.meta.uid)
            elif error.conflict:
                await self._refresh(key, run)
            else:
                raise
            self.queue.add(key)
            return False
        self._written[key] = time.monotonic()
        self._cache.put(project(written))
        return True

    async def _refresh(self, key: RunKey, run: RunView) -> None:
        try:
            self._cache.put(project(await self._cluster.get(KIND, *key)))
        except ApiError as error:
            if not error.gone:
                raise
            self._cache.drop(KIND, *key, run.meta.uid)

    async def _write_children(self, key: RunKey, run: RunView, outcome: Outcome) -> None:
        changed = bool(outcome.create) and await self._create(key, run, outcome)
        for reference in outcome.delete:
            await self._children.delete(run.meta, reference, time.time())
            log.info("deleted", extra={"fields": {"child": f"{reference.kind}/{reference.name}"}})
        if outcome.prune:
            await self._children.prune(run, outcome.prune)
        if changed or outcome.delete or outcome.prune:
            self.queue.add(key)  # the cache knows of it already; what follows from it?

    async def _create(self, key: RunKey, run: RunView, outcome: Outcome) -> bool:
        spec = parse(run.meta.name, run.spec)
        launches = {child(run.meta.name, one): one for one in outcome.create if not isinstance(one, Access)}
        troubles = self._troubles.setdefault(run.meta.uid, {})
        for settled in troubles.keys() - launches.keys():
            del troubles[settled]
        changed = not launches and await self._children.make(run.meta, spec, Access())
        for where, desired in launches.items():
            trouble = troubles.get(where)
            if trouble is not None and (wait := trouble.again - time.monotonic()) > 0:
                self.queue.add_after(key, wait)
                continue
            try:
                if isinstance(desired, PlanJob | StageJob) and desired.attempt > 1:
                    self._children.doubt(run.meta.uid)
                if Access() in outcome.create:
                    changed |= await self._children.make(run.meta, spec, Access())
                made = await self._children.make(run.meta, spec, desired)
            except Trouble as found:
                self._note(key, troubles, where, found.fault)
                continue
            troubles.pop(where, None)
            changed |= made
            if made:
                log.info("created", extra={"fields": {"child": "/".join(where)}})
        return changed

    def _note(self, key: RunKey, troubles: dict[tuple[str, str], _Trouble], where: tuple[str, str], fault: Fault) -> None:
        """Remember why a child could not be made: the next reconcile says it; a later one tries again."""
        known = troubles.get(where)
        failures = known.failures + 1 if known is not None else 1
        delay = backoff(failures)
        troubles[where] = _Trouble(fault, failures, time.monotonic() + delay)
        if known is None or known.fault != fault:
            log.warning("%s: %s", fault.reason, fault.message, extra={"fields": {"child": "/".join(where)}})
            delay = 0.0
        self.queue.add_after(key, delay)

    async def _post(self, run: RunView, note: events.Note) -> None:
        meta, now = run.meta, datetime.now(UTC)
        named = hashlib.sha256(f"{meta.uid} {note.reason} {note.message} {meta.generation}".encode()).hexdigest()[:16]
        about = {"apiVersion": API_VERSION, "kind": KIND, "namespace": meta.namespace, "name": meta.name, "uid": meta.uid}
        value: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta.name}.{named}", "namespace": meta.namespace},
            "involvedObject": about | {"resourceVersion": str(meta.version)},
            "type": note.type,
            "reason": note.reason,
            "action": note.action,
            "message": note.message,
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": self._identity[:128],
            "firstTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lastTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "count": 1,
        }
        try:
            async with self._posting:
                await self._cluster.create(value)
        except NotLeading:
            pass  # the next leader does not tell it; the status has it
        except ApiError as error:
            if not error.exists:
                log.warning("an Event could not be posted: %s", error)
        except (aiohttp.ClientError, TimeoutError) as error:
            log.warning("an Event could not be posted: %s", str(error) or type(error).__name__)

    async def _delete_run(self, run: RunView) -> None:
        meta = run.meta
        try:
            await self._cluster.delete(KIND, meta.namespace, meta.name, meta.uid)
            self._cache.mark_deleted(KIND, meta.namespace, meta.name, meta.uid, time.time())
        except ApiError as error:
            if not (error.gone or error.conflict):
                raise

    def _forget(self, key: RunKey) -> None:
        uid = self._uids.pop(key, None)
        if uid is not None:
            self._troubles.pop(uid, None)
            self._children.forget(uid)
        self._written.pop(key, None)
        metrics.forget(*key)


def significant(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two statuses differ in more than how far a stage is."""
    return _without_progress(old) != _without_progress(new)


def _without_progress(status: dict[str, Any]) -> dict[str, Any]:
    passing = ("progress", "metrics", "message")
    stages = [{key: value for key, value in stage.items() if key not in passing} for stage in status.get("stages") or ()]
    return {**{key: value for key, value in status.items() if key != "progress"}, "stages": stages}
