"""The embedded driver: runs the stages of a plan one after the other on this machine, each as the stage program."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plumbline.artifacts import Artifact, cache_folder
from plumbline.display import Display
from plumbline.errors import EXIT_INVALID, GateNotPassed, InvalidInput, PlumblineError
from plumbline.graph import Node
from plumbline.plan import Plan
from plumbline.progress import Event, FileTail

POLL = 0.1  # seconds between two looks at a running stage
GRACE = 10.0  # seconds that a stage has to end after it was asked to
READY_TIMEOUT = 180.0  # seconds that an endpoint has to answer


class Runner:
    """One `plumbline run`.

    Args:
        plan: what to do.
        display: where to show it.
        ray_address: an existing Ray cluster; None starts an embedded one, when the first stage needs it.
    """

    def __init__(self, plan: Plan, display: Display, ray_address: str | None = None) -> None:
        self.plan, self.display, self.ray_address = plan, display, ray_address
        self.folder = run_folder(plan)
        self._embedded = False

    def run(self, until: str | None = None, serve: bool = True) -> None:
        """Do what is not done yet.

        Args:
            until: only this stage and what it needs.
            serve: whether `serve` stages are done.

        Raises:
            GateNotPassed: a `serve` stage was held back.
            PlumblineError: a stage failed; its message says why and names the log.
            KeyboardInterrupt: everything that was started has ended; the next run continues.
        """
        wanted = self.plan.graph.up_to(until) if until else {node.name for node in self.plan.graph.nodes}
        nodes = [node for node in self.plan.graph.nodes if node.name in wanted and (serve or node.kind != "serve")]
        self.plan.workspace.check_writable()
        with self._lock():
            run_json = self.folder / "run.json"
            run_json.write_text(json.dumps(self.plan.to_json(), indent=1))
            if self.ray_address is not None and any(
                node.kind != "serve" and self.plan.artifact(node.name) is None for node in nodes
            ):
                from plumbline.ray_environment import check_address

                check_address(self.ray_address)
            try:
                for node in nodes:
                    if node.kind == "serve":
                        self._serve(node, run_json)
                    elif self.plan.artifact(node.name) is not None:
                        self.display.cached(node.name)
                    else:
                        self._stage(node, run_json)
            finally:
                self._stop_ray()

    def _stage(self, node: Node, run_json: Path) -> None:
        """One stage, again if something kills it, at most `backoffLimit` times."""
        self._start_ray()
        limit = self.plan.run.spec.backoff_limit
        for attempt in range(limit + 1):
            self.display.started(node.name)
            began = time.monotonic()
            code, log = self._attempt(node, run_json)
            if code == 0:
                self.display.finished(node.name, time.monotonic() - began, _key_metrics(self.plan, node.name))
                return
            if code < 0 and attempt < limit:
                name = signal.Signals(-code).name
                self.display.event(Event(node.name, f"killed by {name} (out of memory?); attempt {attempt + 2} continues"))
                continue
            words = _last_error(log) or f"ended with exit code {code}"
            self.display.failed(node.name, words)
            error = InvalidInput if code == EXIT_INVALID else PlumblineError
            raise error(f"stage '{node.name}': {words}\n(full log: {log})")

    def _attempt(self, node: Node, run_json: Path) -> tuple[int, Path]:
        progress = self.folder / "progress" / f"{node.name}.jsonl"
        progress.unlink(missing_ok=True)
        command = [sys.executable, "-m", "plumbline.stage", str(run_json), node.name, "--progress", str(progress)]
        process, log = self._spawn(command, node.name)
        tail = FileTail(progress)
        try:
            while True:
                code = process.poll()
                for event in tail.read():
                    self.display.event(event)
                if code is not None:
                    return code, log
                time.sleep(POLL)
        finally:
            _end(process)

    def _spawn(self, command: list[str], name: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a program in a session of its own (Ctrl-C is ours to pass on), its output in a log file."""
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PLUMBLINE_DIE_WITH_PARENT": "1"},
            )
        return process, log

    def _serve(self, node: Node, run_json: Path) -> None:
        """Start the endpoint behind its gate; one that serves this very fingerprint is left alone."""
        verdict = gate_verdict(self.plan, node)
        if verdict is not None and verdict["verdict"] != "pass":
            self.display.failed(node.name, f"not served: gate {verdict['verdict']}")
            raise GateNotPassed(
                f"stage '{node.name}' is not served, the gate of '{verdict['stage']}' says {verdict['verdict']}: {verdict['reason']}"
            )
        record = endpoint_record(self.plan, node.name)
        if record is not None and record["fingerprint"] == self.plan.fingerprints[node.name]:
            self.display.cached(node.name, f"serving at {record['url']}")
            return
        self._stop_ray()  # the endpoint outlives us, so it has a Ray of its own, unless there is a cluster
        if self.ray_address:
            os.environ["RAY_ADDRESS"] = self.ray_address
        if record is not None:
            stop_endpoint(self.plan, node.name)
        self.display.started(node.name)
        began = time.monotonic()
        command = [sys.executable, "-m", "plumbline.serving.endpoint", str(run_json), node.name]
        process, log = self._spawn(command, node.name)
        try:
            while (record := endpoint_record(self.plan, node.name)) is None:
                if process.poll() is not None or time.monotonic() - began > READY_TIMEOUT:
                    words = _last_error(log) or f"the endpoint did not answer within {READY_TIMEOUT:.0f} s"
                    self.display.failed(node.name, words)
                    raise PlumblineError(f"stage '{node.name}': {words}\n(full log: {log})")
                time.sleep(POLL)
        except BaseException:
            _end(process)
            raise
        self.display.finished(node.name, time.monotonic() - began, {})
        self.display.event(Event(node.name, f"serving at {record['url']}"))

    def _start_ray(self) -> None:
        if self.ray_address:
            os.environ["RAY_ADDRESS"] = self.ray_address
        elif not self._embedded:
            from plumbline.ray_environment import start_local

            start_local(max(3, os.cpu_count() or 1, _most_workers(self.plan) + 1))
            self._embedded = True

    def _stop_ray(self) -> None:
        if self._embedded:
            import ray

            ray.shutdown()
            os.environ.pop("RAY_ADDRESS", None)
            self._embedded = False

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One driver at a time for a run; the kernel lets go of the lock however we end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PlumblineError(
                    f"another `plumbline run` of '{self.plan.name}' is at work in {self.plan.workspace_uri}"
                ) from None
            yield


def run_folder(plan: Plan) -> Path:
    """Where this driver keeps RUN.json, logs and progress: in a local workspace, or in the user's cache."""
    workspace = plan.workspace
    if workspace.is_local:
        return Path(workspace.path("runs", plan.name))
    return cache_folder("runs", hashlib.sha256(plan.workspace_uri.encode()).hexdigest()[:16], plan.name)


def report_copy(plan: Plan, report: Artifact) -> Path:
    """The report's page under a name that stays from run to run."""
    copy = run_folder(plan) / f"report-{report.manifest['stage']}.html"
    shutil.copyfile(report.local() / "report.html", copy)
    return copy


def gate_verdict(plan: Plan, node: Node) -> dict[str, str] | None:
    """The verdict that guards a `serve` stage, None for an ungated one."""
    if getattr(node.spec, "ungated", False):
        return None
    stage = node.inputs["report"][0]
    report = plan.artifact(stage)
    if report is None:
        raise PlumblineError(f"stage '{node.name}' waits for the report of '{stage}'")
    return {"stage": stage, "verdict": str(report.details["verdict"]), "reason": str(report.details["verdictReason"])}


def endpoint_path(plan: Plan, stage: str) -> Path:
    """The record that a local endpoint writes once it answers."""
    return run_folder(plan) / f"endpoint-{stage}.json"


def endpoint_record(plan: Plan, stage: str) -> dict[str, Any] | None:
    """The endpoint that runs now: url, pid, fingerprint, model. None if there is none that answers."""
    try:
        record: dict[str, Any] = json.loads(endpoint_path(plan, stage).read_text())
        with urllib.request.urlopen(record["url"].removesuffix("/v1") + "/healthz", timeout=5) as answer:
            models = {model["name"]: model.get("fingerprint") for model in json.load(answer)["models"]}
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return None
    # Another program may have taken the port since: it must serve our model.
    return record if models.get(record["model"], "") == record["modelFingerprint"] else None


def stop_endpoint(plan: Plan, stage: str, sleep: Callable[[float], None] = time.sleep) -> bool:
    """End the local endpoint of a stage, if it runs; returns whether it did."""
    record = endpoint_record(plan, stage)
    if record is None:
        return False
    os.kill(record["pid"], signal.SIGTERM)
    for _ in range(int(2 * GRACE / POLL)):
        if not Path(f"/proc/{record['pid']}").exists():
            break
        sleep(POLL)
    else:
        os.kill(record["pid"], signal.SIGKILL)
    endpoint_path(plan, stage).unlink(missing_ok=True)
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a child to end, then make it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _most_workers(plan: Plan) -> int:
    parallelisms = [getattr(node.spec, "parallelism", 1) for node in plan.graph.nodes]
    return max(getattr(p, "workers", p) for p in parallelisms)


def _key_metrics(plan: Plan, stage: str) -> dict[str, float]:
    artifact = plan.artifact(stage)
    metrics = artifact.metrics if artifact else {}
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _last_error(log: Path) -> str | None:
    """What the stage program said last after `error:`."""
    text = log.read_text(errors="replace")
    _, found, words = text.rpartition("\nerror: ") if "\nerror: " in text else text.rpartition("error: ")
    return words.strip() if found else None
