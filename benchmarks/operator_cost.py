"""What the operator costs, measured: `python benchmarks/operator_cost.py [--runs 100 1000] [--rate 2]`.

Against a real API server with KubeRay's types, the operator as a process with its default settings, and an actor
that ends every plan Job and RayJob at once and reports as the stage program does. Runs of five stages are created at a
steady rate, so that the time from a child's event to the finished reaction is the operator's and not that of a queue.
For each number of runs, on an API server of its own: requests by verb, CPU, memory, event lag; then two idle minutes over the
finished runs (the Lease is renewed every two seconds; that is told apart). Writes `benchmarks/results/operator_cost.json` and `.md`. Exit code 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from kubernetes import client, config, utils  # noqa: E402
from side_by_side import write  # noqa: E402

from plumbline.api import labels  # noqa: E402
from plumbline.api.report import plan_key, run_key, stage_key  # noqa: E402
from plumbline.graph import build_graph, fingerprints  # noqa: E402
from plumbline_operator.reconcile import parse  # noqa: E402
from support import kuberay_crds  # noqa: E402
from support.apiserver import find_api_server  # noqa: E402
from support.operator_process import Operator  # noqa: E402
from support.rest import CONFIG_MAPS, JOBS, RAY_JOBS, RUNS, Kind, Rest  # noqa: E402

LIMITS = {"writesPerTransition": 6, "lagP99Seconds": 1.0, "memoryMB": 400, "idleRequestsPerSecond": 1.0, "growth": 1.25}
SPEC: dict[str, Any] = {
    "model": {"base": "builtin://tiny"},
    "workspace": {"uri": "s3://bucket/runs"},
    "stages": [
        {"name": "data", "curate": {"sources": [{"uri": "builtin://skills"}]}},
        {"name": "sft", "sft": {"maxSteps": 10}},
        {"name": "align", "rlhf": {"algorithm": "grpo", "steps": 10}},
        {"name": "check", "inputs": {"model": "align"}, "evaluate": {"tasks": [{"name": "skills", "benchmark": "skills"}]}},
        {"name": "again", "inputs": {"model": "sft"}, "evaluate": {"tasks": [{"name": "skills", "benchmark": "skills"}]}},
    ],
}
STAGES = len(SPEC["stages"])
TRANSITIONS = STAGES + 1  # planning is one too
WRITES = ("create", "patch", "apply", "delete")
"""Verbs by which requests count as writes. `update` is left out: it renews the Lease every two seconds, whatever there is to do."""
IDLE_SECONDS = 120


class Actor:
    """KubeRay, the Job controller and the stage programs, all instant."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest
        spec = parse("run", SPEC)
        self._fingerprints = fingerprints(build_graph(spec), spec, {"builtin://tiny": "tiny", "builtin://skills": "skills"})
        self._tasks: set[asyncio.Task[None]] = set()
        self.ended = 0

    async def follow(self, kind: Kind) -> None:
        async for change, value in self._rest.follow(kind):
            if change == "ADDED":
                task = asyncio.create_task(self._end(kind, value))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _end(self, kind: Kind, value: dict[str, Any]) -> None:
        meta, tags = value["metadata"], value["metadata"]["labels"]
        namespace, run = meta["namespace"], tags[labels.RUN]
        attempt = int(tags.get(labels.ATTEMPT, 1))
        if kind is JOBS:
            generation = int(tags[labels.PLAN])
            stages = {name: {"fingerprint": one} for name, one in self._fingerprints.items()}
            data = {run_key(generation): "{}", plan_key(generation): json.dumps({"attempt": attempt, "stages": stages})}
            condition = {"type": "Complete", "status": "True", "lastTransitionTime": now()}
            status: dict[str, Any] = {"conditions": [condition]}
        else:
            stage = tags[labels.STAGE]
            told = {
                "attempt": attempt,
                "fingerprint": self._fingerprints[stage],
                "result": {"artifact": f"s3://bucket/{stage}"},
            }
            data = {stage_key(stage): json.dumps(told)}
            status = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "endTime": now()}
        await self._rest.patch(CONFIG_MAPS, namespace, f"{run}-state", {"data": data})
        await self._rest.patch(kind, namespace, meta["name"], {"status": status}, "status")
        self.ended += 1


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Meter:
    """The operator process from outside: its metrics page and its /proc entry."""

    def __init__(self, pid: int, port: int) -> None:
        self._pid, self._port = pid, port

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))

    def peak_memory(self) -> float:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self._pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    def series(self, name: str) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found = [line.removeprefix(name).rpartition(" ") for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return {where: float(value) for where, _, value in found}

    def requests(self) -> dict[str, float]:
        """Requests by verb."""
        total: dict[str, float] = {}
        for where, value in self.series("plumbline_api_requests_total").items():
            verb = re.search(r'verb="(\w+)"', where)
            assert verb is not None
            total[verb[1]] = total.get(verb[1], 0) + value
        return total

    def lag(self, share: float) -> float:
        """Upper bound of the bucket that holds this share of the lags, seconds."""
        buckets = {
            float(re.search(r'le="([^"]+)"', where)[1]): value  # type: ignore[index]
            for where, value in self.series("plumbline_event_lag_seconds_bucket").items()
        }
        wanted = share * max(buckets.values())
        return min(bound for bound, count in buckets.items() if count >= wanted)


async def create_runs(rest: Rest, runs: int, rate: float) -> None:
    start = time.monotonic()
    for i in range(runs):
        run = {
            "apiVersion": "plumbline.dev/v1alpha1",
            "kind": "AlignmentRun",
            "metadata": {"name": f"run-{i}", "namespace": "bench"},
            "spec": SPEC,
        }
        await rest.request("POST", RUNS.path("bench"), run)
        await asyncio.sleep(max(0.0, start + (i + 1) / rate - time.monotonic()))


async def complete(rest: Rest) -> int:
    listed = (await rest.request("GET", RUNS.path("bench")))["items"]
    return sum(one.get("status", {}).get("phase") == "Succeeded" for one in listed)


async def quiet(meter: Meter) -> None:
    """Until the operator has told all it had to tell: Events are posted beside the work, and on a slow API server long after it."""
    written = -1.0
    while written != (written := sum(meter.requests().get(verb, 0) for verb in WRITES)):
        await asyncio.sleep(10)


async def drive(kubeconfig: str, meter: Meter, runs: int, rate: float) -> dict[str, Any]:
    """Create the runs, wait until they are complete, then watch the operator idle."""
    async with Rest(kubeconfig) as rest:
        actor = Actor(rest)
        followers = [asyncio.create_task(actor.follow(kind)) for kind in (JOBS, RAY_JOBS)]
        before, cpu, start = meter.requests(), meter.cpu_seconds(), time.monotonic()
        await create_runs(rest, runs, rate)
        while (done := await complete(rest)) < runs:
            print(f"  {done}/{runs} complete, {actor.ended} children ended, {time.monotonic() - start:.0f} s", flush=True)
            await asyncio.sleep(5)
        wall = time.monotonic() - start
        await asyncio.sleep(5)
        after, spent = meter.requests(), meter.cpu_seconds() - cpu
        lag = {"p50": meter.lag(0.5), "p99": meter.lag(0.99)}
        await quiet(meter)
        idle_before, idle_cpu = meter.requests(), meter.cpu_seconds()
        await asyncio.sleep(IDLE_SECONDS)
        idle_after = meter.requests()
        for follower in followers:
            follower.cancel()
        made = {verb: after[verb] - before.get(verb, 0) for verb in after}
        idle = {verb: idle_after[verb] - idle_before.get(verb, 0) for verb in idle_after}
        transitions = runs * TRANSITIONS
        return {
            "runs": runs,
            "rate": rate,
            "wallSeconds": round(wall, 1),
            "cpuSecondsPerRun": round(spent / runs, 4),
            "peakMemoryMB": round(meter.peak_memory(), 1),
            "requests": {verb: int(count) for verb, count in sorted(made.items())},
            "writesPerTransition": round(sum(made.get(verb, 0) for verb in WRITES) / transitions, 2),
            "writesPerStage": round(sum(made.get(verb, 0) for verb in WRITES) / (runs * STAGES), 2),
            "requestsPerTransition": round(sum(made.values()) / transitions, 2),
            "eventLagSeconds": lag,
            "idle": {
                "seconds": IDLE_SECONDS,
                "leaseRenewals": int(idle.get("update", 0)),
                "writes": int(sum(idle.get(verb, 0) for verb in WRITES)),
                "requestsPerSecond": round(sum(idle.values()) / IDLE_SECONDS, 3),
                "cpuShare": round((meter.cpu_seconds() - idle_cpu) / IDLE_SECONDS, 4),
            },
        }


def measure(runs: int, rate: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, find_api_server() as server:
        api = config.new_client_from_config(config_file=server.kubeconfig)
        kuberay_crds.load(api, ("rayjobs", "rayservices"))
        utils.create_from_yaml(api, str(ROOT / "manifests/crd/plumbline.dev_alignmentruns.yaml"))
        client.CoreV1Api(api).create_namespace({"metadata": {"name": "bench"}})
        environment = {"KUBECONFIG": server.kubeconfig, "POD_NAME": "operator", "POD_NAMESPACE": "default"}
        arguments = ["--all-namespaces", "--lease=plumbline", "--port=0"]
        operator = Operator("operator", arguments, environment, Path(folder))
        operator.start()
        try:
            return asyncio.run(drive(server.kubeconfig, Meter(operator.pid, operator.port), runs, rate))
        finally:
            operator.stop()


def claims(results: list[dict[str, Any]]) -> dict[str, bool]:
    small, large = results[0], results[-1]
    return {
        f"at most {LIMITS['writesPerTransition']} writes a stage": large["writesPerStage"] <= LIMITS["writesPerTransition"],
        f"p99 event lag below {LIMITS['lagP99Seconds']} s": large["eventLagSeconds"]["p99"] <= LIMITS["lagP99Seconds"],
        f"memory below {LIMITS['memoryMB']} MB": large["peakMemoryMB"] < LIMITS["memoryMB"],
        "cost per run no more than linear": large["cpuSecondsPerRun"] <= LIMITS["growth"] * small["cpuSecondsPerRun"],
        "idle: no write but the Lease's": large["idle"]["writes"] == 0,
        "idle: below 1 request/s": large["idle"]["requestsPerSecond"] < LIMITS["idleRequestsPerSecond"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--rate", type=float, default=2.0, help="runs created a second")
    options = parser.parse_args()
    results = []
    for runs in options.runs:
        print(f"{runs} runs of {STAGES} stages", flush=True)
        results.append(measure(runs, options.rate))
        print(json.dumps(results[-1], indent=1), flush=True)
    verdicts = claims(results)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    record = {"machine": machine, "results": results, "claims": verdicts}
    write("operator_cost", record, page(results, verdicts, options))
    print("\n".join(f"{'ok  ' if held else 'FAIL'} {claim}" for claim, held in verdicts.items()))
    return 0 if all(verdicts.values()) else 1


def page(results: list[dict[str, Any]], verdicts: dict[str, bool], options: argparse.Namespace) -> str:
    rows = {
        "wall time, s": "wallSeconds",
        "operator CPU per run, s": "cpuSecondsPerRun",
        "operator peak memory, MB": "peakMemoryMB",
        "writes per stage (planning included)": "writesPerStage",
        "requests per transition": "requestsPerTransition",
    }
    lines = [
        "# The operator's cost",
        "",
        f"`python benchmarks/operator_cost.py --runs {' '.join(map(str, options.runs))} --rate {options.rate:g}`: runs of {STAGES} "
        "stages with instant children on one API server, created at a steady rate; API server, actor and operator share "
        f"{os.cpu_count()} cores.",
        "",
        f"| | {' | '.join(str(one['runs']) + ' runs' for one in results)} |",
        f"|---|{'---|' * len(results)}",
        *(f"| {title} | {' | '.join(str(one[key]) for one in results)} |" for title, key in rows.items()),
        f"| event lag p50 / p99, s (bucket bounds) | "
        f"{' | '.join('{p50:g} / {p99:g}'.format(**one['eventLagSeconds']) for one in results)} |",
        f"| idle: writes in {IDLE_SECONDS} s | {' | '.join(str(one['idle']['writes']) for one in results)} |",
        f"| idle: requests/s | {' | '.join(str(one['idle']['requestsPerSecond']) for one in results)} |",
        f"| idle: share of a core | {' | '.join(str(one['idle']['cpuShare']) for one in results)} |",
        "",
        *(f"- {'holds' if held else 'DOES NOT HOLD'}: {claim}" for claim, held in verdicts.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
