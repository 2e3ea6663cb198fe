"""What people and programs see of a run: a live table, plain lines, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from typing import Protocol, TextIO

from plumbline.graph import Node
from plumbline.progress import Event

PLAIN_INTERVAL = 5.0  # seconds between two lines of one stage's steps
KEY_METRICS = ("reward", "rewardAccuracy", "loss", "rows")  # which figure a line shows, the first that is there
TOKENS_PER_SECOND = "tokensPerSecond"


class Display(Protocol):
    """Told what happens, in the order in which it happens."""

    def started(self, stage: str) -> None: ...
    def event(self, event: Event) -> None: ...
    def cached(self, stage: str, note: str = "") -> None: ...
    def finished(self, stage: str, seconds: float, metrics: dict[str, float]) -> None: ...
    def failed(self, stage: str, why: str) -> None: ...


def key_metric(metrics: dict[str, float]) -> str:
    """The figure to show: `loss 0.412`."""
    for name in (*KEY_METRICS, *metrics):
        if name in metrics:
            return f"{name} {metrics[name]:.4g}"
    return ""


def progress_words(event: Event) -> str:
    """`training 40/120 · 3.1/s · 26 s left · loss 0.41`."""
    words = [event.message] if event.message else []
    if event.step is not None:
        words.append(f"{event.step}/{event.total}" if event.total is not None else str(event.step))
    if event.rate:
        words.append(f"{event.rate:.1f}/s" if event.rate >= 1 else f"{1 / event.rate:.1f} s a step")
    if event.eta_seconds is not None:
        words.append(f"{event.eta_seconds:.0f} s left")
    if event.metrics:
        words.append(key_metric(event.metrics))
    if TOKENS_PER_SECOND in event.metrics:
        words.append(f"{event.metrics[TOKENS_PER_SECOND]:,.0f} tokens/s")
    return " · ".join(words)


class JsonLines:
    """One JSON object a line, for programs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def _write(self, what: str, **fields: object) -> None:
        line = json.dumps({"event": what, "time": time.time(), **_finite(fields)}, allow_nan=False)
        print(line, file=self._stream, flush=True)

    def started(self, stage: str) -> None:
        self._write("started", stage=stage)

    def event(self, event: Event) -> None:
        self._write("progress", **{k: v for k, v in asdict(event).items() if v is not None and k != "time"})

    def cached(self, stage: str, note: str = "") -> None:
        self._write("cached", stage=stage, note=note)

    def finished(self, stage: str, seconds: float, metrics: dict[str, float]) -> None:
        self._write("finished", stage=stage, seconds=seconds, metrics=metrics)

    def failed(self, stage: str, why: str) -> None:
        self._write("failed", stage=stage, why=why)


def _finite(value: dict[str, object]) -> dict[str, object]:
    """NaN and infinity as null: JSON has neither, and a loss may be either."""
    return {
        name: _finite(part) if isinstance(part, dict) else None if isinstance(part, float) and not isfinite(part) else part
        for name, part in value.items()
    }


class PlainLines:
    """Lines for logs and pipes; steps at a bounded pace."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._last: dict[str, tuple[float, str]] = {}

    def _write(self, stage: str, words: str) -> None:
        print(f"{stage}: {words}", file=self._stream, flush=True)

    def started(self, stage: str) -> None:
        self._write(stage, "started")

    def event(self, event: Event) -> None:
        then, message = self._last.get(event.stage, (-inf, ""))
        now = self._clock()
        if event.message != message or event.step == event.total or now - then >= PLAIN_INTERVAL:
            self._last[event.stage] = (now, event.message)
            self._write(event.stage, progress_words(event))

    def cached(self, stage: str, note: str = "") -> None:
        self._write(stage, f"cached{f' ({note})' if note else ''}")

    def finished(self, stage: str, seconds: float, metrics: dict[str, float]) -> None:
        self._write(stage, f"done in {seconds:.0f} s{f' · {key_metric(metrics)}' if metrics else ''}")

    def failed(self, stage: str, why: str) -> None:
        self._write(stage, f"failed: {why}")


@dataclass
class _Row:
    kind: str
    state: str = "waiting"
    words: str = ""
    began: float | None = None
    seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


MARKS = {
    "waiting": "[dim]·[/]",
    "running": "[cyan]▶[/]",
    "done": "[green]✔[/]",
    "cached": "[green]≡[/]",
    "failed": "[red]✘[/]",
}


class LiveTable:
    """A line per stage that changes in place, for terminals."""

    def __init__(self, nodes: list[Node]) -> None:
        self.rows = {node.name: _Row(node.kind) for node in nodes}

    def __rich__(self) -> object:
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, pad_edge=False, expand=True)
        for title, options in (
            ("", {}),
            ("stage", {}),
            ("kind", {"style": "dim"}),
            ("", {"ratio": 1}),
            ("time", {"justify": "right"}),
        ):
            table.add_column(title, **options)  # type: ignore[arg-type]
        for name, row in self.rows.items():
            seconds = (
                row.seconds if row.seconds is not None else time.monotonic() - row.began if row.began is not None else None
            )
            table.add_row(
                MARKS[row.state],
                name,
                row.kind,
                escape(row.words),
                f"{seconds:.0f} s" if seconds is not None else "",
            )
        return table

    def started(self, stage: str) -> None:
        row = self.rows[stage]
        row.state, row.began, row.seconds, row.words = "running", time.monotonic(), None, "starting"

    def event(self, event: Event) -> None:
        self.rows[event.stage].words = progress_words(event)

    def cached(self, stage: str, note: str = "") -> None:
        row = self.rows[stage]
        row.state, row.words = "cached", note or "cached"

    def finished(self, stage: str, seconds: float, metrics: dict[str, float]) -> None:
        row = self.rows[stage]
        row.state, row.seconds, row.words = "done", seconds, key_metric(metrics)

    def failed(self, stage: str, why: str) -> None:
        row = self.rows[stage]
        row.state, row.words = "failed", why.partition("\n")[0]
        if row.began is not None:
            row.seconds = time.monotonic() - row.began


@contextmanager
def open_display(nodes: list[Node], as_json: bool) -> Iterator[Display]:
    """The display that fits standard output."""
    if as_json:
        yield JsonLines(sys.stdout)
    elif sys.stdout.isatty():
        from rich.live import Live

        table = LiveTable(nodes)
        with Live(get_renderable=table.__rich__, refresh_per_second=5):  # type: ignore[arg-type]
            yield table
    else:
        yield PlainLines(sys.stdout)
