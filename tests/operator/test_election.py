"""Leader election on the real API server, with terms of a tenth of the real ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from plumbline_operator.cluster import ApiError, Cluster, NotLeading
from plumbline_operator.election import Election, Terms

pytestmark = pytest.mark.apiserver
TERMS = Terms(duration=3.0, deadline=2.0, period=0.2)


async def holder(cluster: Cluster, namespace: str) -> str:
    lease = await cluster.get("Lease", namespace, "lease")
    return str(lease["spec"]["holderIdentity"])


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
        first, second = (Election(cluster, bare_namespace, "lease", name, TERMS) for name in ("first", "second"))
        holding = await lead(first)
        waiting = asyncio.create_task(second.acquire())
        await asyncio.sleep(TERMS.duration * 1.5)
        assert first.leads()
        assert not waiting.done()

        holding.cancel()  # killed: it renews no more
        while not waiting.done():
            assert not (first.leads() and second.leads())
            await asyncio.sleep(0.01)
        assert await holder(cluster, bare_namespace) == "second"
        assert not first.leads()

        holding = asyncio.create_task(second.hold())
        waiting = asyncio.create_task(first.acquire())
        await asyncio.sleep(TERMS.period * 2)
        begun = asyncio.get_running_loop().time()
        holding.cancel()
        await second.release()
        assert not second.leads()
        await waiting
        assert asyncio.get_running_loop().time() - begun < TERMS.duration  # it did not wait for the end of the lease
        assert first.leads()
        lease = await cluster.get("Lease", bare_namespace, "lease")
        assert lease["spec"]["leaseTransitions"] == 2

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
            election = Election(own, bare_namespace, "lease", "me", TERMS)
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
        other = Election(cluster, bare_namespace, "lease", "clock is wrong", TERMS)
        await other.acquire()
        lease = await cluster.get("Lease", bare_namespace, "lease")
        lease["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
        await cluster.update(lease)
        election = Election(cluster, bare_namespace, "lease", "me", TERMS)
        begun = asyncio.get_running_loop().time()
        await election.acquire()
        assert asyncio.get_running_loop().time() - begun >= TERMS.duration

    on_a_loop(test)
