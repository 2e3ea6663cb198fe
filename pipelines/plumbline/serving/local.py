"""Serving on the Ray that this process is connected to: the one file that starts and stops Ray Serve."""

from __future__ import annotations

import logging
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, LoggingConfig

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.serving.application import ServingArguments, build
from plumbline.serving.chat import ServedModel

APPLICATION = "plumbline"
HOST = "127.0.0.1"
FIRST_PORT = 8000
PORTS_TO_TRY = 100
REPLICA_CPUS = 0.5  # fits beside other work; the engine is one thread
START_SECONDS = 1800  # a large model on a new node: pull, load, first token


@contextmanager
def deployment(
    models: Sequence[ServedModel], *, port: int | None, replicas: int, max_ongoing_requests: int
) -> Iterator[str]:
    """Serve the models while the block runs; gives the base URL, `http://127.0.0.1:PORT/v1`.

    Raises:
        InvalidInput: the port is taken, or a model cannot be loaded.
        PlumblineError: the models did not come up.
    """
    try:
        yield start(models, port=port, replicas=replicas, max_ongoing_requests=max_ongoing_requests)
    finally:
        stop()


def start(models: Sequence[ServedModel], *, port: int | None, replicas: int, max_ongoing_requests: int) -> str:
    """Serve the models until `stop`; returns once every model has answered. See `deployment`."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _take_over()
    chosen = _free_port() if port is None else _checked_port(port)
    gpus = ray.cluster_resources().get("GPU", 0)
    arguments = ServingArguments(
        models=list(models),
        replicas=replicas,
        max_ongoing_requests=max_ongoing_requests,
        num_cpus=REPLICA_CPUS,
        num_gpus=1 if gpus >= replicas else 0,
    )
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    options = HTTPOptions(host=HOST, port=chosen)
    serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=options, logging_config=quiet)
    target = serve.RunTarget(build(arguments), name=APPLICATION, route_prefix="/", logging_config=quiet)
    serve.run_many([target], wait_for_applications_running=False)
    _wait(f"http://{HOST}:{chosen}/healthz")
    return f"http://{HOST}:{chosen}/v1"


def stop() -> None:
    """Stop serving; nothing happens when nothing is served."""
    serve.shutdown()


def _take_over() -> None:
    """Remove what an attempt that was killed left behind; leave the applications of others alone."""
    try:
        applications = serve.status().applications
    except RayServeException:
        return  # Serve is not running
    others = [name for name in applications if name != APPLICATION]
    if others:
        raise PlumblineError(
            f"this Ray already serves '{others[0]}'; use a Ray cluster of its own for Plumbline, or delete it"
        )
    serve.shutdown()


def _checked_port(port: int) -> int:
    if not _is_free(port):
        raise InvalidInput(f"port {port} on {HOST} is taken; set `port` to a free one, or leave it out to have one found")
    return port


def _free_port() -> int:
    for port in range(FIRST_PORT, FIRST_PORT + PORTS_TO_TRY):
        if _is_free(port):
            return port
    raise PlumblineError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS_TO_TRY - 1} is free on {HOST}; set `port`")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _wait(url: str) -> None:
    """Return when the application answers; raise when it failed or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        application = serve.status().applications[APPLICATION]
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
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
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
