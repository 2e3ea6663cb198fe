"""Leader election by a Lease, as other Kubernetes controllers do it.

Expiry is judged by how long the Lease has not changed before our own eyes: clocks of different machines are never compared.
The leader stops writing well before others may take over: `leads` turns false by itself, whatever the loop below does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp

from plumbline_operator.cluster import ApiError, Cluster

log = logging.getLogger(__name__)
_FAILURES = (ApiError, aiohttp.ClientError, TimeoutError)


@dataclass(frozen=True)
class Terms:
    """Seconds.

    Attributes:
        duration: a Lease that has not changed for so long is free.
        deadline: a leader that has not renewed for so long leads no more: it begins no write. A write that was begun before
            may still arrive later than the difference; that it tests a version, or a name or UID, makes it harmless.
        period: between renewals, and between looks at another's Lease.
    """

    duration: float = 10.0
    deadline: float = 7.0
    period: float = 2.0


class Election:
    """A candidate.

    Args:
        identity: unique among the candidates.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        identity: str,
        terms: Terms = Terms(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._namespace, self._name = cluster, namespace, name
        self.identity, self._terms, self._clock = identity, terms, clock
        self._lease: dict[str, Any] | None = None  # as last seen
        self._seen = 0.0  # when it last changed
        self._until = 0.0

    def leads(self) -> bool:
        """Whether this candidate leads, now. From any thread."""
        return self._clock() < self._until

    async def acquire(self) -> None:
        """Return when this candidate leads."""
        reported = None
        while not await self._attempt(self._acquire_once):
            holder = _holder(self._lease)
            if holder != reported:
                log.info("waiting for the lease", extra={"fields": {"holder": holder}})
                reported = holder
            await asyncio.sleep(self._terms.period)
        log.info("leading", extra={"fields": {"identity": self.identity}})

    async def hold(self) -> None:
        """Keep renewing; return when this candidate leads no more."""
        await asyncio.sleep(self._terms.period)
        while self.leads():
            renewed = await self._attempt(self._renew_once)
            # After a failure sooner, so that one lost request does not cost the lease.
            wait = self._terms.period if renewed else self._terms.period / 4
            await asyncio.sleep(max(0.0, min(wait, self._until - self._clock())))
        log.warning("the lease is lost")

    async def release(self) -> None:
        """Let another candidate lead at once. Nothing may be written any more."""
        self._until = 0.0
        try:
            lease = await self._read()
            if lease is not None and _holder(lease) == self.identity:
                lease["spec"].update(holderIdentity="", leaseDurationSeconds=1, renewTime=_now())
                await self._cluster.update(lease)
                log.info("the lease is released")
        except _FAILURES as error:
            log.warning("the lease could not be released: %s", error)

    async def _attempt(self, once: Callable[[], Any]) -> bool:
        try:
            async with asyncio.timeout(self._terms.deadline / 2):  # Python 3.11's wait_for may swallow a cancellation
                return bool(await once())
        except ApiError as error:
            if not (error.conflict or error.exists):  # another was faster: no news
                log.warning("the lease cannot be had: %s", error)
        except _FAILURES as error:
            log.warning("the lease cannot be had: %s", str(error) or type(error).__name__)
        return False

    async def _acquire_once(self) -> bool:
        lease = await self._read()
        if lease is not None and _holder(lease) not in ("", self.identity):
            if self._clock() < self._seen + self._terms.duration:
                return False
            log.info("the lease has expired", extra={"fields": {"holder": _holder(lease)}})
        return await self._write(lease, begin=True)

    async def _renew_once(self) -> bool:
        if self._lease is None:  # what became of the last renewal is not known
            lease = await self._read()
            if lease is None or _holder(lease) != self.identity:
                self._until = 0.0
                return False
        return await self._write(self._lease, begin=False)

    async def _read(self) -> dict[str, Any] | None:
        try:
            lease = await self._cluster.get("Lease", self._namespace, self._name)
        except ApiError as error:
            if not error.not_found:
                raise
            self._lease = None
            return None
        known = self._lease
        if known is None or known["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"]:
            self._seen = self._clock()
        self._lease = lease
        return lease

    async def _write(self, lease: dict[str, Any] | None, begin: bool) -> bool:
        old = (lease or {}).get("spec") or {}
        spec = {
            **old,
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._terms.duration)),
            "renewTime": _now(),
        }
        if begin:
            spec["acquireTime"] = spec["renewTime"]
            spec["leaseTransitions"] = int(old.get("leaseTransitions") or 0) + (lease is not None)
        sent = self._clock()  # from before the request: the server may write it at once
        meta = {"name": self._name, "namespace": self._namespace}
        body = {**(lease or {"metadata": meta}), "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec}
        self._lease = None
        self._lease = await (self._cluster.create(body) if lease is None else self._cluster.update(body))
        self._seen = self._clock()
        self._until = sent + self._terms.deadline
        return True


def _holder(lease: dict[str, Any] | None) -> str:
    return str(((lease or {}).get("spec") or {}).get("holderIdentity") or "")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
