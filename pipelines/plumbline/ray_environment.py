"""How every process of Plumbline meets Ray: one place for its environment, for starting and for connecting."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from typing import Any

from plumbline.api.ray_settings import FAST_PROXY, SETTINGS
from plumbline.errors import InvalidInput, PlumblineError, one_line


def apply_settings() -> None:
    """Put the settings into this process's environment; what the user set stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # gloo takes the address that the host name resolves to; where that is loopback, only loopback works.
    if _host_is_loopback():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _host_is_loopback() -> bool:
    try:
        return socket.gethostbyname(socket.gethostname()).startswith("127.")
    except OSError:
        return True


def start_local(cpus: int, *, fast_proxy: bool = False) -> str:
    """Start a Ray of our own on this machine, with a token of its own; returns its address for `RAY_ADDRESS`.

    It ends with this process, however that ends.

    Args:
        cpus: as Ray counts them.
        fast_proxy: serve by way of HAProxy. To be said before Ray Serve is imported. Its statistics can be seen from other machines.
    """
    apply_settings()
    if fast_proxy:
        assert "ray.serve" not in sys.modules, "Ray Serve has read its settings already"
        for name, value in _fast_proxy().items():
            os.environ.setdefault(name, value)
    # A token of our own: otherwise it depends on files that other Ray versions left in the home folder. The mode is for
    # ray.init to set: it then re-reads its configuration, which `import ray` has read if that came before us.
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.pop("RAY_ADDRESS", None)
    import ray

    context = ray.init(address="local", num_cpus=cpus, **_quiet())
    address = str(context.address_info["gcs_address"])
    os.environ |= {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}  # for the stage programs
    return address


def _fast_proxy() -> dict[str, str]:
    """Settings of an HAProxy whose files and ports are no other's on this machine."""
    # A socket's path has at most 97 letters, of which Ray takes 57 for the node: names are short, and TMPDIR may be too long.
    folder = tempfile.mkdtemp(prefix="plumbline-", dir="/tmp")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin",
        "METRICS_SOCKET_PATH": "metrics",
        "SERVER_STATE_BASE": "states",
        "SERVER_STATE_FILE": "state",
    }
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("", 0))
        ports = {"METRICS_PORT": one.getsockname()[1], "STATS_PORT": other.getsockname()[1]}
    own = {f"RAY_SERVE_HAPROXY_{name}": f"{folder}/{file}" for name, file in files.items()}
    own |= {f"RAY_SERVE_HAPROXY_{name}": str(port) for name, port in ports.items()}
    # Nobody else has to learn that a replica goes.
    return {**FAST_PROXY, **own, "RAY_SERVE_HAPROXY_NBTHREAD": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}


def connect() -> None:
    """Connect to the Ray at `RAY_ADDRESS`; nothing to do when this process is connected already.

    Raises:
        InvalidInput: the address has a form that cannot work.
        PlumblineError: nothing answers there.
    """
    apply_settings()
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "auto")
    check_address(address)
    try:
        ray.init(address=address, **_quiet())
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PlumblineError(f"Ray at '{address}' cannot be joined: {one_line(error)}") from error


def check_address(address: str) -> None:
    """Refuse an address at once that Ray would try for minutes.

    Raises:
        InvalidInput: not HOST:PORT (or `auto`).
        PlumblineError: nothing listens there, or something that is no Ray.
    """
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise InvalidInput(
            f"Ray address '{address}': Ray Train cannot work through ray://; give HOST:PORT of the head (6379)"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidInput(f"Ray address '{address}' is not HOST:PORT, such as 10.0.0.1:6379")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as connection:
            if not os.environ.get("RAY_USE_TLS") and not _speaks_http2(connection):
                raise PlumblineError(
                    f"what listens at '{address}' is no Ray head; give its GCS port (6379), not the dashboard's (8265)"
                )
    except OSError as error:
        raise PlumblineError(
            f"no Ray answers at '{address}' ({error}); start one with `ray start --head`, "
            "or leave --ray-address out for an embedded one"
        ) from error


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether the other side is a gRPC server, as the GCS is: it answers the preface with a SETTINGS frame (RFC 9113)."""
    settings = b"\0\0\0\4\0\0\0\0\0"
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
    try:
        answer = connection.recv(9)
    except (TimeoutError, ConnectionError):
        return False
    return len(answer) > 3 and answer[3] == settings[3]


def _quiet() -> dict[str, Any]:
    return {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        **({"include_dashboard": False} if "RAY_ADDRESS" not in os.environ else {}),
    }
