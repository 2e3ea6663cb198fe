"""The real programs in the fake cluster: what runs in a Pod there runs as processes on this machine.

A volume is a folder here, and paths below its mount are rewritten. A Ray cluster is one local Ray in the place of its head
Pod, with the logical CPUs of all its Pods. It is spoken to as KubeRay does it, through its dashboard.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from contextlib import suppress
from typing import Any, Self

import aiohttp
import yaml

from plumbline.state import result_of
from support.fake_kuberay.cluster import FakeCluster
from support.fake_kuberay.kubelet import now
from support.fake_kuberay.machine import Machine, Pod
from support.fake_kuberay.plan_jobs import PlanJob
from support.fake_kuberay.ray_jobs import RayJob
from support.fake_kuberay.ray_services import Backend, RayService
from support.ports import free_port
from support.rest import Object

HOST = "127.0.0.1"
OBJECT_STORE = 200_000_000
POLL = 0.5
JOB_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
ANSWERS_NOT = (aiohttp.ClientError, TimeoutError)


class RealPrograms:
    """Behaviours for all children of runs whose workspace is a relative path.

    Attributes:
        endpoints: base URL of what a RayService serves, by (namespace, name).
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.endpoints: dict[tuple[str, str], str] = {}

    def play_in(self, fake: FakeCluster) -> None:
        """From now on every child runs its program, unless it is scripted."""
        fake.default_job, fake.default_plan, fake.default_service = self.job, self.plan, self.service

    async def plan(self, job: PlanJob) -> None:
        """The planner runs; its exit code ends the Job."""
        await job.start()
        async with Pod(self._machine, job.pod, job.cluster.rest) as pod:
            process = await pod.start(*job.container["command"])
            code = await process.wait()
            await job.end(code, pod.last_words() if code else "")

    async def job(self, job: RayJob) -> None:
        """A Ray starts, gets the entrypoint, and ends after it."""
        await job.begin()
        head = job.heads[0]
        async with Pod(self._machine, head, job.cluster.rest) as pod, Ray(pod, job.spec["rayClusterSpec"]) as ray:
            await ray.start()
            await job.ready()
            submission = head["metadata"]["labels"]["ray.io/cluster"]
            await ray.submit(submission, pod.command(job.spec["entrypoint"]))
            await job.submit()
            status, message = await _followed(job, ray, submission)
            if status == "SUCCEEDED":
                await _keep_artifact(job)
            failed = status == "FAILED"
            await job.end("Failed" if failed else "Complete", status, "AppFailed" if failed else None, message)

    async def service(self, service: RayService, backend: Backend) -> None:
        """A Ray starts, and Serve in it, for as long as the backend is wanted."""
        await service.deploy(backend)
        async with (
            Pod(self._machine, backend.pods[0], service.cluster.rest) as pod,
            Ray(pod, backend.spec["rayClusterConfig"]) as ray,
        ):
            await ray.start()
            url = await ray.deploy(yaml.safe_load(backend.spec["serveConfigV2"]))
            told = ("", "")
            while True:
                found = await ray.application() or told
                if found == ("RUNNING", "") and service.active is not backend:
                    self.endpoints[service.namespace, service.name] = url
                    await service.promote(backend)
                elif found != told:
                    await service.application(backend, *found)
                told = found
                await asyncio.sleep(POLL)


async def _followed(job: RayJob, ray: Ray, submission: str) -> tuple[str, str]:
    """The end of a job: its status and message. A dashboard that does not answer is told of."""
    lost = False
    while True:
        try:
            found = await ray.get(f"/api/jobs/{submission}")
        except ANSWERS_NOT:
            if not lost:
                await job.status(jobStatusCheckFailureStartTime=now())
            lost = True
        else:
            if lost:
                await job.status(jobStatusCheckFailureStartTime=None)
            lost = False
            if found["status"] in JOB_ENDED:
                return found["status"], found["message"]
        await asyncio.sleep(POLL)


async def _keep_artifact(job: RayJob) -> None:
    """Let the fake cluster know what is in the workspace: it checks that nothing is served behind a closed gate."""
    plan = await job.plan()
    artifact = plan.artifact(job.stage) if plan else None
    if artifact is not None:
        job.cluster.artifacts[artifact.uri] = result_of(artifact)


class Ray:
    """A Ray in a head Pod, with a token of its own as KubeRay makes one."""

    def __init__(self, pod: Pod, spec: Object) -> None:
        self._pod, self._cpus, self._port = pod, logical_cpus(spec), free_port()
        self._token = secrets.token_hex(32)

    async def __aenter__(self) -> Self:
        headers, timeout = {"Authorization": f"Bearer {self._token}"}, aiohttp.ClientTimeout(total=120)
        self._session = aiohttp.ClientSession(f"http://{HOST}:{self._port}", headers=headers, timeout=timeout)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def start(self) -> None:
        """Until its dashboard answers.

        Raises:
            RuntimeError: it ended.
        """
        options = {
            "node-ip-address": HOST,
            "dashboard-host": HOST,
            "dashboard-port": self._port,
            "dashboard-agent-listen-port": free_port(),
            "ray-client-server-port": free_port(),
            "port": free_port(),
            "min-worker-port": 0,  # 0: any; other Rays on this machine take from the usual range
            "max-worker-port": 0,
            "num-cpus": self._cpus,
            "object-store-memory": OBJECT_STORE,
            "temp-dir": self._pod.here("/tmp"),
        }
        spared = ("--no-monitor", "--include-log-monitor=false")
        command = ("ray", "start", "--head", "--block", *spared, *(f"--{name}={value}" for name, value in options.items()))
        variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_prestart_worker_first_driver": "0",  # a process for each logical CPU
            # Of Serve's HAProxy, which a Pod has alone; its files are in folders by node.
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        }
        process = await self._pod.start(*command, **variables)
        while True:
            with suppress(*ANSWERS_NOT):
                await self.get("/api/version")
                return
            if process.returncode is not None:
                raise RuntimeError(f"Ray did not start:\n{self._pod.last_words()}")
            await asyncio.sleep(POLL)

    async def get(self, path: str) -> Any:
        return await self._ask("GET", path)

    async def _ask(self, method: str, path: str, body: Object | None = None) -> Any:
        async with self._session.request(method, path, json=body, raise_for_status=True) as answer:
            return await answer.json() if answer.content_type == "application/json" else None

    async def submit(self, submission: str, entrypoint: str) -> None:
        """Until the job is known: in its first seconds a Ray refuses, and a slow answer may get lost."""
        while True:
            with suppress(*ANSWERS_NOT):
                await self._ask("POST", "/api/jobs/", {"entrypoint": entrypoint, "submission_id": submission})
            with suppress(*ANSWERS_NOT):
                await self.get(f"/api/jobs/{submission}")
                return
            await asyncio.sleep(POLL)

    async def deploy(self, config: Object) -> str:
        """Serve's configuration with a free port and paths of this machine; returns the base URL."""
        port = free_port()
        config["http_options"] = {"host": HOST, "port": port}
        for application in config["applications"]:
            application["args"] = {name: self._pod.here(value) for name, value in application["args"].items()}
        while True:
            with suppress(*ANSWERS_NOT):
                await self._ask("PUT", "/api/serve/applications/", config)
                return f"http://{HOST}:{port}"
            await asyncio.sleep(POLL)

    async def application(self) -> tuple[str, str] | None:
        """Status and message of the one application; None where nobody answers."""
        with suppress(*ANSWERS_NOT):
            (found,) = (await self.get("/api/serve/applications/"))["applications"].values()
            return found["status"], found["message"]
        return None


def logical_cpus(spec: Object) -> int:
    """Of the largest cluster that a RayClusterSpec allows, as KubeRay tells them to Ray."""
    groups = spec["workerGroupSpecs"]
    pods = [(1, spec["headGroupSpec"]), *((max(group["replicas"], group["maxReplicas"]), group) for group in groups)]
    return sum(count * _node_cpus(group) for count, group in pods)


def _node_cpus(group: Object) -> int:
    given = group["rayStartParams"].get("num-cpus")
    limit = str(given or group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    return math.ceil(float(limit.removesuffix("m")) / (1000 if limit.endswith("m") else 1))
