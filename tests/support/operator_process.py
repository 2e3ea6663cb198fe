"""The operator as the chart's Deployment starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from support.patience import wait_for
from support.ports import free_port


class Operator:
    """One replica, as a process with the arguments, settings and environment of the chart's Deployment."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self._arguments, self._environment = arguments, environment
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self, wait: bool = True) -> None:
        """Start it; with `wait` return once it is ready."""
        self.port = free_port()
        arguments = [one if not one.startswith("--port") else f"--port={self.port}" for one in self._arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "plumbline_operator", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._environment,
            )

        def ready() -> bool:
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(words())
            return self.probe("/readyz") == 200

        def words() -> str:
            return f"{self.name} did not get ready:\n{self.log.read_text()[-4000:]}"

        if wait:
            wait_for(ready, why=words)

    def send(self, number: signal.Signals) -> int | None:
        """Send a signal and wait for the end; returns the exit code."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.send_signal(number)
        code = self._process.wait(60)
        self._process = None
        return code

    def kill(self) -> None:
        self.send(signal.SIGKILL)

    def stop(self) -> int | None:
        return self.send(signal.SIGTERM)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def probe(self, path: str) -> int:
        """HTTP status of a probe; 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metrics(self, name: str) -> dict[str, float]:
        """Series of a metric, by their labels as written; none where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return {}
        found = [line.removeprefix(name).rpartition(" ") for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return {labels: float(value) for labels, _, value in found}
