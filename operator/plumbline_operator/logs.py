"""Structured logs: one line for each record, with the run that it is about."""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

_fields: contextvars.ContextVar[dict[str, object] | None] = contextvars.ContextVar("fields", default=None)


@contextlib.contextmanager
def about(**fields: object) -> Iterator[None]:
    """All records within have these fields; also `extra={"fields": …}` of a single record."""
    token = _fields.set({**(_fields.get() or {}), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


class JsonLines(logging.Formatter):
    """`{"time": …, "level": …, "message": …, "run": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        value = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
            **_fields_of(record),
        }
        if record.exc_info:
            value["exception"] = self.formatException(record.exc_info)
        return json.dumps(value, default=str)


class Text(logging.Formatter):
    """`12:00:00 info message key=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = (f"{key}={value}" for key, value in _fields_of(record).items())
        return " ".join([super().formatMessage(record), *fields])


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    return {**(_fields.get() or {}), **getattr(record, "fields", {})}


def configure(form: str) -> None:
    """Send logs to standard error, as `json` or `text`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else Text())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.ERROR)  # it warns of what we do on purpose, and repeats what we log
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
