"""Progress: rate and time to go from steps, a bounded pace, and a file that is read while it is written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from plumbline.progress import MIN_INTERVAL, Event, FileTail, Reporter, file_sink


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def report(clock: Clock, events: list[Event]) -> Reporter:
    return Reporter("sft", events.append, clock)


def test_rate_and_time_to_go(report: Reporter, clock: Clock, events: list[Event]) -> None:
    report.say("training")
    for step in range(1, 6):
        clock.now += 2
        report.step(step, 21, {"loss": 1.0 / step})
    assert events[0] == Event("sft", "training", time=1000.0)
    assert (events[1].step, events[1].total, events[1].rate, events[1].eta_seconds) == (1, 21, None, None)
    assert events[-1] == Event("sft", "training", 5, 21, 0.5, 32.0, {"loss": 0.2}, 1010.0)


def test_without_a_total_there_is_a_rate_and_no_time_to_go(report: Reporter, clock: Clock, events: list[Event]) -> None:
    for step in (10, 20):
        clock.now += 1
        report.step(step)
    assert (events[-1].rate, events[-1].eta_seconds, events[-1].total) == (10.0, None, None)


def test_a_fast_loop_does_not_flood_and_its_last_step_passes(report: Reporter, clock: Clock, events: list[Event]) -> None:
    for step in range(1, 1001):
        clock.now += MIN_INTERVAL / 50
        report.step(step, 1000)
    assert 20 <= len(events) <= 22
    assert events[-1].step == 1000
    assert events[-1].eta_seconds == 0
    assert events[-2].rate == pytest.approx(50 / MIN_INTERVAL, rel=0.01)


def test_the_rate_is_that_of_the_last_steps(report: Reporter, clock: Clock, events: list[Event]) -> None:
    for step in range(1, 101):
        clock.now += 10 if step < 50 else 1
        report.step(step, 100)
    assert events[-1].rate == 1.0


def test_a_new_message_always_passes_and_begins_a_new_count(report: Reporter, clock: Clock, events: list[Event]) -> None:
    report.step(100, 200)
    clock.now += 1
    report.step(200, 200)
    report.say("saving")
    report.say("checking")
    clock.now += 1
    report.step(1, 10)
    assert [event.message for event in events] == ["", "", "saving", "checking", "checking"]
    assert events[-1].rate is None, "nothing is known of the speed of the new work"


def test_counting_anew_gives_no_negative_speed(report: Reporter, clock: Clock, events: list[Event]) -> None:
    for step in (90, 95, 1, 2):
        clock.now += 1
        report.step(step, 100)
    assert [event.rate for event in events] == [None, 5.0, None, 1.0]


def test_events_survive_the_way_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sft.jsonl"
    tail = FileTail(path)
    assert tail.read() == []
    sink = file_sink(path)
    first, second = Event("sft", "loading"), Event("sft", "training ä", 1, 2, 0.5, 2.0, {"loss": 0.1}, 7.0)
    sink(first)
    assert tail.read() == [first]
    assert tail.read() == []
    sink(second)
    sink(first)
    assert tail.read() == [second, first]


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    whole = json.dumps({"stage": "sft", "step": 1}).encode() + b"\n"
    tail = FileTail(path)
    path.write_bytes(whole + whole[:9])
    assert [event.step for event in tail.read()] == [1]
    assert tail.read() == []
    path.write_bytes(whole + whole)
    assert [event.step for event in tail.read()] == [1]


def test_a_file_that_was_begun_anew_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    tail = FileTail(path)
    line = '{{"stage": "sft", "step": {}}}\n'
    path.write_text("".join(line.format(step) for step in range(3)))
    assert len(tail.read()) == 3
    path.write_text(line.format(7))
    assert [event.step for event in tail.read()] == [7]


def test_what_is_no_event_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    good = b'{"stage": "sft", "step": 1, "unknown": true}\n'
    path.write_bytes(
        good + b'{"stage": "sf' + good + b'{"step": 2}\n[1]\n\n\xff\n' + b'{"stage": "sft", "message": "a\\u2028b"}\n'
    )
    tail = FileTail(path)
    assert tail.read() == [Event("sft", step=1), Event("sft", "a\u2028b")]
    assert tail.read() == []


def test_a_loss_that_is_not_a_number_passes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    file_sink(path)(Event("sft", metrics={"loss": math.nan}))
    assert math.isnan(FileTail(path).read()[0].metrics["loss"])
