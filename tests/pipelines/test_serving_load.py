"""Replicas that come with load, die under it, go after it and come again, behind Serve's HAProxy; and what Prometheus sees of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from plumbline.local_endpoint import open_local
from plumbline.serving.prometheus import COUNTERS, GAUGES, HISTOGRAMS, PREFIX
from support.patience import PATIENCE, wait_for
from support.served_process import BEGINS, ENDLESS, FINGERPRINT, LONG, MODEL, TARGET

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

CLIENTS = 3 * TARGET  # more than two replicas want


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str
    metrics: str

    def replicas(self) -> list[int]:
        """Process ids."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child.pid for child in children if _name(child).startswith("ray::ServeReplica")]

    def figures(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of a metric of ours, as Ray exports it."""
        with open_local(self.metrics, timeout=30) as answer:
            text = answer.read().decode()
        found = re.findall(rf"^ray_{PREFIX}{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
        return [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for labels, value in found]

    def counts(self) -> dict[str, float]:
        """What each replica has answered."""
        found: dict[str, float] = {}
        for labels, value in self.figures("requests_total"):
            found[labels["replica"]] = found.get(labels["replica"], 0) + value
        return found

    def answering(self) -> set[str]:
        """Replicas that have answered."""
        return {*self.counts()}

    def running(self, model: str) -> int:
        """Requests that a replica works on."""
        with open_local(self.url.removesuffix("/v1") + "/healthz", timeout=PATIENCE) as answer:
            return next(found["running"] for found in json.load(answer)["models"] if found["name"] == model)

    def stop(self) -> int:
        """Ask it to end, and wait until it has; returns its exit status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.read()
        return self.process.wait()


@dataclass
class Outcomes:
    answers: int = 0
    streams: int = 0
    broken: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "support.served_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment,
    )
    assert process.stdout is not None
    said = next((line for line in process.stdout if line.startswith(BEGINS)), None)
    assert said, "it did not come up"
    found = Served(process, **json.loads(said))
    try:
        yield found
    finally:
        found.stop()


@contextmanager
def load(served: Served, clients: int = CLIENTS, model: str = MODEL, tokens: int = 400) -> Iterator[Outcomes]:
    """Requests all the time, every third a stream, of every second the head first, as many clients send it. What failed is known when the block has ended."""
    found, over = Outcomes(), threading.Event()
    lock = threading.Lock()

    def client(number: int) -> None:
        stream = number % 3 == 0
        system = {"role": "system", "content": "You count. " * 30}  # all begin alike: caches have something to do
        chat = [system, {"role": "user", "content": f"Count to {number}."}]
        body = json.dumps({"model": model, "messages": chat, "max_tokens": tokens, "stream": stream}).encode()
        while not over.is_set():
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
            request = urllib.request.Request(
                f"{served.url}/chat/completions", _after_a_while(body) if number % 2 else body, headers
            )
            try:
                with open_local(request, timeout=PATIENCE) as answer:
                    text = answer.read().decode()
                whole = text.endswith("data: [DONE]\n\n") if stream else bool(json.loads(text)["choices"])
                with lock:
                    found.streams += stream and whole
                    found.answers += not stream and whole
                    found.failures += [] if whole else [text[-300:]]
            except (http.client.IncompleteRead, ConnectionError) as error:
                with lock:
                    (found.broken if stream else found.failures).append(repr(error))
            except Exception as error:
                with lock:
                    found.failures.append(repr(error))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for one in threads:
        one.start()
    try:
        yield found
    finally:
        over.set()
        for one in threads:
            one.join()


def test_load_brings_up_a_second_replica_and_both_are_counted(served: Served) -> None:
    with load(served) as found:
        wait_for(lambda: len(served.answering()) == 2)
        wait_for(lambda: sum(value for _, value in served.figures("requests_running")) > 0)
        assert [name for name in GAUGES if not served.figures(name)] == []  # they go with their replicas
    assert not found.failures + found.broken
    count = found.answers + found.streams
    wait_for(lambda: sum(value for _, value in served.figures("requests_total")) >= count)
    labels, _ = served.figures("requests_total")[0]
    assert labels.items() >= {"model": MODEL, "version": FINGERPRINT, "route": "chat", "status": "200"}.items()
    assert sum(value for _, value in served.figures("first_token_seconds_count")) == found.streams
    exported = {*(f"{name}_total" for name in COUNTERS), *(f"{name}_bucket" for name in HISTOGRAMS)}
    assert [name for name in exported if not served.figures(name)] == []


@pytest.mark.parametrize("dying", [1, 2])
def test_replicas_that_die_lose_no_answer_and_their_streams_break_unmistakably(served: Served, dying: int) -> None:
    """Also where none is left: what has no answer yet waits for a new one."""
    with load(served) as found:
        wait_for(lambda: len(served.replicas()) == 2)
        before = served.counts()
        # Both are known to the proxy: each has answered for a while.
        wait_for(
            lambda: sum(count > before.get(replica, 0) + 2 * CLIENTS for replica, count in served.counts().items()) == 2
        )
        victims = served.replicas()[:dying]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        answers = found.answers
        wait_for(lambda: len(set(served.replicas()) - {*victims}) == 2 and found.answers > answers + 10 * CLIENTS)
    assert found.failures == []
    assert len(found.broken) <= CLIENTS


def test_a_replica_that_goes_ends_what_it_has_begun_and_others_take_what_comes(served: Served) -> None:
    wait_for(lambda: len(served.replicas()) <= 1)
    known, coming = served.answering(), 2 - len(served.replicas())
    with load(served, clients=TARGET - 1, model=ENDLESS, tokens=LONG // 2) as found:
        with load(served):
            wait_for(lambda: len(served.answering() - known) >= coming)
        wait_for(lambda: len(served.replicas()) == 1)
    assert found.failures + found.broken == []
    assert found.streams
    assert found.answers


def test_none_is_left_when_nobody_asks_and_requests_then_wait_for_one(served: Served) -> None:
    wait_for(lambda: not served.replicas())
    with load(served) as found:
        wait_for(lambda: found.streams and found.answers)
    assert found.failures + found.broken == []


def test_the_end_waits_for_what_is_under_way(served: Served) -> None:
    """The last test: nothing serves any more."""
    with load(served, clients=2, model=ENDLESS, tokens=LONG) as found:
        wait_for(lambda: served.running(ENDLESS) == 2)
        over = ThreadPoolExecutor().submit(served.stop)
    assert over.result() == 0
    assert (found.failures, found.broken) == ([], [])


def _after_a_while(body: bytes) -> Iterator[bytes]:
    time.sleep(0.01)
    yield body


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
