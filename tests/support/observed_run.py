"""A run on an API server as its operator would have written it, and what the command says of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from plumbline.api import labels
from plumbline.api.report import StageReport, stage_key
from support.runs import Runs

Command = Callable[..., tuple[int, str, str]]
"""Runs `plumbline` in this process: exit code, standard output, standard error."""
SPEC: dict[str, Any] = {
    "model": {"base": "builtin://tiny"},
    "workspace": {"uri": "/workspace/quickstart"},
    "stages": [
        {"name": "data", "curate": {"sources": [{"uri": "builtin://skills"}]}},
        {"name": "sft", "sft": {}},
        {
            "name": "check",
            "evaluate": {
                "tasks": [{"name": "skills", "benchmark": "skills"}],
                "gates": [{"task": "skills", "threshold": 0.5}],
            },
        },
        {"name": "live", "serve": {}},
    ],
}


def condition(kind: str, value: str, reason: str, message: str) -> dict[str, Any]:
    moment = "2026-01-01T00:00:00Z"
    return {"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": moment}


def stages(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = {"data": "curate", "sft": "sft", "check": "evaluate", "live": "serve"}
    by_name: dict[str, dict[str, Any]] = {
        name: {"name": name, "kind": kind, "phase": "Pending"} for name, kind in kinds.items()
    }
    for change in changes:
        by_name[change["name"]] |= change
    return list(by_name.values())


DATA = {
    "name": "data",
    "phase": "Cached",
    "attempt": 1,
    "metrics": {"rows": "12000"},
    "artifact": "/workspace/quickstart/artifacts/curate/f",
}
SFT = {
    "name": "sft",
    "phase": "Running",
    "attempt": 2,
    "startTime": "2026-01-01T00:00:00Z",
    "message": "training",
    "progress": {"step": 40, "total": 80, "etaSeconds": 95},
    "metrics": {"loss": "0.412"},
}
AT_WORK = {
    "observedGeneration": 1,
    "phase": "Running",
    "currentStage": "sft",
    "progress": "40/80",
    "plan": {"generation": 1, "done": True},
    "stages": stages(DATA, SFT),
    "conditions": [condition("Validated", "True", "Valid", "The run is valid.")],
}
CHECKED = {
    "name": "check",
    "phase": "Succeeded",
    "attempt": 1,
    "startTime": "2026-01-01T00:00:00Z",
    "endTime": "2026-01-01T01:01:05Z",
    "metrics": {"verdict": "fail", "skills/base": "0", "skills/sft": "0.482"},
}


class ObservedRun:
    """A run, and what the operator and Kubernetes would add to it."""

    def __init__(self, runs: Runs, name: str) -> None:
        self._runs, self.name = runs, name
        self.core = client.CoreV1Api(runs.api)
        self.uid = self._runs.create(self._value())["metadata"]["uid"]

    def _value(self) -> dict[str, Any]:
        return {
            "apiVersion": "plumbline.dev/v1alpha1",
            "kind": "AlignmentRun",
            "metadata": {"name": self.name},
            "spec": SPEC,
        }

    def status(self, value: dict[str, Any]) -> None:
        self._runs.patch_status(self.name, value)

    def read(self) -> dict[str, Any]:
        return self._runs.read(self.name)

    def labels(self, **more: str) -> dict[str, str]:
        return {labels.RUN: self.name, labels.RUN_UID: self.uid, **more}

    def pod(self, name: str, own: dict[str, str], containers: Sequence[str] = ("ray-head", "other")) -> None:
        self.core.create_namespaced_pod(
            "default",
            {
                "metadata": {"name": name, "labels": self.labels() | own},
                "spec": {"containers": [{"name": one, "image": "i"} for one in containers]},
            },
        )

    def delete_pod(self, name: str) -> None:
        # The answer is a Status, which the client does not expect.
        self.core.delete_namespaced_pod(name, "default", grace_period_seconds=0, _preload_content=False)

    def report(self, stage: str, report: StageReport) -> None:
        text = report.model_dump_json(by_alias=True, exclude_none=True)
        meta = {"name": f"{self.name}-state", "labels": self.labels(**{"app.kubernetes.io/component": "state"})}
        self.core.create_namespaced_config_map("default", {"metadata": meta, "data": {stage_key(stage): text}})

    def event(self, reason: str, message: str, kind: str = "Normal", uid: str | None = None) -> None:
        about = {"kind": "AlignmentRun", "name": self.name, "namespace": "default", "uid": uid or self.uid}
        self.core.create_namespaced_event(
            "default",
            {
                "metadata": {"name": f"{self.name}.{reason.lower()}"},
                "involvedObject": about,
                "reason": reason,
                "message": message,
                "type": kind,
                "lastTimestamp": "2026-01-01T00:00:00Z",
            },
        )


@dataclass(frozen=True)
class Access:
    """How the contract tests' API server is reached."""

    kubeconfig: str
    host: str
    token: str


def write_kubeconfig(path: Path, host: str, bearer: str) -> None:
    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": host, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "user", "user": {"token": bearer}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
    }
    path.write_text(yaml.safe_dump(value))


def refused(result: tuple[int, str, str], code: int = 2) -> str:
    assert (result[0], result[1]) == (code, ""), result
    assert result[2].startswith("error: ")
    assert result[2].count("\n") == 1, result[2]
    return result[2].removeprefix("error: ").rstrip()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
