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
LOOK_FOR_NOTHING = 5.0  # seconds
SETTLED = 2.0  # seconds that an API server may need at its start to know all kinds
STOP = 8.0  # seconds for what is in hand
STUCK, STALLED = 120.0, 60.0  # seconds
LEAVE = 2.0  # seconds for the watches to end; what they were told can be listed again
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
        self._halt: asyncio.Event | None = None
        self._halting = threading.Event()
        self._pulse, self._listed, self._problems = time.monotonic(), False, list[str]()
        self.failed = False
        """Whether it ended by an error of its own."""

    def run(self) -> None:
        try:
            self._lead()
        except Exception:
            self.failed = True
            log.exception("the leader ended by an error")
        finally:
            self._ended()

    def stop(self) -> None:
        """Finish what is in hand and end. From any thread."""
        self._halting.set()
        loop, halt = self._loop, self._halt
        if loop is not None and halt is not None:
            with contextlib.suppress(RuntimeError):  # this session has ended already
                loop.call_soon_threadsafe(halt.set)

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

    def _lead(self) -> None:
        """One session after the other, each in a loop of its own: kopf does not always end when it should."""
        failures = 0
        while not self._halting.is_set():
            begun = time.monotonic()
            self._pulse, self._problems = begun, []
            loop = asyncio.new_event_loop()
            try:
                loop.run_until_complete(self._log_in(loop))
            except Exception as error:
                failures = 1 if time.monotonic() - begun > STALLED else failures + 1
                delay = min(10.0, backoff(failures))
                log.error("watching ended, again in %.1f s: %s", delay, str(error) or type(error).__name__)
                self._halting.wait(delay)
            finally:
                _leave(loop)
                metrics.forget_all()

    async def _log_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._halt, self._loop = asyncio.Event(), loop
        if self._halting.is_set():
            return
        async with Cluster(self._may_write) as cluster:
            await self._session(cluster, await _served(cluster, (RUN, *RAY)), self._halt)

    async def _session(self, cluster: Cluster, served: frozenset[Resource], stop: asyncio.Event) -> None:
        """Watch and reconcile until a kind comes or goes, the watches fail, or all is to stop."""
        _tell(served)
        cache, listed, end = Cache(), asyncio.Event(), asyncio.Event()
        kinds = {resource.kind for resource in served}
        controller = Controller(cluster, cache, self._settings, build, self._identity, kinds)
        audit = Audit(cluster, cache, controller, served, self._namespaces)
        names = [namespace for namespace in self._namespaces if namespace is not None]
        watched: set[tuple[str, str, str]] = set()
        work = _task(self._work(controller, audit, listed))
        aside = [
            _task(self._beat(controller, audit)),
            _task(self._look_for_nothing(cluster, served, listed)),
            _task(_until_kinds_change(cluster, served)),
            _task(_check(served, watched)),
            _task(stop.wait()),
        ]
        before = asyncio.all_tasks()
        parts = await kopf.spawn_tasks(
            registry=handlers.registry(controller, served, listed),
            settings=handlers.settings(served, watched),
            standalone=True,
            clusterwide=not names,
            namespaces=names,
            stop_flag=end,
        )
        watch = _task(kopf.run_tasks(parts, ignored=before))
        try:
            # The parts too: where one fails, kopf as a whole may go on for ever without it.
            done, _ = await asyncio.wait([work, watch, *parts, *aside], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._listed = False
            controller.queue.close()
            if not listed.is_set():
                work.cancel()  # it has not begun
            await asyncio.wait([work], timeout=STOP)
            for task in (work, *aside):
                task.cancel()
            end.set()
            await asyncio.wait([watch], timeout=LEAVE)
        for task in done - {aside[-1]}:
            task.result()
        if done.intersection((watch, *parts)):
            raise RuntimeError("kopf ended by itself")

    async def _work(self, controller: Controller, audit: Audit, listed: asyncio.Event) -> None:
        await listed.wait()
        self._listed = True
        beside = [_task(audit.run(self._settings.audit_interval)), _task(controller.resync())]
        try:
            await controller.work()
        finally:
            for task in beside:
                task.cancel()

    async def _look_for_nothing(self, cluster: Cluster, served: frozenset[Resource], listed: asyncio.Event) -> None:
        """Where there is no object, or none any more, kopf has no event to tell that all is listed."""
        while not listed.is_set():
            if await self._nothing_there(cluster, served):
                listed.set()
            else:
                await asyncio.sleep(LOOK_FOR_NOTHING)
        await asyncio.Event().wait()

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
            problems = [f"the watch of {kind} is deaf: it misses events and tells of none" for kind in sorted(audit.deaf)]
            if (busy := controller.queue.busy()) > STUCK:
                problems.append(f"a reconcile has been running for {busy:.0f} s")
            if (stalled := controller.queue.stalled()) > STALLED and self._listed:
                problems.append(f"work has been due for {stalled:.0f} s and none was done")
            self._problems = problems
            await asyncio.sleep(1.0)


async def _served(cluster: Cluster, expected: Iterable[Resource]) -> frozenset[Resource]:
    """The kinds that there are. Where one is missing, on second thoughts: an API server that starts knows one after the other."""
    found = await cluster.served()
    if not found.issuperset(expected):
        await asyncio.sleep(SETTLED)
        found = await cluster.served()
    return found


async def _until_kinds_change(cluster: Cluster, served: frozenset[Resource]) -> None:
    while True:
        await asyncio.sleep(LOOK_FOR_KINDS if not served.issuperset((RUN, *RAY)) else LOOK_FOR_MORE_KINDS)
        with contextlib.suppress(Exception):  # asked again soon
            found = await _served(cluster, served)
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


def _leave(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop, whatever still runs in it."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=LEAVE))
    loop.set_exception_handler(lambda _, __: None)  # it would tell of each task that is left behind
    loop.close()


def _tell(served: frozenset[Resource]) -> None:
    if RUN not in served:
        log.error("the API server does not know AlignmentRun: install Plumbline's CustomResourceDefinition")
    if not served.issuperset(RAY):
        log.warning("the API server does not know ray.io/v1: install KubeRay 1.7 or later; runs wait until then")


def _task(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(work)
