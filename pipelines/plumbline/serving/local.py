"""Serving on the Ray that this process is connected to: the one file that starts and stops Ray Serve."""

from __future__ import annotations

import fcntl
import logging
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, LoggingConfig

from plumbline.api.stages.autoscaling import AutoscalingSpec
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.local_endpoint import open_local
from plumbline.serving.adapters import ServedAdapters
from plumbline.serving.admission.gate import AdmissionSettings
from plumbline.serving.application import ServingArguments, build
from plumbline.serving.chat import ServedModel
from plumbline.serving.release.controller import ReleaseArguments, end

HOST = "127.0.0.1"
FIRST_PORT = 8000
PORTS_TO_TRY = 100
REPLICA_CPUS = 0.5  # fits beside other work
DRAIN_SECONDS = 10
STOP_SECONDS = 30  # from the end of draining to that of the replicas
START_SECONDS = 1800  # a large model on a new node: pull, load, first token


@contextmanager
def deployment(
    models: Sequence[ServedModel],
    *,
    application: str,
    port: int | None,
    replicas: int,
    max_ongoing_requests: int,
    admission: AdmissionSettings | None = None,
    release: ReleaseArguments | None = None,
    adapters: ServedAdapters | None = None,
    autoscaling: AutoscalingSpec | None = None,
    drain_seconds: int = DRAIN_SECONDS,
) -> Iterator[str]:
    """Serve the models while the block runs; gives the base URL, `http://127.0.0.1:PORT/v1`.

    When the block has ended, requests under way are finished before Serve ends; new ones are told that nothing is there (404).

    A Ray cluster has one Serve with one port. Where another application is served already, this one is put beside it,
    below a path of its own, and `port` must be left out or be that port.

    Args:
        models: what to serve.
        application: name of the Serve application; one of the same name that a killed attempt left is replaced.
        port: None takes 8000 or the next free one.
        replicas: copies of each model.
        max_ongoing_requests: requests that one replica works on at the same time.
        admission: who may ask, and how much; None: anybody on this machine, anything.
        release: the model that a later one may take the place of.
        adapters: of the released model's base.
        autoscaling: bounds and targets of the number of replicas; None: it stays.
        drain_seconds: that requests under way have when their replica must go, also at the end.

    Raises:
        InvalidInput: the port is taken, or a model cannot be loaded.
        PlumblineError: the models did not come up.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    others = _clear(application, drain_seconds)
    path = f"/{application}" if others else "/"
    lock: IO[str] | None = None
    try:
        if others:
            chosen = _shared_port(port)
        else:
            chosen, lock = _claim_port(port)
        gpus = ray.cluster_resources().get("GPU", 0)
        arguments = ServingArguments(
            models=list(models),
            replicas=replicas,
            max_ongoing_requests=max_ongoing_requests,
            num_cpus=REPLICA_CPUS,
            num_gpus=1 if gpus >= (autoscaling.max_replicas if autoscaling else replicas) else 0,
            admission=admission,
            release=release,
            adapters=adapters,
            autoscaling=autoscaling,
            drain_seconds=drain_seconds,
        )
        quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
        options = HTTPOptions(host=HOST, port=chosen)
        serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=options, logging_config=quiet)
        target = serve.RunTarget(build(arguments), name=application, route_prefix=path, logging_config=quiet)
        serve.run_many([target], wait_for_applications_running=False)
        url = f"http://{HOST}:{chosen}{path.rstrip('/')}"
        _wait(application, f"{url}/healthz")
        yield f"{url}/v1"
    finally:
        _clear(application, drain_seconds)
        if release is not None:
            end(release)
        if lock is not None:
            lock.close()


def _clear(application: str, drain_seconds: int) -> list[str]:
    """Remove the application when its requests have ended, and Serve itself if nothing else is served; returns what else is."""
    try:
        running = serve.status().applications
    except RayServeException:
        return []  # Serve is not running
    if application in running:  # first of all, and not with the rest of Serve: that would break the proxy's connections off
        serve.delete(application, _blocking=False)
        deadline = time.monotonic() + drain_seconds + STOP_SECONDS
        while application in running and time.monotonic() < deadline:
            time.sleep(0.1)
            running = serve.status().applications  # others may have come or gone meanwhile
    others = [name for name in running if name != application]
    if not others:
        serve.shutdown()
    return others


def _shared_port(wanted: int | None) -> int:
    """The port of the Serve that runs already."""
    port = int(serve.context._get_global_client().http_config.port)
    if wanted not in (None, port):
        raise InvalidInput(f"`port` {wanted}: this Ray serves on port {port} already; leave `port` out to share it")
    return port


def _claim_port(wanted: int | None) -> tuple[int, IO[str]]:
    """A free port, and the lock that keeps it ours.

    Serve binds with SO_REUSEPORT: two that choose one port at the same time would both get it, and each other's requests.

    Raises:
        InvalidInput: the wanted port is taken.
        PlumblineError: none is free.
    """
    for port in [wanted] if wanted is not None else range(FIRST_PORT, FIRST_PORT + PORTS_TO_TRY):
        try:
            lock = (Path(tempfile.gettempdir()) / f"plumbline-port-{port}.lock").open("w")
        except OSError:
            continue  # another user's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((HOST, port))
        except OSError:
            lock.close()
            continue
        return port, lock
    if wanted is not None:
        raise InvalidInput(f"port {wanted} on {HOST} is taken; set `port` to a free one, or leave it out to have one found")
    raise PlumblineError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS_TO_TRY - 1} is free on {HOST}; set `port`")


def _wait(name: str, url: str) -> None:
    """Return when the application answers; raise when it failed or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        application = serve.status().applications[name]
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            details = "\n".join([application.message, *(d.message for d in application.deployments.values())])
            raise _start_failure(details)
        if application.status == ApplicationStatus.RUNNING and _answers(url):
            return
        if time.monotonic() > deadline:
            raise PlumblineError(
                f"the models did not come up within {START_SECONDS} s: {application.message or application.status}"
            )
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with open_local(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:  # refused, or 503 while it comes up
        return False


def _start_failure(details: str) -> PlumblineError:
    """Serve hands over a replica's error as text: find the sentence for people in it."""
    invalid = re.search(r"plumbline\.errors\.InvalidInput: (.+)", details)
    if invalid:
        return InvalidInput(invalid[1].strip())
    known = re.search(r"plumbline\.[\w.]+: (.+)", details)
    lines = [line.strip() for line in details.splitlines() if line.strip()]
    return PlumblineError(
        f"the models did not come up: {known[1].strip() if known else lines[-1] if lines else 'no reason given'}"
    )
