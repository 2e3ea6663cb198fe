"""The endpoints that `plumbline run` leaves serving on this machine: their records, and how to end them."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

from plumbline.plan import Plan

PROGRAM = "plumbline.serving.endpoint"
GRACE = 20.0  # seconds that an endpoint has to end after it was asked to
POLL = 0.1

Record = dict[str, Any]
"""url, pid, model, fingerprint (of the stage), modelFingerprint, serve (the stage's block), sample."""


def record_path(folder: Path, stage: str) -> Path:
    """Where the endpoint of a stage keeps its record, in the driver's folder of the run."""
    return folder / f"endpoint-{stage}.json"


def read_record(path: Path) -> Record | None:
    """The record, if its process lives and is an endpoint of ours; what a dead one left behind counts as none."""
    try:
        record = json.loads(path.read_text())
        command = Path(f"/proc/{int(record['pid'])}/cmdline").read_bytes()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if PROGRAM.encode() in command else None


def serves(record: Record, plan: Plan, stage: str) -> bool:
    """Whether it serves what the plan wants, in the way it wants it, and answers."""
    wanted = plan.graph[stage].spec.model_dump(mode="json", by_alias=True)
    return record["fingerprint"] == plan.fingerprints[stage] and record["serve"] == wanted and answers(record)


def answers(record: Record) -> bool:
    """Whether `/healthz` says that the model is up."""
    try:
        with open_local(record["url"].removesuffix("/v1") + "/healthz", timeout=5) as answer:
            models = {model["name"]: model.get("fingerprint") for model in json.load(answer)["models"]}
    except (OSError, ValueError, KeyError):
        return False
    return models.get(record["model"], "") == record["modelFingerprint"]


def stop(path: Path) -> bool:
    """End the endpoint of a record, whether it answers or not; returns whether there was one."""
    record = read_record(path)
    if record is None:
        return False
    try:
        os.kill(record["pid"], signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while read_record(path) is not None and _lives(record["pid"]):
            if time.monotonic() > deadline:
                os.kill(record["pid"], signal.SIGKILL)
                break
            time.sleep(POLL)
    except ProcessLookupError:
        pass  # it ended by itself meanwhile
    path.unlink(missing_ok=True)
    return True


def open_local(request: str | urllib.request.Request, timeout: float) -> Any:
    """`urlopen` for this machine: a proxy of the environment has no business there."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
