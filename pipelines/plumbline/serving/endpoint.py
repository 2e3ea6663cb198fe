"""A local endpoint: `python -m plumbline.serving.endpoint RUN.json STAGE` serves until it is told to stop.

In a cluster the same application is a RayService and this program is not used.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import secrets
import signal
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.builtin import skills
from plumbline.errors import complain, sentence
from plumbline.external import TINY
from plumbline.local_endpoint import POLL, Record, open_local, record_path, request_path
from plumbline.plan import Plan
from plumbline.stage import die_with_parent, follow_driver

if TYPE_CHECKING:
    from plumbline.serving.release.controller import ReleaseArguments


def serve(run_json: Path, stage: str) -> None:
    """Serve the stage's model, prove it with one request, write the record beside the RUN.json, and wait for a signal.

    SIGTERM and SIGINT end it. SIGHUP makes it read the RUN.json again and go over to the model there, without an interruption.
    """
    # Imported here: this takes seconds, and the driver must be followed from the first moment on.
    from plumbline.api.stages.serve import ServeSpec
    from plumbline.ray_environment import connect, start_local
    from plumbline.serving.release.record import Records

    plan = Plan.load(run_json)
    release = _release(plan, stage, uuid.uuid4().hex)
    Records(release.workspace, release.run, release.stage).read()  # what cannot be read is told before anything starts
    spec = plan.graph[stage].spec
    assert isinstance(spec, ServeSpec)
    if os.environ.get("RAY_ADDRESS"):
        connect()
    else:
        most = spec.autoscaling.max_replicas if spec.autoscaling else spec.replicas
        start_local(most + 2, fast_proxy=most > 1)  # with another replica, that proxy can ask it when one dies
    # Only now: they bring Ray Serve, which reads its settings as it is imported.
    from plumbline.serving.adapters import ServedAdapters
    from plumbline.serving.admission.gate import AdmissionSettings
    from plumbline.serving.local import deployment

    owner = secrets.token_urlsafe(32)  # with which we ask, whatever keys others need
    admission = AdmissionSettings.of(spec, stage, owner=owner)
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: signals.put(number))
    with deployment(
        [],
        application=f"endpoint-{plan.name}-{stage}",
        port=spec.port,
        replicas=spec.replicas,
        max_ongoing_requests=spec.max_ongoing_requests,
        admission=admission,
        release=release,
        adapters=ServedAdapters.of(plan, stage),
        autoscaling=spec.autoscaling,
        drain_seconds=spec.drain_seconds,
    ) as url:
        name, error = _settled(release)
        record = {
            "url": url,
            "pid": os.getpid(),
            "model": name,
            "sample": _ask(url, name, plan, stage, owner),
            "update": {"id": "", "error": error},
            **_serving(plan, stage),
        }
        die_with_parent(None)  # from here on it is a service of its own
        path = record_path(run_json.parent, stage)
        _write(path, record)
        print(f"serving {name} at {url}", flush=True)
        try:
            while signals.get() == signal.SIGHUP:
                if request_path(path).exists():  # else the signal is none of ours
                    record = _update(record, run_json, stage, release.holder, request_path(path).read_text(), owner)
                    _write(path, record)
        finally:
            _forget(path)


def _update(record: Record, run_json: Path, stage: str, holder: str, request: str, owner: str) -> Record:
    """Go over to the model that the RUN.json wants now; returns the new record, which says so if that cannot be."""
    try:
        plan = Plan.load(run_json)
        release = _release(plan, stage, holder)
        name, error = _settled(release, propose=True)
        if error is None:
            sample = _ask(record["url"], name, plan, stage, owner)
            record = {**record, "model": name, "sample": sample, **_serving(plan, stage)}
    except Exception as failure:  # whatever it is, the model that serves goes on
        error = sentence(failure)[0]
    print(f"update: {error or 'done'}", flush=True)
    return {**record, "update": {"id": request, "error": error}}


def _settled(release: ReleaseArguments, propose: bool = False) -> tuple[str, str | None]:
    """Wait until what is to be served is loaded, if it can be; returns the model's name, and why it could not or must not be."""
    import ray

    from plumbline.serving.release.controller import GONE_SECONDS, State, connect

    controller = connect(release)
    wanted = release.version
    if propose:
        rules = release.rules.model_dump_json(by_alias=True) if release.rules else None
        ray.get(controller.propose.remote(wanted.model_dump_json(by_alias=True), rules))
    deadline = time.monotonic() + GONE_SECONDS
    while True:
        state: State = ray.get(controller.state.remote())
        # The first report takes the record over. Scaled to zero there is none, and the next replica loads it.
        if (state.phase != "loading") if state.replicas else (time.monotonic() > deadline):
            refused = state.phase == "rolledBack" and state.stable.fingerprint != wanted.fingerprint
            return state.stable.name, state.words if refused else None
        time.sleep(POLL)


def _release(plan: Plan, stage: str, holder: str) -> ReleaseArguments:
    from plumbline.serving.chat import ServedModel
    from plumbline.serving.release.controller import ReleaseArguments

    return ReleaseArguments.of(plan, stage, ServedModel.of(plan, stage), holder)


def _serving(plan: Plan, stage: str) -> Record:
    """What the record says of the plan."""
    serve = plan.graph[stage].spec.model_dump(mode="json", by_alias=True)
    return {"fingerprint": plan.fingerprints[stage], "serve": serve}


def _write(path: Path, record: Record) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(record))
    partial.replace(path)


def _ask(url: str, model: str, plan: Plan, stage: str, key: str) -> dict[str, str]:
    """One request as a user would send it: the endpoint is ready when it has answered."""
    from plumbline.models.encoder import is_encoder
    from plumbline.serving.chat import ServedModel

    base = plan.run.spec.model.base
    prompt = next(skills.tasks(1, split="heldout", seed=7)).prompt if base == TINY else "Hello! What can you do?"
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    path, body = "chat/completions", {"messages": [{"role": "user", "content": prompt}], "max_tokens": 32, "temperature": 0}
    encodes = is_encoder(ServedModel.of(plan, stage).reference)
    if encodes:
        path, body = "embeddings", {"input": prompt}
    request = urllib.request.Request(f"{url}/{path}", json.dumps({"model": model, **body}).encode(), headers)
    with open_local(request, timeout=600) as answer:
        found = json.load(answer)
    if encodes:
        return {"prompt": prompt, "answer": f"{len(found['data'][0]['embedding'])} numbers"}
    return {"prompt": prompt, "answer": found["choices"][0]["message"]["content"]}


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
        serve(options.run, options.stage)
    except Exception as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
