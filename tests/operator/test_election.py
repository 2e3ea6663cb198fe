"""Leader election on the real API server, with a shorter period than the real one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from plumbline_operator.cluster import ApiError, Cluster, NotLeading
from plumbline_operator.election import Election, Terms

pytestmark = pytest.mark.apiserver
TERMS = Terms(duration=15.0, deadline=12.0, period=0.2)
"""Nothing expires because a busy machine stands still for some seconds."""
SHORT = Terms(duration=3.0, deadline=2.0, period=0.2)
"""For tests that wait until something expires."""


class Clock:
    """Time that passes only where a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def holder(cluster: Cluster, namespace: str) -> str:
    lease = await cluster.get("Lease", namespace, "lease")
    return str(lease["spec"]["holderIdentity"])


async def renewed(cluster: Cluster, namespace: str) -> None:
    """Return when the lease has been written once more."""
    before = await cluster.get("Lease", namespace, "lease")
    while (await cluster.get("Lease", namespace, "lease"))["spec"]["renewTime"] == before["spec"]["renewTime"]:
        await asyncio.sleep(TERMS.period / 4)


def on_a_loop(test: Callable[[Cluster], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Cluster() as cluster:
            await asyncio.wait_for(test(cluster), 120)

    asyncio.run(run())


async def lead(election: Election) -> asyncio.Task[None]:
    """Become leader; the task keeps the lease."""
    await election.acquire()
    return asyncio.create_task(election.hold())


def test_a_killed_leader_is_followed_and_a_graceful_one_at_once(bare_namespace: str) -> None:
    async def test(cluster: Cluster) -> None:
        clock = Clock()
        first, second = (Election(cluster, bare_namespace, "lease", name, TERMS, clock) for name in ("first", "second"))
        holding = await lead(first)
        waiting = asyncio.create_task(second.acquire())
        for _ in range(8):  # by far longer than a lease lasts
            clock.now += TERMS.duration / 5
            await renewed(cluster, bare_namespace)
        assert first.leads()
        assert not waiting.done()

        holding.cancel()  # killed: it renews no more
        while not waiting.done():
            assert not (first.leads() and second.leads())
            clock.now += 0.1
            await asyncio.sleep(0.01)
        assert await holder(cluster, bare_namespace) == "second"
        assert not first.leads()

        holding = asyncio.create_task(second.hold())
        waiting = asyncio.create_task(first.acquire())
        await asyncio.sleep(TERMS.period * 2)
        holding.cancel()
        await second.release()
        assert not second.leads()
        await waiting  # not for the end of the lease: the clock stands still
        assert first.leads()
        lease = await cluster.get("Lease", bare_namespace, "lease")
        assert lease["spec"]["leaseTransitions"] >= 2  # more where an answer was late and the request was sent again

    on_a_loop(test)


def test_of_many_candidates_never_two_lead(bare_namespace: str) -> None:
    async def test(cluster: Cluster) -> None:
        candidates = [Election(cluster, bare_namespace, "lease", f"c{i}", TERMS) for i in range(6)]
        terms_held = 0

        async def stand(election: Election) -> None:
            nonlocal terms_held
            while True:
                holding = await lead(election)
                terms_held += 1
                assert [one.leads() for one in candidates].count(True) == 1
                await asyncio.sleep(TERMS.period)
                holding.cancel()
                await election.release()
                await asyncio.sleep(TERMS.period)

        standing = [asyncio.create_task(stand(one)) for one in candidates]
        while terms_held < 8 and not any(task.done() for task in standing):
            assert [one.leads() for one in candidates].count(True) <= 1
            await asyncio.sleep(0.005)
        for task in standing:
            task.cancel()
        results = await asyncio.gather(*standing, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in results), results

    on_a_loop(test)


def test_a_stolen_lease_ends_leading(bare_namespace: str) -> None:
    async def test(cluster: Cluster) -> None:
        election = Election(cluster, bare_namespace, "lease", "me", TERMS)
        holding = await lead(election)
        stolen = False
        while not stolen:  # the leader renews meanwhile
            lease = await cluster.get("Lease", bare_namespace, "lease")
            lease["spec"]["holderIdentity"] = "thief"
            with contextlib.suppress(ApiError):
                await cluster.update(lease)
                stolen = True
        await holding
        assert not election.leads()
        await election.release()
        assert await holder(cluster, bare_namespace) == "thief"

    on_a_loop(test)


def test_a_leader_that_cannot_reach_the_server_may_not_write(bare_namespace: str) -> None:
    async def test(_: Cluster) -> None:
        async with Cluster() as own:
            election = Election(own, bare_namespace, "lease", "me", SHORT)
            holding = await lead(election)

            async def unreachable(*_: object) -> None:
                raise aiohttp.ClientConnectionError("cut")

            own._request = unreachable  # type: ignore[method-assign, assignment]
            await holding
            assert not election.leads()

        async with Cluster(may_write=election.leads) as fenced:
            with pytest.raises(NotLeading):
                await fenced.create({"kind": "ConfigMap", "metadata": {"namespace": bare_namespace, "name": "x"}})
            with contextlib.suppress(ApiError):
                await fenced.get("ConfigMap", bare_namespace, "x")  # reading goes on

    on_a_loop(test)


def test_a_deleted_lease_is_made_again(bare_namespace: str) -> None:
    async def test(cluster: Cluster) -> None:
        election = Election(cluster, bare_namespace, "lease", "me", TERMS)
        holding = await lead(election)
        lease = await cluster.get("Lease", bare_namespace, "lease")
        await cluster.delete("Lease", bare_namespace, "lease", lease["metadata"]["uid"])
        await holding  # somebody wants another leader
        await election.acquire()
        assert election.leads()

    on_a_loop(test)


def test_expiry_is_not_judged_by_the_clock_of_another(bare_namespace: str) -> None:
    async def test(cluster: Cluster) -> None:
        other = Election(cluster, bare_namespace, "lease", "clock is wrong", SHORT)
        await other.acquire()
        lease = await cluster.get("Lease", bare_namespace, "lease")
        lease["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
        await cluster.update(lease)
        election = Election(cluster, bare_namespace, "lease", "me", SHORT)
        begun = asyncio.get_running_loop().time()
        await election.acquire()
        assert asyncio.get_running_loop().time() - begun >= SHORT.duration

    on_a_loop(test)
