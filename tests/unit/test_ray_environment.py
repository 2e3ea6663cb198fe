"""Addresses of Ray are checked before Ray tries them for minutes; settings give way to the user's own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from pydantic import ValidationError

from plumbline.api.ray_settings import FAST_PROXY
from plumbline.api.stages.admission import AdmissionSpec
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.ray_environment import SETTINGS, _fast_proxy, apply_settings, check_address


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment as it was, afterwards."""
    for name in (*SETTINGS, "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "7")
    apply_settings()
    assert os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] == "7"
    rest = {name: os.environ[name] for name in SETTINGS if name != "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"}
    assert rest == {name: SETTINGS[name] for name in rest}


def test_where_the_host_name_is_loopback_gloo_uses_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    apply_settings()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_where_the_host_name_is_a_real_address_gloo_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.1.2.3")
    apply_settings()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


@contextmanager
def serving(answer: bytes) -> Iterator[str]:
    """Address of a server that says this to whoever connects."""

    def serve() -> None:
        with contextlib.suppress(OSError):  # the server was closed
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(64)
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_an_address_where_a_ray_listens_passes() -> None:
    server = grpc.server(ThreadPoolExecutor(1))  # what the GCS is, to somebody who knocks
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        check_address(f"127.0.0.1:{port}")
        check_address(f"localhost:{port}")
    finally:
        server.stop(None).wait()
    check_address("auto")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"\0\0"])
def test_an_address_where_something_else_listens_is_named(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(answer) as address:
        with pytest.raises(
            PlumblineError, match=rf"^what listens at '{address}' is no Ray head; give its GCS port \(6379\)"
        ):
            check_address(address)
        monkeypatch.setenv("RAY_USE_TLS", "1")
        check_address(address)


@pytest.mark.parametrize(
    "address", ["", "host", ":6379", "host:", "host:port", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:²"]
)
def test_an_address_of_a_wrong_form(address: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^Ray address '{address}' is not HOST:PORT, such as 10.0.0.1:6379$"):
        check_address(address)


def test_a_client_address_is_refused_with_the_reason() -> None:
    with pytest.raises(
        InvalidInput, match=r"^Ray address 'ray://h:10001': Ray Train cannot work through ray://; give HOST:PORT"
    ):
        check_address("ray://h:10001")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "no-such-host.invalid"])
def test_an_address_where_nobody_listens_is_worth_another_attempt(host: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"{host}:{held.getsockname()[1]}"
        with pytest.raises(PlumblineError) as error:
            check_address(address)
    assert not isinstance(error.value, InvalidInput)
    assert str(error.value).startswith(f"no Ray answers at '{address}' (")


def test_checking_an_address_does_not_load_ray() -> None:
    code = "import sys, plumbline.ray_environment as r; r.check_address('auto'); sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_proxy_that_another_takes_over_from_ends_the_longest_request_that_admission_lets_in() -> None:
    longest = int(FAST_PROXY["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"])
    with pytest.raises(ValidationError, match="less than or equal"):
        AdmissionSpec(timeout_seconds=longest + 1)


def test_the_fast_proxy_has_files_and_ports_of_its_own() -> None:
    one, other = _fast_proxy(), _fast_proxy()
    assert one.items() >= FAST_PROXY.items()
    own = {name for name in one if name.endswith("_PORT") or one[name].startswith("/")}
    assert len(own) == 7
    assert not [name for name in own if one[name] == other[name]]
    node = "f" * 56  # Ray puts a folder of the node's id between
    sockets = [Path(one[name]) for name in own if "SOCKET" in name]
    assert all(len(str(path.parent / node / path.name)) <= 97 for path in sockets)
