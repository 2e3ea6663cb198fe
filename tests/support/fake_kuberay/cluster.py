"""All controllers of the fake cluster in one thread, and what tests say to and ask of them."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, Self

from plumbline.api import labels
from plumbline.api.report import Result
from support.fake_kuberay.behaviours import succeed
from support.fake_kuberay.kubelet import Kubelet
from support.fake_kuberay.kueue import QUEUE, Kueue
from support.fake_kuberay.plan_jobs import PlanBehaviour, PlanJob, planned
from support.fake_kuberay.ray_jobs import Behaviour, RayJob
from support.fake_kuberay.ray_services import RayService, ServiceBehaviour, healthy
from support.fake_kuberay.state import StateFile
from support.patience import wait_for
from support.rest import JOBS, RAY_JOBS, RAY_SERVICES, RUNS, Kind, Object, Rest


@dataclass(frozen=True)
class Entry:
    """Something that happened to a child of a run. The stage of a plan Job is `plan`."""

    namespace: str
    run: str
    stage: str
    attempt: int
    state: str


class _Child(Protocol):
    namespace: str
    run: str
    stage: str
    attempt: int


class FakeCluster:
    """KubeRay, Kueue, the Job controller, scheduler and kubelet for every run on an API server.

    Attributes:
        journal: what happened, in order.
        artifacts: the workspaces: results by the URI of their folder.
        statuses: every status that a run had, by (namespace, name).
        identities: content identity of external URIs, where it is not the usual one.
        violations: what must never happen and did: a child made twice, an ungated service, an error in the fake itself.
    """

    def __init__(self, kubeconfig: str) -> None:
        self._kubeconfig = kubeconfig
        self._jobs: dict[tuple[str, str], deque[Behaviour]] = defaultdict(deque)
        self._plans: dict[str, deque[PlanBehaviour]] = defaultdict(deque)
        self._services: dict[tuple[str, str], deque[ServiceBehaviour]] = defaultdict(deque)
        self.default_job, self.default_plan, self.default_service = succeed(), planned(), healthy()
        self.journal: list[Entry] = []
        self.artifacts: dict[str, Result] = {}
        self.identities: dict[str, str] = {}
        self.violations: list[str] = []
        self.statuses: dict[tuple[str, str], list[Object]] = defaultdict(list)
        self.clock = time.time
        self._made: dict[tuple[str, str, int], str] = {}
        self._children: dict[str, tuple[Any, list[asyncio.Task[None]]]] = {}

    # What tests say.

    def script(self, namespace: str, stage: str, *behaviours: Behaviour) -> None:
        """What the next RayJobs of a stage do, in order; later ones succeed."""
        self._jobs[namespace, stage].extend(behaviours)

    def script_plan(self, namespace: str, *behaviours: PlanBehaviour) -> None:
        """What the next plan Jobs do."""
        self._plans[namespace].extend(behaviours)

    def script_service(self, namespace: str, stage: str, *behaviours: ServiceBehaviour) -> None:
        """What the next versions of a RayService do."""
        self._services[namespace, stage].extend(behaviours)

    def linger(self, namespace: str, seconds: float | None) -> None:
        """How long deleted Pods take to end; None: for ever, as on a lost node."""
        self.kubelet.linger[namespace] = seconds

    # What tests ask.

    def states(self, namespace: str, stage: str) -> list[tuple[int, str]]:
        """(attempt, state) of a stage's children, in order."""
        return [(e.attempt, e.state) for e in list(self.journal) if (e.namespace, e.stage) == (namespace, stage)]

    def wait(self, namespace: str, stage: str, state: str, attempt: int | None = None, timeout: float = 150) -> None:
        """Until a child has been in a state.

        Raises:
            TimeoutError: with what happened instead.
        """

        def words() -> str:
            seen = [e for e in self.journal if e.namespace == namespace]
            return f"{stage} {attempt or ''} was never {state}; seen: {seen}; {self.violations}"

        wait_for(lambda: any(s == state and attempt in (None, a) for a, s in self.states(namespace, stage)), timeout, words)

    def attempts(self, namespace: str, stage: str) -> list[int]:
        """Attempt numbers in the order of their creation."""
        return [attempt for attempt, state in self.states(namespace, stage) if state == "Created"]

    # What the controllers call.

    def note(self, child: _Child, state: str) -> None:
        self.journal.append(Entry(child.namespace, child.run, child.stage, child.attempt, state))

    def service_behaviour(self, service: RayService) -> ServiceBehaviour:
        scripted = self._services[service.namespace, service.stage]
        return scripted.popleft() if scripted else self.default_service

    async def guarded(self, play: Awaitable[None]) -> None:
        """Keep an error of the fake itself for the test to see."""
        try:
            await play
        except Exception:
            self.violations.append(traceback.format_exc())

    def __enter__(self) -> Self:
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="fake cluster", daemon=True)
        self._thread.start()
        assert self._started.wait(120)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Something done in the thread of the fake."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with Rest(self._kubeconfig) as self.rest:
            self.kubelet, self.kueue, self.state = Kubelet(self.rest), Kueue(self.rest), StateFile(self.rest)
            followers = [
                asyncio.create_task(self.guarded(self.kubelet.follow())),
                asyncio.create_task(self.guarded(self._follow_runs())),
                *(asyncio.create_task(self.guarded(self._follow(*one))) for one in _KINDS.items()),
            ]
            self._started.set()
            await self._stop.wait()
            tasks = followers + [task for _, all in self._children.values() for task in all]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_runs(self) -> None:
        async for _, run in self.rest.follow(RUNS):
            meta, status = run["metadata"], run.get("status") or {}
            self.statuses[meta["namespace"], meta["name"]].append(status)

    async def _follow(self, kind: Kind, names: tuple[str, str]) -> None:
        async for type, value in self.rest.follow(kind):
            value |= {"apiVersion": names[0], "kind": names[1]}  # items of a list do not say
            uid = value["metadata"]["uid"]
            if type == "DELETED":
                child, tasks = self._children.pop(uid, (None, []))
                if child is not None:
                    self.note(child, "Deleted")
                for task in tasks:
                    task.cancel()
            elif uid in self._children:
                self._children[uid][0].update(value)
            elif labels.RUN_UID in (value["metadata"].get("labels") or {}):
                self._children[uid] = self._adopt(names[1], value)

    def _adopt(self, kind: str, value: Object) -> tuple[Any, list[asyncio.Task[None]]]:
        if kind == "RayJob":
            job = RayJob(self, value)
            self._check_new(job, value)
            scripted = self._jobs[job.namespace, job.stage]
            plays = [job.live(scripted.popleft() if scripted else self.default_job)]
            if QUEUE in job.labels:
                plays.append(self.kueue.manage(value))
            return job, [asyncio.create_task(self.guarded(play)) for play in plays]
        if kind == "RayService":
            service = RayService(self, value)
            self.note(service, "Created")
            checks = [service.live(), self._check_gate(service)]
            return service, [asyncio.create_task(self.guarded(play)) for play in checks]
        plan = PlanJob(self, value)
        self._check_new(plan, value)
        planning = self._plans[plan.namespace]
        behaviour = planning.popleft() if planning else self.default_plan
        return plan, [asyncio.create_task(self.guarded(behaviour(plan)))]

    def _check_new(self, child: RayJob | PlanJob, value: Object) -> None:
        """Nothing is made twice, nothing before its predecessors have ended."""
        self.note(child, "Created")
        name = child.stage if isinstance(child, RayJob) else f"plan-{child.generation}"
        key = (child.labels[labels.RUN_UID], name, child.attempt)
        if self._made.setdefault(key, child.uid) != child.uid:
            self.violations.append(f"{child.namespace}: attempt {child.attempt} at {name} was made twice")

    async def _check_gate(self, service: RayService) -> None:
        """A service stands behind a gate that passed, or is ungated."""
        found = await self.state.plan(service.namespace, service.run, f"run-{service.labels[labels.PLAN]}.json")
        if found is None:
            self.violations.append(f"{service.namespace}/{service.name}: there is no RUN.json for it")
            return
        node = found.graph[service.stage]
        if getattr(node.spec, "ungated", False):
            return
        report = node.inputs["report"][0]
        result = self.artifacts.get(f"{found.workspace_uri}/artifacts/evaluate/{found.fingerprints[report]}")
        if result is None or result.verdict != "Passed":
            self.violations.append(f"{service.namespace}/{service.name} serves, but the gate of {report} says {result}")


_KINDS = {RAY_JOBS: ("ray.io/v1", "RayJob"), RAY_SERVICES: ("ray.io/v1", "RayService"), JOBS: ("batch/v1", "Job")}
