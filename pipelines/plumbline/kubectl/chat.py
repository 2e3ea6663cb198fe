"""`chat`: a conversation with the endpoint of a run, over the OpenAI API that it speaks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO
from urllib.parse import urlsplit

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.local_endpoint import open_local

TIMEOUT = 600.0  # seconds between two pieces of an answer: a cold model takes long
Message = dict[str, str]


def converse(url: str, first: str | None, source: TextIO, shown: TextIO) -> None:
    """Ask and answer until the input ends.

    Args:
        url: base URL, `http://HOST:PORT/v1`.
        first: a single question; None reads questions from `source`.
        source: where the questions come from.
        shown: where answers go.

    Raises:
        InvalidInput: the endpoint refuses a request.
        PlumblineError: nothing answers there.
    """
    model = _model(url)
    messages: list[Message] = []
    interactive = first is None and source.isatty()
    if interactive:
        print(f"talking to {model} at {url}; end with Ctrl-D", file=shown)
    for question in [first] if first is not None else _questions(source, shown if interactive else None):
        messages.append({"role": "user", "content": question})
        answer = ""
        for piece in _answer(url, model, messages):
            answer += piece
            print(piece, end="", file=shown, flush=True)
        print(file=shown, flush=True)
        messages.append({"role": "assistant", "content": answer})


def _questions(source: TextIO, prompt: TextIO | None) -> Iterator[str]:
    while True:
        if prompt:
            print("> ", end="", file=prompt, flush=True)
        line = source.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _model(url: str) -> str:
    with _open(f"{url}/models", None) as answer:
        try:
            return str(json.load(answer)["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError):
            raise PlumblineError(
                f"{url} does not speak the OpenAI API; give its base URL, such as http://HOST:8000/v1"
            ) from None


def _answer(url: str, model: str, messages: list[Message]) -> Iterator[str]:
    with _open(f"{url}/chat/completions", {"model": model, "messages": messages, "stream": True}) as stream:
        for line in stream:
            kind, _, text = line.decode().strip().partition(": ")
            if kind != "data" or text == "[DONE]":
                continue
            event = json.loads(text)
            if "error" in event:
                raise PlumblineError(f"the endpoint failed: {event['error'].get('message')}")
            for choice in event["choices"]:
                yield choice["delta"].get("content") or ""


@contextmanager
def _open(url: str, body: dict[str, Any] | None) -> Iterator[Any]:
    if urlsplit(url).scheme not in ("http", "https"):
        raise InvalidInput(f"'{url}' is no http URL; give the base URL, such as http://HOST:8000/v1")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    try:
        with open_local(request, TIMEOUT) if local else urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        try:
            said = json.load(error)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = error.reason
        kind = InvalidInput if error.code < 500 else PlumblineError
        raise kind(f"{url} answers {error.code}: {said}") from error
    except OSError as error:
        raise PlumblineError(f"nothing answers at {url}: {getattr(error, 'reason', error)}") from error


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
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
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


def chat(url: str, context: str | None, message: str | None) -> int:
    """The `chat` command."""
    with reachable(url, context) as base:
        converse(base.rstrip("/"), message, sys.stdin, sys.stdout)
    return 0
