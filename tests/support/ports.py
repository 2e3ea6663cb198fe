"""Ports for servers that bind them later, in processes of their own."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress


def free_port() -> int:
    """One that nobody gets meanwhile: below those that the kernel gives to connections (32768 and up), outside those that Ray
    gives to its workers (10002 to 19999)."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
