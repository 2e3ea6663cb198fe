"""The endpoints that `plumbline run` leaves serving on this machine: their records, and how to end them."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from plumbline.errors import PlumblineError
from plumbline.plan import Plan
from plumbline.serving.release.record import Records

PROGRAM = "plumbline.serving.endpoint"
GRACE = 60.0  # seconds that an endpoint has to end after its last answer
ANSWER_SECONDS = 30.0  # to say that it is healthy: a busy one must not be taken for dead
POLL = 0.1

REPLACEABLE = ("modelName", "maxTokens", "ungated", "release")
"""Fields of the stage's block that an endpoint takes over while it serves."""

Record = dict[str, Any]
"""url, pid, model, fingerprint (of the stage), serve (the stage's block), sample, update (id of the last request to take another
model, and why it could not)."""


def record_path(folder: Path, stage: str) -> Path:
    """Where the endpoint of a stage keeps its record, in the driver's folder of the run."""
    return folder / f"endpoint-{stage}.json"


def read_record(path: Path) -> Record | None:
    """The record, if its process lives and is an endpoint of ours; what a dead one left behind counts as none."""
    try:
        record = json.loads(path.read_text())
        return record if _is_endpoint(int(record["pid"])) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def serves(record: Record, plan: Plan, stage: str) -> bool:
    """Whether it serves what the plan wants, or is releasing it, in the way it wants it, and answers."""
    wanted = plan.graph[stage].spec.model_dump(mode="json", by_alias=True)
    fingerprint = plan.fingerprints[stage]
    if record["fingerprint"] != fingerprint or record["serve"] != wanted or not answers(record):
        return False
    release = Records(plan.workspace_uri, plan.name, stage).read()
    known = [release.stable, release.candidate if release.releasing else None] if release is not None else []
    return release is None or any(version is not None and version.fingerprint == fingerprint for version in known)


def can_take(record: Record, plan: Plan, stage: str) -> bool:
    """Whether it can go over to what the plan wants without an interruption: nothing else than the model has changed."""
    wanted = plan.graph[stage].spec.model_dump(mode="json", by_alias=True)
    before = record["serve"]
    return (
        "update" in record
        and answers(record)
        and all(wanted.get(name) == before.get(name) for name in wanted.keys() | before.keys() if name not in REPLACEABLE)
    )


def update(path: Path) -> Record:
    """Have the endpoint of a record read its RUN.json again; returns its new record, when the model there is loaded.

    Raises:
        PlumblineError: it serves on what it served, and why.
    """
    record = read_record(path)
    request = uuid.uuid4().hex
    if record is not None:
        request_path(path).write_text(request)
        os.kill(record["pid"], signal.SIGHUP)
    while record is not None and record["update"]["id"] != request:
        time.sleep(POLL)
        record = read_record(path)
    if record is None:
        raise PlumblineError("the endpoint ended while it was to take the new model; run again to start it")
    if record["update"]["error"]:
        raise PlumblineError(record["update"]["error"])
    return record


def request_path(path: Path) -> Path:
    """Where an endpoint with this record finds the id of the last request to it."""
    return path.with_suffix(".request")


def answers(record: Record) -> bool:
    """Whether `/healthz` says that the model is up, in whatever version.

    Where there may be no replica, asking would bring one up: that its process lives must do.
    """
    scaling = record["serve"].get("autoscaling")
    if scaling and not scaling["minReplicas"]:
        return True
    try:
        with open_local(record["url"].removesuffix("/v1") + "/healthz", timeout=ANSWER_SECONDS) as answer:
            return record["model"] in {model["name"] for model in json.load(answer)["models"]}
    except (OSError, ValueError, KeyError):
        return False


def stop(path: Path) -> bool:
    """End the endpoint of a record, whether it answers or not; returns whether there was one.

    It is given the time to finish what it has begun to answer, `drainSeconds` at most.
    """
    record = read_record(path)
    if record is None:
        return False
    deadline = time.monotonic() + record["serve"].get("drainSeconds", 0) + GRACE
    try:
        os.kill(record["pid"], signal.SIGTERM)
        while _is_endpoint(record["pid"]):  # its record goes before its port is free
            if time.monotonic() > deadline:
                os.kill(record["pid"], signal.SIGKILL)
            time.sleep(POLL)
    except ProcessLookupError:
        pass  # it ended by itself meanwhile
    if read_record(path) is None:  # else another one has come meanwhile
        path.unlink(missing_ok=True)
    return True


def open_local(request: str | urllib.request.Request, timeout: float) -> Any:
    """`urlopen` for this machine: a proxy of the environment has no business there."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout)


def _is_endpoint(pid: int) -> bool:
    """Whether the process runs, and is an endpoint; one that has ended and was not waited for has no command line."""
    try:
        return PROGRAM.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
