"""A local endpoint: `python -m plumbline.serving.endpoint RUN.json STAGE` serves until it is told to stop.

In a cluster the same application is a RayService and this program is not used.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import traceback
import urllib.request
from pathlib import Path

from plumbline.builtin import skills
from plumbline.errors import PlumblineError
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.plan import Plan
from plumbline.ray_environment import connect, start_local
from plumbline.runner import endpoint_path
from plumbline.serving import local
from plumbline.serving.application import ServedModel
from plumbline.stage import die_with_parent, sentence


def serve(plan: Plan, stage: str) -> None:
    """Serve the stage's model, prove it with one request, write the record, and wait for SIGTERM or SIGINT."""
    node = plan.graph[stage]
    spec = plan.run.spec.stages[[n.name for n in plan.graph.nodes].index(stage)].serve
    assert spec is not None
    parent = node.inputs["model"][0]
    artifact = plan.artifact(parent) if parent != "base" else None
    name = spec.model_name or plan.name
    if os.environ.get("RAY_ADDRESS"):
        connect()
    else:
        start_local(spec.replicas + 2)
    model = ServedModel(name, ModelReference.of(plan, artifact), spec.max_tokens)
    url = local.start([model], port=spec.port, replicas=spec.replicas, max_ongoing_requests=spec.max_ongoing_requests)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    record = {
        "url": url,
        "pid": os.getpid(),
        "model": name,
        "fingerprint": plan.fingerprints[stage],
        "modelFingerprint": artifact.fingerprint if artifact else None,
        "sample": _ask(url, name, plan.run.spec.model.base),
    }
    path = endpoint_path(plan, stage)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(record))
    partial.replace(path)
    die_with_parent(False)  # from here on it is a service of its own
    print(f"serving {name} at {url}", flush=True)
    try:
        stop.wait()
    finally:
        _forget(path)
        local.stop()


def _ask(url: str, model: str, base: str) -> dict[str, str]:
    """One chat request as a user would send it: the endpoint is ready when it has answered."""
    prompt = next(skills.tasks(1, split="heldout", seed=7)).prompt if base == TINY else "Hello! What can you do?"
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 32, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return {"prompt": prompt, "answer": json.load(answer)["choices"][0]["message"]["content"]}


def _forget(path: Path) -> None:
    """Remove the record if it is still ours."""
    if path.exists() and json.loads(path.read_text())["pid"] == os.getpid():
        path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m plumbline.serving.endpoint", description="Serve one stage until stopped."
    )
    parser.add_argument("run", type=Path, help="RUN.json, written by a driver")
    parser.add_argument("stage", help="name of the serve stage")
    options = parser.parse_args()
    if os.environ.get("PLUMBLINE_DIE_WITH_PARENT"):
        die_with_parent()
    try:
        serve(Plan.load(options.run), options.stage)
    except Exception as error:
        words, code = sentence(error)
        if not isinstance(error, PlumblineError):
            traceback.print_exc()
        print(f"error: {words}", file=sys.stderr, flush=True)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
