"""A Ray cluster of several real nodes on this machine: `ray start` processes, each with a network, an address and a host name of
its own where root allows it, else side by side."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from support.fake_kuberay.machine import FOLDER, kill
from support.patience import wait_for
from support.ports import free_port

POLL = 0.1
HEAD = "head"
DRAIN = 180  # seconds that a node waits on SIGTERM for its work to end, as a worker Pod does; without work it goes at once
# Whoever vanishes is missed sooner than by default, and nobody who only stalls for ten seconds.
IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "3",
}


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


class Network:
    """Namespaces on one bridge, with the names of all in a hosts file of their own: a host of another node is reached, and none beyond."""

    def __init__(self, folder: Path) -> None:
        self._mark = secrets.token_hex(3)
        self._subnet = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        self._bridge = f"plbr{self._mark}"
        self._hosts, self._resolver = folder / "hosts", folder / "resolv.conf"
        self._hosts.write_text("127.0.0.1 localhost\n")
        self._resolver.write_text("")
        self._links: list[str] = []
        self._spaces: list[str] = []
        try:
            self._add_link(self._bridge, "type", "bridge")
            _run("ip", "link", "set", self._bridge, "up")
        except BaseException:
            self.close()
            raise

    def add(self, name: str, number: int) -> str:
        """A namespace for a node; returns its address."""
        space, address = self._space(name), f"{self._subnet}.{number}"
        _run("ip", "netns", "add", space)
        self._spaces.append(space)
        self._add_link(self._cable(number), "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "link", "set", self._cable(number), "master", self._bridge, "up")
        _run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _run("ip", "-n", space, "link", "set", device, "up")
        with self._hosts.open("a") as hosts:
            hosts.write(f"{address} {name}\n")
        return address

    def inside(self, name: str) -> list[str]:
        """What a command is put behind to run on a node."""
        there = (
            f"hostname {name}; mount --bind {self._hosts} /etc/hosts; mount --bind {self._resolver} /etc/resolv.conf; "
            'exec "$@"'
        )
        return ["ip", "netns", "exec", self._space(name), "unshare", "-u", "sh", "-c", there, "sh"]

    def cut(self, number: int) -> None:
        """Pull the cable: nothing of the node's end gets out, not even that its connections close."""
        _run("ip", "link", "set", self._cable(number), "down")

    def close(self) -> None:
        for link in self._links:
            _run("ip", "link", "del", link)
        for space in self._spaces:
            _run("ip", "netns", "del", space)

    def _add_link(self, name: str, *what: str) -> None:
        _run("ip", "link", "add", name, *what)
        self._links.append(name)

    def _space(self, name: str) -> str:
        return f"plumbline-{self._mark}-{name}"

    def _cable(self, number: int) -> str:
        return f"plv{self._mark}{number}"


@dataclass(frozen=True)
class Node:
    """A `ray start` with all that runs under it.

    Attributes:
        name, number: of the node.
        address: IP address.
        process: `ray start --block`, as it is the first process of a Pod.
        folder: of its temporary files; by it its processes are found.
    """

    name: str
    number: int
    address: str
    process: subprocess.Popen[bytes]
    folder: Path

    def terminate(self) -> None:
        """What Kubernetes does first to a Pod that must go."""
        self.process.send_signal(signal.SIGTERM)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


class Nodes:
    """A head without CPUs, and whatever nodes are started. After the `with` block no process and no network is left.

    Attributes:
        apart: whether each node has a network of its own.
        address: HOST:PORT of the head, for RAY_ADDRESS.
        nodes: by name, those that were started, gone or not.
    """

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="nodes-"))  # short, because Ray puts sockets below it
        self._token = secrets.token_hex(32)
        self._numbers = itertools.count(1)
        self._network: Network | None = None
        self.nodes: dict[str, Node] = {}
        try:
            with suppress(OSError, subprocess.SubprocessError):
                self._network = Network(self._folder)
            self.apart = self._network is not None
            self._port = 6379 if self.apart else free_port()
            self._head = self._begin(HEAD, cpus=0)
            self._await(self._head)
            self.address = f"{self._head.address}:{self._port}"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        while kill(self._folder):
            time.sleep(POLL)
        if self._network is not None:
            self._network.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, *names: str, **options: object) -> list[Node]:
        """Nodes of one CPU that join; `num_gpus=2` is for `ray start --num-gpus=2`."""
        started = [self._begin(name, cpus=1, **options) for name in names]
        for node in started:
            self._await(node)
        self.nodes |= {node.name: node for node in started}
        return started

    def lose(self, node: Node) -> None:
        """As when its machine burns: it falls silent, without a word to anybody."""
        if self._network is not None:
            self._network.cut(node.number)
        while kill(node.folder):
            time.sleep(POLL)
        node.process.wait()

    @contextmanager
    def program(self, log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A program on the head, where drivers run, and the file for what it says; it ends with the block at the latest."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*self._inside(HEAD), *command],
                env=self._environment(self._head.folder, self.address),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _begin(self, name: str, cpus: int, **more: object) -> Node:
        number = next(self._numbers)
        folder = self._folder / name
        folder.mkdir()
        address = self._network.add(name, number) if self._network is not None else "127.0.0.1"
        options: dict[str, object] = {
            "node-ip-address": address,
            "num-cpus": cpus,
            "object-store-memory": 100 * 2**20,
            "dashboard-agent-listen-port": free_port(),
            "min-worker-port": 0,  # 0: any
            "max-worker-port": 0,
            "temp-dir": folder,
            **{option.replace("_", "-"): value for option, value in more.items()},
        }
        if name == HEAD:
            options |= {"port": self._port, "ray-client-server-port": free_port()}
            spared = ["--head", "--no-monitor", "--include-dashboard=false"]
            head = f"{address}:{self._port}"
        else:
            options["address"] = head = self.address
            spared = []
        words = [*spared, "--include-log-monitor=false", *(f"--{key}={value}" for key, value in options.items())]
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*self._inside(name), sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words],
                env=self._environment(folder, head),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return Node(name, number, address, process, folder)

    def _await(self, node: Node) -> None:
        wait_for(lambda: "Ray runtime started" in node.log() or node.process.poll() is not None, why=node.log)
        assert "Ray runtime started" in node.log(), node.log()

    def _inside(self, name: str) -> list[str]:
        return self._network.inside(name) if self._network is not None else []

    def _environment(self, folder: Path, head: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_"))}
        return {
            **kept,
            **IMPATIENT,
            "RAY_ADDRESS": head,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_prestart_worker_first_driver": "0",  # a process for each logical CPU
            "RAY_worker_niceness": "0",  # not behind whatever else the machine does
            FOLDER: str(folder),
            "SPT_NOENV": "1",  # Ray's processes rename themselves; the new name shall not be written over FOLDER
        }
