"""`python -m plumbline_operator`: a candidate that leads or stands by."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import kopf
from aiohttp import web

from plumbline_operator import logs, metrics, probes
from plumbline_operator.cluster import Cluster, login
from plumbline_operator.election import Election
from plumbline_operator.leader import Leader
from plumbline_operator.settings import InvalidSettings, Settings, read

log = logging.getLogger(__name__)
STOP = 20.0  # seconds that a stop at a signal may take, well below a Pod's 30
LOST = 15.0  # seconds that the leader's thread has to end when the lease is lost: it takes 12 where nothing answers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the operator until a signal; returns the exit status: 0 stopped, 1 failed, 2 wrong settings."""
    options = _parser().parse_args(arguments)
    logs.configure(options.log_format)
    try:
        settings = read(options.settings)
        namespace = os.environ.get("POD_NAMESPACE") or login().default_namespace or "default"
    except (InvalidSettings, kopf.LoginError) as error:
        print(f"plumbline-operator: {error}", file=sys.stderr)
        return 2
    return asyncio.run(Operator(options, settings, namespace).run())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="plumbline-operator", description="Runs AlignmentRuns on Kubernetes with KubeRay.")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="JSON file of settings; default: none, all defaults")
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--namespace", action="append", metavar="NS", help="watch this namespace; may be repeated")
    scope.add_argument("--all-namespaces", action="store_true", help="watch the whole cluster")
    parser.add_argument("--lease", default="plumbline-operator", metavar="NAME", help="Lease that the leader holds")
    parser.add_argument("--log-format", choices=["json", "text"], default="json")
    parser.add_argument("--port", type=int, default=8080, help="of /healthz, /readyz and /metrics")
    return parser


class Operator:
    """The process: candidate, probes, and the leader's thread while it leads."""

    def __init__(self, options: argparse.Namespace, settings: Settings, namespace: str) -> None:
        self._options, self._settings, self._namespace = options, settings, namespace
        everything: list[str | None] = [None]
        self._namespaces = everything if options.all_namespaces else list(options.namespace or [namespace])
        self._identity = os.environ.get("POD_NAME") or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self._leader: Leader | None = None

    async def run(self) -> int:
        """Stand for election until a signal."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        runner = web.AppRunner(probes.application(self._problems, self._not_ready), access_log=None)
        await runner.setup()
        try:
            if not await self._listen(runner):
                return 1
            async with Cluster() as cluster:
                election = Election(cluster, self._namespace, self._options.lease, self._identity)
                while not stop.is_set():
                    if await _first(election.acquire(), stop.wait()) == 0 and not await self._lead(election, stop):
                        return 1
        finally:
            await runner.cleanup()
        log.info("stopped")
        return 0

    async def _listen(self, runner: web.AppRunner) -> bool:
        try:
            await web.TCPSite(runner, port=self._options.port).start()
        except OSError as error:
            log.error("cannot listen on port %d: %s", self._options.port, error)
            return False
        return True

    async def _lead(self, election: Election, stop: asyncio.Event) -> bool:
        """Lead until the lease is lost or the process is to stop; False where the process must end."""
        ended, loop = asyncio.Event(), asyncio.get_running_loop()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the main loop is gone
                loop.call_soon_threadsafe(ended.set)

        leader = Leader(self._settings, self._namespaces, election.leads, self._identity, tell)
        self._leader = leader
        leader.start()
        metrics.LEADER.set(1)
        hold = asyncio.create_task(election.hold())
        try:
            await _first(_until(hold), stop.wait(), ended.wait())
            leader.stop()
            # While it finishes what is in hand the lease is still renewed.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), LOST if hold.done() else STOP)
        finally:
            metrics.LEADER.set(0)
            hold.cancel()
        if not ended.is_set():
            log.error("the leader's thread does not end")
            return False
        self._leader = None
        if election.leads():
            await election.release()
        return not leader.failed

    def _problems(self) -> list[str]:
        return self._leader.problems() if self._leader is not None else []

    def _not_ready(self) -> list[str]:
        waits = self._leader is not None and not self._leader.listed
        return ["the objects are still being listed"] if waits else []


async def _until(task: asyncio.Task[None]) -> None:
    """Wait without cancelling it."""
    await asyncio.wait([task])


async def _first(*ways: Coroutine[Any, Any, Any]) -> int:
    """Wait for the first of them and cancel the others; its number."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        number = next(index for index, task in enumerate(tasks) if task.done())
        tasks[number].result()
        return number
    finally:
        for task in tasks:
            task.cancel()
