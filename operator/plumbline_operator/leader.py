"""What only the leader does, in a thread and an event loop of its own: the election and the probes never wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import kopf

from plumbline_operator import handlers, metrics
from plumbline_operator.audit import Audit
from plumbline_operator.builders import build
from plumbline_operator.cache import Cache
from plumbline_operator.cluster import Cluster
from plumbline_operator.controller import Controller
from plumbline_operator.kinds import RAY, RUN, Resource
from plumbline_operator.queue import backoff
from plumbline_operator.settings import Settings

log = logging.getLogger(__name__)
LOOK_FOR_KINDS, LOOK_FOR_MORE_KINDS = 10.0, 60.0  # seconds: while a needed kind is missing, and else
STOP = 8.0  # seconds for what is in hand, then again for the watches
STUCK, STALLED = 120.0, 60.0  # seconds
SCANNED = 3.0  # seconds from kopf's first watch to its last


class Leader(threading.Thread):
    """Watches and reconciles until it is stopped.

    Args:
        namespaces: to watch; (None,) for all.
        may_write: whether this process still leads.
        ended: called at the end, in this thread.
    """

    def __init__(
        self,
        settings: Settings,
        namespaces: Iterable[str | None],
        may_write: Callable[[], bool],
        identity: str,
        ended: Callable[[], None],
    ) -> None:
        super().__init__(name="leader", daemon=True)
        self._settings, self._namespaces = settings, list(namespaces)
        self._may_write, self._identity, self._ended = may_write, identity, ended
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._stopping = False
        self._pulse, self._listed, self._problems = time.monotonic(), False, list[str]()
        self.failed = False
        """Whether it ended by an error of its own."""

    def run(self) -> None:
        try:
            asyncio.run(self._lead())
        except Exception:
            self.failed = True
            log.exception("the leader ended by an error")
        finally:
            metrics.forget_all()
            self._ended()

    def stop(self) -> None:
        """Finish what is in hand and end. From any thread."""
        self._stopping = True
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._stop.set)

    def problems(self) -> list[str]:
        """Why this process should be restarted. An API server that cannot be reached is no reason."""
        if not self.is_alive():
            return ["the leader's thread has ended"]
        silent = time.monotonic() - self._pulse
        if silent > STALLED:
            return [f"the leader's event loop has not run for {silent:.0f} s"]
        return list(self._problems)

    @property
    def listed(self) -> bool:
        """Whether all objects are known and the reconciles have begun."""
        return self._listed

    async def _lead(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if self._stopping:
            return
        failures = 0
        async with Cluster(self._may_write) as cluster:
            while not self._stop.is_set():
                begun = time.monotonic()
                try:
                    self._pulse, self._problems = begun, []
                    await self._session(cluster, await cluster.served(), self._stop)
                except Exception as error:
                    failures = 1 if time.monotonic() - begun > STALLED else failures + 1
                    delay = min(10.0, backoff(failures))
                    log.error("watching ended, again in %.1f s: %s", delay, str(error) or type(error).__name__)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stop.wait(), delay)

    async def _session(self, cluster: Cluster, served: frozenset[Resource], stop: asyncio.Event) -> None:
        """Watch and reconcile until a kind comes or goes, the watches fail, or all is to stop."""
        _tell(served)
        cache, listed, end = Cache(), asyncio.Event(), asyncio.Event()
        kinds = {resource.kind for resource in served}
        controller = Controller(cluster, cache, self._settings, build, self._identity, kinds)
        audit = Audit(cluster, cache, controller, served, self._namespaces)
        names = [namespace for namespace in self._namespaces if namespace is not None]
        if await self._nothing_there(cluster, served):
            listed.set()  # kopf has no event to tell of
        # kopf cancels, when it ends, the tasks that were created after it.
        work = _task(self._work(controller, audit, listed))
        watched: set[tuple[str, str, str]] = set()
        aside = [
            _task(self._beat(controller, audit)),
            _task(_until_kinds_change(cluster, served)),
            _task(_check(served, watched)),
            _task(stop.wait()),
        ]
        watch = _task(
            kopf.operator(
                registry=handlers.registry(controller, served, listed),
                settings=handlers.settings(served, watched),
                standalone=True,
                clusterwide=not names,
                namespaces=names,
                stop_flag=end,
            )
        )
        try:
            done, _ = await asyncio.wait([work, watch, *aside], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._listed = False
            controller.queue.close()
            listed.set()
            await asyncio.wait([work], timeout=STOP)
            for task in (work, *aside):
                task.cancel()
            end.set()
            await asyncio.wait([watch], timeout=STOP)
            watch.cancel()
            ended = await asyncio.gather(work, watch, *aside, return_exceptions=True)
            metrics.forget_all()
        for task, result in zip((work, watch, *aside), ended, strict=True):
            if task in done and isinstance(result, Exception):
                raise result
        if watch in done:
            raise RuntimeError("kopf ended by itself")

    async def _work(self, controller: Controller, audit: Audit, listed: asyncio.Event) -> None:
        await listed.wait()
        self._listed = True
        auditing = _task(audit.run(self._settings.audit_interval))
        try:
            await controller.work()
        finally:
            auditing.cancel()

    async def _nothing_there(self, cluster: Cluster, served: frozenset[Resource]) -> bool:
        for resource in served:
            for namespace in self._namespaces:
                async for _ in cluster.metadata(resource, namespace):
                    return False
        return True

    async def _beat(self, controller: Controller, audit: Audit) -> None:
        """Tell once a second how it is."""
        while True:
            self._pulse = time.monotonic()
            metrics.QUEUE_DEPTH.set(controller.queue.depth())
            problems = [f"events of {kind} have been missed in two audits in a row" for kind in sorted(audit.stale)]
            if (busy := controller.queue.busy()) > STUCK:
                problems.append(f"a reconcile has been running for {busy:.0f} s")
            if (stalled := controller.queue.stalled()) > STALLED and self._listed:
                problems.append(f"work has been due for {stalled:.0f} s and none was done")
            self._problems = problems
            await asyncio.sleep(1.0)


async def _until_kinds_change(cluster: Cluster, served: frozenset[Resource]) -> None:
    while True:
        await asyncio.sleep(LOOK_FOR_KINDS if not served.issuperset((RUN, *RAY)) else LOOK_FOR_MORE_KINDS)
        with contextlib.suppress(Exception):  # asked again soon
            found = await cluster.served()
            if found != served:
                log.info("kinds have come or gone: watching anew")
                return


async def _check(served: frozenset[Resource], watched: set[tuple[str, str, str]]) -> None:
    """See that kopf watches all kinds.

    Raises:
        RuntimeError: it does not.
    """
    while not watched:  # if it cannot begin at all it ends by itself
        await asyncio.sleep(0.5)
    await asyncio.sleep(SCANNED)
    deaf = sorted(resource.kind for resource in served if resource.key not in watched)
    if deaf:
        raise RuntimeError(f"kopf does not watch {', '.join(deaf)}")
    await asyncio.Event().wait()


def _tell(served: frozenset[Resource]) -> None:
    if RUN not in served:
        log.error("the API server does not know AlignmentRun: install Plumbline's CustomResourceDefinition")
    if not served.issuperset(RAY):
        log.warning("the API server does not know ray.io/v1: install KubeRay 1.7 or later; runs wait until then")


def _task(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(work)
