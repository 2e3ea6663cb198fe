"""What a run shows: lines at a bounded pace, JSON for programs, a table that changes in place."""

from __future__ import annotations

import io
import json
import math
import sys

import pytest
from rich.console import Console

from plumbline.api.run import RunSpec
from plumbline.display import (
    PLAIN_INTERVAL,
    Display,
    JsonLines,
    LiveTable,
    PlainLines,
    key_metric,
    open_display,
    progress_words,
)
from plumbline.graph import Node, build_graph
from plumbline.progress import Event


def nodes(*names: str) -> list[Node]:
    stages = [{"name": name, "curate": {"sources": [{"uri": "builtin://skills"}]}} for name in names]
    value = {"model": {"base": "builtin://tiny"}, "workspace": {"uri": "w"}, "stages": stages}
    return list(build_graph(RunSpec.model_validate(value)).nodes)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (Event("s", "loading"), "loading"),
        (
            Event("s", "training", 40, 120, 3.14, 25.5, {"tokens": 9, "loss": 0.41234}),
            "training · 40/120 · 3.1/s · 26 s left · loss 0.4123",
        ),
        (Event("s", step=7), "7"),
        (Event("s", step=1, total=10, rate=0.04, eta_seconds=225.0), "1/10 · 25.0 s a step · 225 s left"),
        (Event("s", step=10, total=10, eta_seconds=0.0), "10/10 · 0 s left"),
        (Event("s"), ""),
    ],
)
def test_progress_in_words(event: Event, words: str) -> None:
    assert progress_words(event) == words


def test_the_figure_to_show_is_the_known_one_or_else_the_first() -> None:
    assert key_metric({"a": 1.0, "loss": 2.0, "reward": 0.123456}) == "reward 0.1235"
    assert key_metric({"b": 12345678.0, "a": 1.0}) == "b 1.235e+07"
    assert key_metric({}) == ""


def test_plain_lines_come_at_a_bounded_pace() -> None:
    now = [5.0]  # a machine that has just started
    stream = io.StringIO()
    lines = PlainLines(stream, lambda: now[0])
    lines.started("sft")
    for step in range(1, 101):
        now[0] += PLAIN_INTERVAL / 10
        lines.event(Event("sft", "training", step, 100))
        lines.event(Event("other", "reading", step))
    lines.event(Event("sft", "saving"))
    lines.finished("sft", 12.4, {"loss": 0.5})
    lines.cached("rm")
    lines.cached("live", "serving at http://x")
    lines.failed("check", "no reason")
    shown = stream.getvalue().splitlines()
    assert [line for line in shown if line.startswith("sft: training")] == [
        f"sft: training · {step}/100" for step in (*range(1, 100, 10), 100)
    ]
    assert sum(line.startswith("other: ") for line in shown) == 10
    assert shown[0] == "sft: started"
    assert shown[-5:] == [
        "sft: saving",
        "sft: done in 12 s · loss 0.5",
        "rm: cached",
        "live: cached (serving at http://x)",
        "check: failed: no reason",
    ]


def strict(text: str) -> dict[str, object]:
    """JSON as every program reads it, not only Python."""

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    value: dict[str, object] = json.loads(text, parse_constant=refuse)
    return value


def test_json_lines_are_json() -> None:
    stream = io.StringIO()
    lines = JsonLines(stream)
    lines.started("sft")
    lines.event(Event("sft", "ä\nb", 1, 2, metrics={"loss": math.nan, "best": math.inf, "rows": 3}, time=1.0))
    lines.cached("rm")
    lines.finished("sft", 1.5, {"loss": math.nan})
    lines.failed("check", "two\nlines")
    values = [strict(line) for line in stream.getvalue().splitlines()]
    assert [value["event"] for value in values] == ["started", "progress", "cached", "finished", "failed"]
    assert values[1]["metrics"] == {"loss": None, "best": None, "rows": 3}
    assert (values[1]["message"], values[1]["step"], values[1]["stage"]) == ("ä\nb", 1, "sft")
    assert "rate" not in values[1]
    assert values[4]["why"] == "two\nlines"
    assert all(isinstance(value["time"], float) for value in values)


def table_text(table: LiveTable) -> str:
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_table_shows_every_stage_in_its_state() -> None:
    table = LiveTable(nodes("one", "two", "three", "four", "five"))
    table.started("one")
    table.event(Event("one", "reading [b]bold[/b]", 3, 9))
    table.cached("two")
    table.started("three")
    table.finished("three", 7.0, {"rows": 12})
    table.started("four")
    table.failed("four", "first line\nsecond line")
    lines = {line.split()[1]: line for line in table_text(table).splitlines()[1:]}
    assert list(lines) == ["one", "two", "three", "four", "five"]
    assert "▶" in lines["one"]
    assert "reading [b]bold[/b] · 3/9" in lines["one"], "words of a stage are no markup"
    assert lines["two"].split() == ["≡", "two", "curate", "cached"]
    assert lines["three"].split() == ["✔", "three", "curate", "rows", "12", "7", "s"]
    assert "✘" in lines["four"]
    assert "first line" in lines["four"]
    assert "second" not in table_text(table)
    assert lines["five"].split() == ["·", "five", "curate"]


def test_the_clock_of_a_failed_stage_stops_and_that_of_another_attempt_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("plumbline.display.time.monotonic", lambda: now[0])
    table = LiveTable(nodes("one"))
    table.failed("one", "")
    table.started("one")
    now[0] += 5
    table.failed("one", "")
    now[0] += 50
    assert "5 s" in table_text(table)
    assert "55 s" not in table_text(table)
    table.started("one")
    now[0] += 3
    assert " 3 s" in table_text(table)


def test_the_display_fits_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(as_json: bool) -> Display:
        with open_display(nodes("one"), as_json) as display:
            return display

    assert isinstance(opened(True), JsonLines)
    assert isinstance(opened(False), PlainLines)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert isinstance(opened(False), LiveTable)
