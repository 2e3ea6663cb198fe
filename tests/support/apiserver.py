"""A real Kubernetes API server for tests: envtest's binaries, or the one beside the repository."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Protocol, Self

import pytest
import yaml

from support.patience import wait_for


class ApiServer(Protocol):
    """Both servers. `stop_api` and `start_api` restart the server over the same etcd."""

    kubeconfig: str

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def start_api(self) -> None: ...
    def stop_api(self) -> None: ...


def find_api_server(rbac: bool = False) -> ApiServer:
    """The API server of this machine, not yet started: use it in a `with` statement.

    Args:
        rbac: authorize by the stored Roles and bindings; otherwise everyone may do everything.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        return EnvtestServer(Path(assets), rbac)
    shared = Path(os.environ.get("PLUMBLINE_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    program = shared / "apiserver" / "testserver.py"
    if not program.exists():
        pytest.skip(
            "needs a Kubernetes API server: run `setup-envtest use` (sigs.k8s.io/controller-runtime) and set "
            "KUBEBUILDER_ASSETS to the folder it prints, or put shared/apiserver beside the repository"
        )
    specification = importlib.util.spec_from_file_location("testserver", program)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    server: ApiServer = module.TestServer(rbac=rbac)
    return server


class EnvtestServer:
    """etcd and kube-apiserver from envtest's folder, on free loopback ports, with a token for the administrator."""

    def __init__(self, assets: Path, rbac: bool = False) -> None:
        self._assets = assets
        self._mode = "RBAC" if rbac else "AlwaysAllow"
        self._folder = Path(tempfile.mkdtemp(prefix="envtest-"))
        self._etcd_port, self._peer_port, self._port = _free_ports(3)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.kubeconfig = str(self._folder / "kubeconfig")

    def __enter__(self) -> Self:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        try:
            self._spawn(
                "etcd",
                f"--data-dir={self._folder / 'etcd'}",
                "--unsafe-no-fsync",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
            )
            key = self._folder / "service-account.key"
            subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
            (self._folder / "tokens.csv").write_text("admin,admin,admin,system:masters\n")
            self._write_kubeconfig()
            self.start_api()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop_api()
        self._end("etcd")
        shutil.rmtree(self._folder, ignore_errors=True)

    def start_api(self) -> None:
        """Start kube-apiserver and wait until it is ready.

        Raises:
            RuntimeError: it ended or was not ready within a minute; with the end of its log.
        """
        key = self._folder / "service-account.key"
        self._spawn(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--cert-dir={self._folder / 'certificates'}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            f"--authorization-mode={self._mode}",
            "--disable-admission-plugins=ServiceAccount",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://localhost",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
        )
        request = urllib.request.Request(f"https://127.0.0.1:{self._port}/readyz", headers={"Authorization": "Bearer admin"})
        insecure = ssl._create_unverified_context()  # a self-signed certificate on the loopback

        def log() -> str:
            return (self._folder / "kube-apiserver.log").read_text(errors="replace")[-3000:]

        def ready() -> bool:
            if self._processes["kube-apiserver"].poll() is not None:
                raise RuntimeError(f"kube-apiserver did not get ready:\n{log()}")
            with contextlib.suppress(OSError, urllib.error.URLError):
                return urllib.request.urlopen(request, context=insecure, timeout=10).status == 200
            return False

        wait_for(ready, why=log)

    def stop_api(self) -> None:
        self._end("kube-apiserver")

    def _spawn(self, name: str, *arguments: str) -> None:
        with open(self._folder / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(self._assets / name), *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _write_kubeconfig(self) -> None:
        cluster = {"server": f"https://127.0.0.1:{self._port}", "insecure-skip-tls-verify": True}
        value = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": "admin"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin", "namespace": "default"}}],
        }
        Path(self.kubeconfig).write_text(yaml.safe_dump(value))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
