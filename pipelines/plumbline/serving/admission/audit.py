"""The audit log: one line of JSON for each request, without what was asked unless that is wanted."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from plumbline.api.stages.admission import AuditSpec
from plumbline.errors import InvalidInput, one_line

log = logging.getLogger(__name__)

ASKED = ("messages", "prompt", "input")  # fields of a request that hold what was asked
MOST_BYTES = 2**20  # of one request that are kept


class Audit:
    """Where the lines go.

    Args:
        spec: what is wanted.

    Raises:
        InvalidInput: the folder cannot be written.
    """

    def __init__(self, spec: AuditSpec) -> None:
        self.prompts = spec.prompts
        # None of the process's loggers: what others do to all of these must not bring what was asked anywhere else.
        self._log = logging.Logger("plumbline.audit", logging.INFO)
        handler = _handler(spec.folder)
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.handleError = _tell  # type: ignore[method-assign]  # the usual one prints the record
        self._log.addHandler(handler)

    def write(self, record: dict[str, Any]) -> None:
        """One line; a full disk is told and costs no request its answer."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": stamp, **record}, ensure_ascii=True, separators=(",", ":"))
        try:
            self._log.info("%s", line)
        except OSError as error:  # of a folder that is gone; all else comes to `_tell`
            log.error("audit: a line could not be written: %s", error)

    def close(self) -> None:
        """Close the file."""
        for handler in list(self._log.handlers):
            self._log.removeHandler(handler)
            handler.close()


def _tell(_: logging.LogRecord) -> None:
    log.error("audit: a line could not be written: %s", sys.exc_info()[1])


def _handler(folder: str | None) -> logging.Handler:
    if folder is None:
        return logging.StreamHandler(sys.stdout)
    path = Path(folder) / f"audit-{socket.gethostname()}-{os.getpid()}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One file for each process: appending from several nodes to one would mix lines on a network's file system.
        return WatchedFileHandler(path, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"admission.audit.folder: {path} cannot be written: {one_line(error)}") from error


def asked(body: bytes) -> Any:
    """What was asked, of a request's body; None where it cannot be told."""
    try:
        found = json.loads(body)
        return next((found[name] for name in ASKED if name in found), None)
    except (ValueError, TypeError, RecursionError):
        return None
