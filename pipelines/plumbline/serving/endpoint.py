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
import urllib.request
from pathlib import Path

from plumbline.builtin import skills
from plumbline.errors import complain
from plumbline.external import TINY
from plumbline.local_endpoint import open_local, record_path
from plumbline.plan import Plan
from plumbline.stage import die_with_parent, follow_driver


def serve(plan: Plan, stage: str, folder: Path) -> None:
    """Serve the stage's model, prove it with one request, write the record to `folder`, and wait for SIGTERM or SIGINT."""
    # Imported here: this takes seconds, and the driver must be followed from the first moment on.
    from plumbline.api.stages.serve import ServeSpec
    from plumbline.ray_environment import connect, start_local
    from plumbline.serving.chat import ServedModel
    from plumbline.serving.local import deployment

    model = ServedModel.of(plan, stage)
    spec = plan.graph[stage].spec
    assert isinstance(spec, ServeSpec)
    if os.environ.get("RAY_ADDRESS"):
        connect()
    else:
        start_local(spec.replicas + 2)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with deployment(
        [model],
        application=f"endpoint-{plan.name}-{stage}",
        port=spec.port,
        replicas=spec.replicas,
        max_ongoing_requests=spec.max_ongoing_requests,
    ) as url:
        record = {
            "url": url,
            "pid": os.getpid(),
            "model": model.name,
            "fingerprint": plan.fingerprints[stage],
            "modelFingerprint": model.reference.fingerprint,
            "serve": spec.model_dump(mode="json", by_alias=True),
            "sample": _ask(url, model.name, plan.run.spec.model.base),
        }
        die_with_parent(None)  # from here on it is a service of its own
        path = record_path(folder, stage)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(record))
        partial.replace(path)
        print(f"serving {model.name} at {url}", flush=True)
        try:
            stop.wait()
        finally:
            _forget(path)


def _ask(url: str, model: str, base: str) -> dict[str, str]:
    """One chat request as a user would send it: the endpoint is ready when it has answered."""
    prompt = next(skills.tasks(1, split="heldout", seed=7)).prompt if base == TINY else "Hello! What can you do?"
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 32, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with open_local(request, timeout=600) as answer:
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
    follow_driver()
    try:
        serve(Plan.load(options.run), options.stage, options.run.parent)
    except Exception as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
