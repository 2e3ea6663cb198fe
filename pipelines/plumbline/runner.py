"""The embedded driver: runs the stages of a plan one after the other on this machine, each as the stage program."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plumbline.api.run import AlignmentRun
from plumbline.artifacts import Artifact, Workspace, cache_folder
from plumbline.display import Display
from plumbline.errors import EXIT_INVALID, GateNotPassed, InvalidInput, PlumblineError
from plumbline.graph import Graph, Node
from plumbline.local_endpoint import PROGRAM, can_take, read_record, record_path, serves, stop, update
from plumbline.local_endpoint import Record as EndpointRecord
from plumbline.plan import Plan, check_libraries
from plumbline.progress import Event, FileTail
from plumbline.serving.release.record import Records

POLL = 0.1  # seconds between two looks at a running stage
GRACE = 10.0  # seconds that a stage has to end after it was asked to


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
        self._deadline = float("inf")

    def run(self, serve: bool = True) -> None:
        """Do what is not done yet.

        Args:
            serve: whether `serve` stages are done.

        Raises:
            GateNotPassed: the gate of a stage did not pass; what it guards is not served, all else is done.
            InvalidInput: the run is suspended, or a stage found its input wrong.
            PlumblineError: a stage failed; its message says why and names the log.
            KeyboardInterrupt: everything that was started has ended; the next run continues.
        """
        spec = self.plan.run.spec
        if spec.suspend:
            raise InvalidInput("spec.suspend: true means that nothing runs; set it to false, or --set suspend=false")
        nodes = [node for node in self.plan.graph.nodes if serve or node.kind != "serve"]
        check_libraries(self.plan, [node for node in nodes if node.spec.libraries() and not is_done(self.plan, node)])
        self.plan.workspace.check_writable()
        if self.ray_address is None:
            os.environ.pop("RAY_ADDRESS", None)  # only the option decides
        elif not all(is_done(self.plan, node) for node in nodes):
            from plumbline.ray_environment import check_address

            check_address(self.ray_address)
            os.environ["RAY_ADDRESS"] = self.ray_address
        if spec.active_deadline_seconds is not None:
            self._deadline = time.monotonic() + spec.active_deadline_seconds
        with self._lock():
            run_json = self.folder / "run.json"
            run_json.write_text(json.dumps(self.plan.to_json(), indent=1))
            try:
                for node in nodes:
                    if node.kind == "serve":
                        self._serve(node, run_json)
                    elif is_done(self.plan, node):
                        self.display.cached(node.name)
                    else:
                        self._stage(node, run_json)
            finally:
                self._stop_ray()
        for node in nodes:
            _require_pass(self.plan, node)

    def _stage(self, node: Node, run_json: Path) -> None:
        """One stage, again if something kills it, at most `backoffLimit` times."""
        self._start_ray()
        limit = self.plan.run.spec.backoff_limit
        self._log(node.name).unlink(missing_ok=True)
        for attempt in range(limit + 1):
            self.display.started(node.name)
            began = time.monotonic()
            code, log = self._attempt(node, run_json)
            if code == 0:
                self.display.finished(node.name, time.monotonic() - began, _key_metrics(self.plan, node.name))
                return
            if code < 0 and attempt < limit:
                self.display.event(Event(node.name, f"{_end_words(code)}; attempt {attempt + 2} continues"))
                self._start_ray()
                continue
            words = failure_words(code, log)
            self.display.failed(node.name, words)
            raise _failure(node, code, words, log)

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
                if time.monotonic() > self._deadline:
                    limit = self.plan.run.spec.active_deadline_seconds
                    raise PlumblineError(
                        f"spec.activeDeadlineSeconds: {limit} s are over in stage '{node.name}'; a new run continues"
                    )
                time.sleep(POLL)
        finally:
            _end(process)

    def _spawn(self, command: list[str], name: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a program in a session of its own (Ctrl-C is ours to pass on), its output in a log file."""
        log = self._log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:  # the attempts of a run follow each other
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PLUMBLINE_DIE_WITH_PARENT": str(os.getpid())},
            )
        return process, log

    def _log(self, stage: str) -> Path:
        return self.folder / "logs" / f"{stage}.log"

    def _serve(self, node: Node, run_json: Path) -> None:
        """Start the endpoint behind its gate; one that serves this already is left alone."""
        if not getattr(node.spec, "ungated", False):
            try:
                _require_pass(self.plan, self.plan.graph[node.inputs["report"][0]])
            except GateNotPassed:
                self.display.failed(node.name, "not served: the gate did not pass")
                return
        path = record_path(self.folder, node.name)
        record = read_record(path)
        if record is not None and is_done(self.plan, node):
            self.display.cached(node.name, self._words(node, record))
            return
        if record is not None and can_take(record, self.plan, node.name):
            self._update(node, path)
            return
        self._stop_ray()  # an endpoint outlives us, so it has a Ray of its own, unless there is a cluster
        stop(path)
        path.unlink(missing_ok=True)
        self._log(node.name).unlink(missing_ok=True)
        self.display.started(node.name)
        began = time.monotonic()
        process, log = self._spawn([sys.executable, "-m", PROGRAM, str(run_json), node.name], node.name)
        try:
            while (record := read_record(path)) is None:
                code = process.poll()
                if code is not None:
                    words = failure_words(code, log)
                    self.display.failed(node.name, words)
                    raise _failure(node, code, words, log)
                time.sleep(POLL)
        except BaseException:
            _end(process)
            raise
        self._served(node, record, began)

    def _update(self, node: Node, path: Path) -> None:
        """The endpoint that serves goes over to the new model, without an interruption."""
        self.display.started(node.name)
        began = time.monotonic()
        try:
            record = update(path)
        except PlumblineError as error:
            self.display.failed(node.name, str(error))
            raise PlumblineError(f"stage '{node.name}': {error}\n(full log: {self._log(node.name)})") from error
        self._served(node, record, began)

    def _served(self, node: Node, record: EndpointRecord, began: float) -> None:
        if (error := record["update"]["error"]) is not None:
            self.display.failed(node.name, error)
            raise PlumblineError(f"stage '{node.name}': {error}")
        self.display.finished(node.name, time.monotonic() - began, {})
        self.display.event(Event(node.name, self._words(node, record)))

    def _words(self, node: Node, record: EndpointRecord) -> str:
        release = Records(self.plan.workspace_uri, self.plan.name, node.name).read()
        state = f" ({release.words()})" if release is not None and release.releasing else ""
        return f"serving at {record['url']}{state}"

    def _start_ray(self) -> None:
        if self._embedded:
            import ray

            if not ray.is_initialized():
                self._embedded = False
        if self.ray_address is None and not self._embedded:
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


def is_done(plan: Plan, node: Node) -> bool:
    """Whether the stage's artifact is whole; of a `serve` stage, whether its endpoint serves and answers."""
    if node.kind != "serve":
        return plan.artifact(node.name) is not None
    record = read_record(record_path(run_folder(plan), node.name))
    return record is not None and serves(record, plan, node.name)


def run_folder(plan: Plan) -> Path:
    """Where this driver keeps RUN.json, logs and progress: in a local workspace, or in the user's cache."""
    workspace = plan.workspace
    if workspace.is_local:
        return Path(workspace.path("runs", plan.name))
    return cache_folder("runs", hashlib.sha256(plan.workspace_uri.encode()).hexdigest()[:16], plan.name)


def endpoint_records(run: AlignmentRun, workspace: str | None = None) -> dict[str, Path]:
    """The record of every endpoint that a run has left here, by stage; the process behind it may be gone (`read_record`).

    Nothing is resolved: what serves must be found after its data has gone, or its stage from the file.
    """
    plan = Plan(run, Graph(()), {}, {}, Workspace(workspace or run.spec.workspace.uri).uri)
    return {path.stem.removeprefix("endpoint-"): path for path in sorted(run_folder(plan).glob("endpoint-*.json"))}


def report_copy(plan: Plan, report: Artifact) -> Path:
    """The report's page under a name that stays from run to run."""
    copy = run_folder(plan) / f"report-{report.manifest['stage']}.html"
    shutil.copyfile(report.local() / "report.html", copy)
    return copy


def _require_pass(plan: Plan, node: Node) -> None:
    """Raise GateNotPassed when the stage is an evaluation whose gate said anything but pass."""
    report = plan.artifact(node.name) if node.kind == "evaluate" else None
    verdict = report.details["verdict"] if report else None
    if verdict not in (None, "pass"):
        assert report is not None
        raise GateNotPassed(f"the gate of '{node.name}' says {verdict}: {report.details['verdictReason']}")


def _failure(node: Node, code: int, words: str, log: Path) -> PlumblineError:
    error = InvalidInput if code == EXIT_INVALID else PlumblineError
    return error(f"stage '{node.name}': {words}\n(full log: {log})")


def _end_words(code: int) -> str:
    """How a process ended, for people."""
    if code >= 0:
        return f"ended with exit code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{hint}"


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
    return max(getattr(p, "most", p) for p in parallelisms)


def _key_metrics(plan: Plan, stage: str) -> dict[str, float]:
    artifact = plan.artifact(stage)
    metrics = artifact.metrics if artifact else {}
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def failure_words(code: int, log: Path) -> str:
    """Why a stage program failed: what it said last after `error:` at the beginning of a line, else how it ended."""
    if code < 0:
        return _end_words(code)
    found = re.split(r"^error: ", log.read_text(errors="replace"), flags=re.MULTILINE)
    if len(found) > 1:
        return found[-1].strip()
    # It says why, unless it cannot.
    return f"{_end_words(code)} and said nothing; is there no space left at {log.parent}?"
