"""What a run in a cluster serves, and how this machine reaches it: `kubectl port-forward`."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from plumbline.errors import PlumblineError
from plumbline.kubectl.cluster import Run


def endpoint(run: Run) -> str:
    """Base URL of what a run serves, as the cluster knows it.

    Raises:
        PlumblineError: it serves nothing, or nothing yet.
    """
    status = run.get("status") or {}
    if not status.get("endpoint"):
        serving = [stage for stage in status.get("stages") or [] if stage["kind"] == "serve"]
        why = serving[0].get("message") or f"its serve stage is {serving[0]['phase']}" if serving else "it serves nothing"
        raise PlumblineError(f"run '{run['metadata']['name']}' has no endpoint: {why}")
    return str(status["endpoint"])


@contextmanager
def reachable(url: str, context: str | None) -> Iterator[str]:
    """The URL as this machine reaches it: one of a Service in the cluster goes through `kubectl port-forward`."""
    parts = urlsplit(url)
    service, *rest = (parts.hostname or "").split(".")
    if len(rest) < 2 or rest[1] != "svc":
        yield url
        return
    with port_forward(service, rest[0], parts.port or 80, context) as port:
        yield f"http://127.0.0.1:{port}{parts.path}"


@contextmanager
def port_forward(service: str, namespace: str, port: int, context: str | None) -> Iterator[int]:
    """Forward a port of a Service to a free one of this machine while the block runs.

    Raises:
        PlumblineError: there is no kubectl, or it cannot forward.
    """
    program = shutil.which("kubectl")
    if program is None:
        raise PlumblineError(
            "the endpoint is inside the cluster and `kubectl`, which would forward its port, is not there; "
            "install it, or give an address that this machine reaches with --endpoint"
        )
    command = [program, "port-forward", f"--namespace={namespace}", "--address=127.0.0.1"]
    command += [f"--context={context}"] if context else []
    command += [f"service/{service}", f":{port}"]
    # A process group of its own: Ctrl-C ends an answer, and must not end what carries the next.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )
    assert process.stdout is not None
    before = [(number, signal.signal(number, _leave)) for number in (signal.SIGHUP, signal.SIGTERM)]
    try:
        said = ""
        for line in process.stdout:
            said += line
            if forwarded := re.match(r"Forwarding from 127\.0\.0\.1:(\d+) ", line):
                break
        else:
            raise PlumblineError(f"the port of service '{service}' cannot be forwarded: {' '.join(said.split())}")
        threading.Thread(target=process.stdout.read, daemon=True).start()  # it says a line for each connection
        yield int(forwarded[1])
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for number, handler in before:
            signal.signal(number, handler)


def _leave(number: int, _: object) -> None:
    """A window that closes must not leave the forwarding behind."""
    sys.exit(128 + number)
