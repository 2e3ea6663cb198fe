"""Serve's HAProxy, set as an endpoint has it: what a server does not answer goes to another, however the client sends it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray.serve._private.haproxy import get_haproxy_binary

from plumbline.ray_environment import _fast_proxy
from support.patience import PATIENCE, wait_for
from support.ports import free_port

WRITE = """
import sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

own, *ports = map(int, sys.argv[1:])
servers = [ServerConfig(f"s{port}", "127.0.0.1", port) for port in ports]
backend = BackendConfig(name="models", path_prefix="/", servers=servers)
HAProxyApi(HAProxyConfig(http_options=HTTPOptions(host="127.0.0.1", port=own)), {"models": backend})._generate_config_file_internal()
"""
ASKED = 8
BODY = b"x" * 100_000


class _Replica(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    dies = False

    def do_GET(self) -> None:
        self._say("up")

    def do_POST(self) -> None:
        if self.dies:
            time.sleep(0.05)
            self.close_connection = True  # without a word
            return
        self.rfile.read(int(self.headers["Content-Length"]))
        self._say("answer")

    def _say(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[int]:
    """Port of an HAProxy before one server that dies at every request and one that answers."""
    dying = type("_Dying", (_Replica,), {"dies": True})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (dying, _Replica)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = _fast_proxy()
    port = free_port()
    ports = [str(one) for one in (port, *(server.server_port for server in servers))]
    subprocess.run([sys.executable, "-c", WRITE, *ports], check=True, env=os.environ | settings)
    config = settings["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]
    assert "\n    option http-buffer-request\n" in Path(config).read_text().split("frontend")[0]
    process = subprocess.Popen([get_haproxy_binary(), "-db", "-f", config])
    try:
        yield port
    finally:
        process.terminate()
        process.wait()
        for server in servers:
            server.shutdown()


@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["at once", "the body after the head"])
def test_what_a_server_does_not_answer_goes_to_another(proxy: int, pause: float) -> None:
    assert [_asked(proxy, pause) for _ in range(ASKED)] == [b"HTTP/1.1 200"] * ASKED


def _asked(port: int, pause: float) -> bytes:
    def connected() -> socket.socket | None:
        with suppress(ConnectionRefusedError):  # it has only begun
            return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        return None

    with wait_for(connected) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
        if pause:
            client.sendall(head)
            time.sleep(pause)
            client.sendall(BODY)
        else:
            client.sendall(head + BODY)
        return client.recv(4096)[:12]
