"""The audit: compares what the watches told with what there is.

A watch can lose events: after a gap kopf lists anew and does not tell of objects that vanished meanwhile, and a stream can
die in silence. The audit finds and repairs that, and says which kind's watch is not to be trusted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable

import aiohttp

from plumbline_operator import metrics
from plumbline_operator.cache import Cache
from plumbline_operator.cluster import ApiError, Cluster
from plumbline_operator.controller import Controller
from plumbline_operator.kinds import Resource
from plumbline_operator.observed import project

log = logging.getLogger(__name__)
PATIENCE = 5.0  # seconds that an event may be under way
_Watch = tuple[str, str | None]  # kind and namespace


class Audit:
    """Audits all kinds of all namespaces (None: the whole cluster)."""

    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        controller: Controller,
        resources: Iterable[Resource],
        namespaces: Iterable[str | None],
        patience: float = PATIENCE,
    ) -> None:
        self._cluster, self._cache, self._controller = cluster, cache, controller
        self._resources, self._namespaces, self._patience = list(resources), list(namespaces), patience
        self._missed: set[_Watch] = set()
        self._heard: Counter[tuple[str, str]] = Counter()  # up to the last audit
        self.deaf: frozenset[str] = frozenset()
        """Kinds of which a watch told nothing between the last two audits, while each of them found something missed."""

    async def run(self, interval: float) -> None:
        """Audit for ever, every so many seconds."""
        while True:
            await asyncio.sleep(interval)
            try:
                await self.once()
            except Exception as error:
                expected = isinstance(error, ApiError | aiohttp.ClientError | TimeoutError)
                log.warning("the audit could not be made: %s", str(error) or type(error).__name__, exc_info=not expected)

    async def once(self) -> set[str]:
        """Compare and repair; the kinds of which events were missed."""
        heard, missed = Counter(self._controller.heard), set()
        for resource in self._resources:
            for namespace in self._namespaces:
                if await self._audit(resource, namespace):
                    missed.add((resource.kind, namespace))
        # A watch that is behind is not deaf: a restart would put it back further.
        heard.subtract(self._heard)
        self.deaf = frozenset(
            kind
            for kind, namespace in missed & self._missed
            if not any(n for (of, where), n in heard.items() if of == kind and namespace in (None, where))
        )
        self._missed, self._heard = missed, Counter(self._controller.heard)
        return {kind for kind, _ in missed}

    async def _audit(self, resource: Resource, namespace: str | None) -> int:
        suspects = await self._suspects(resource, namespace)
        if not suspects:
            return 0
        await asyncio.sleep(self._patience)
        missed = 0
        for suspect in sorted(suspects):
            missed += await self._repair(resource, *suspect)
        metrics.MISSED_EVENTS.labels(resource.kind).inc(missed)
        if missed:
            log.warning("the watch had missed events", extra={"fields": {"kind": resource.kind, "objects": missed}})
        return missed

    async def _suspects(self, resource: Resource, namespace: str | None) -> set[tuple[str, str, str, int]]:
        """(namespace, name, UID, version) of objects that are older in the cache, or in one place only."""
        known = self._cache.versions(resource.kind, namespace)  # from before the list: what comes later is no ghost
        suspects = set()
        there = set()
        async for meta in self._cluster.metadata(resource, namespace):
            name, uid, version = (meta["namespace"], meta["name"]), meta["uid"], int(meta["resourceVersion"])
            there.add((name, uid))
            if known.get(name, ("", 0))[0] != uid or known[name][1] < version:
                suspects.add((*name, uid, version))
        return suspects | {(*name, uid, 0) for name, (uid, _) in known.items() if (name, uid) not in there}

    async def _repair(self, resource: Resource, namespace: str, name: str, uid: str, version: int) -> bool:
        """Whether it is still so, and was put right."""
        cached = self._cache.get(resource.kind, namespace, name)
        same = cached is not None and cached.meta.uid == uid
        if version and same and cached is not None and cached.meta.version >= version:
            return False  # the event was under way
        found = await self._cluster.find(resource, namespace, name)
        if found is not None:
            view = project(found)
            told = self._cache.put(view)
            if told:
                self._controller.wake(view)
            return told
        if cached is not None:
            self._controller.gone(resource.kind, namespace, name, cached.meta.uid, cached.meta.version)
        return cached is not None
