"""What a running stage tells the outside. The stage writes events; the drivers show them."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MIN_INTERVAL = 0.2  # seconds between two events of a stage, so that a fast loop does not flood its watchers


@dataclass(frozen=True)
class Event:
    """One word from a stage.

    Attributes:
        stage: which stage.
        message: what it does, in a few words.
        step, total: how far it is, where it counts steps.
        rate: steps per second.
        eta_seconds: seconds to go, estimated.
        metrics: key figures; the first is the one to show.
        time: Unix time.
    """

    stage: str
    message: str = ""
    step: int | None = None
    total: int | None = None
    rate: float | None = None
    eta_seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    time: float = 0.0


Sink = Callable[[Event], None]
Watcher = Callable[[int, int | None, dict[str, float]], None]
"""(step, total, metrics)"""


class Reporter:
    """Turns a stage's steps into events with rate and ETA, at a bounded pace. A new message and the last step always pass."""

    def __init__(self, stage: str, sink: Sink, clock: Callable[[], float] = time.time) -> None:
        self._stage, self._sink, self._clock = stage, sink, clock
        self._message = ""
        self._last = 0.0
        self._times: deque[tuple[float, int]] = deque(maxlen=20)
        self._watchers: list[Watcher] = []

    def say(self, message: str) -> None:
        """What the stage does now."""
        self._message = message
        self._times.clear()
        self._sink(Event(self._stage, message, time=self._clock()))

    def step(self, step: int, total: int | None = None, metrics: dict[str, float] | None = None) -> None:
        """`step` of `total` is done."""
        for watcher in self._watchers:
            watcher(step, total, metrics or {})
        now = self._clock()
        if now - self._last < MIN_INTERVAL and step != total:
            return
        self._last = now
        if self._times and step < self._times[-1][1]:  # counting began anew
            self._times.clear()
        self._times.append((now, step))
        (t0, s0), (t1, s1) = self._times[0], self._times[-1]
        rate = (s1 - s0) / (t1 - t0) if t1 > t0 else None
        eta = (total - step) / rate if rate and total is not None else None
        self._sink(Event(self._stage, self._message, step, total, rate, eta, metrics or {}, now))

    @contextmanager
    def watched(self, watcher: Watcher) -> Iterator[None]:
        """Inside, `watcher` is told of every step, whatever the pace of events."""
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)


def file_sink(path: Path) -> Sink:
    """Append events to a JSON-lines file. One short write each, so readers never see half a line for long."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(event: Event) -> None:
        line = json.dumps(asdict(event)).encode() + b"\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    return write


class FileTail:
    """Reads the events that were added to a file since the last look. Lines that are no events are read over."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> list[Event]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            if self._path.stat().st_size < self._offset:  # the file was begun anew
                self._offset = 0
            stream.seek(self._offset)
            whole, _, _ = stream.read().rpartition(b"\n")
        if not whole:
            return []
        self._offset += len(whole) + 1
        return [event for line in whole.split(b"\n") if (event := _event(line)) is not None]


def _event(line: bytes) -> Event | None:
    """The event of a line, or None where a full disk or a killed writer left something else."""
    try:
        fields: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(fields, dict) or "stage" not in fields:
        return None
    return Event(**{name: value for name, value in fields.items() if name in Event.__dataclass_fields__})
