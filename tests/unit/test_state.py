"""What a stage reports: bounded values, a sink that neither waits nor fails, and a last word that arrives."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.api.report import Result, StageReport, stage_key
from plumbline.artifacts import Artifact
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.pod_log import mirror_output
from plumbline.progress import Event
from plumbline.state import NotReported, StageReports, State, Superseded, failure_of, figures, result_of
from support.patience import wait_for

PRINT = "f" * 20
RESULT = Result(artifact="/w/artifacts/sft/f")


class FakeState(State):
    """Keeps what is written; `before` is called first and may wait or fail."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        super().__init__("ns", "run-state")
        self.before = before
        self.written: list[StageReport] = []

    def write(self, key: str, attempt: int, values: dict[str, str]) -> None:
        self.before()
        assert list(values) == [key] == [stage_key("sft")]
        self.written.append(StageReport.model_validate_json(values[key], by_name=False, by_alias=True))


def reports(state: State, interval: float = 0.01) -> StageReports:
    return StageReports(state, "sft", 3, PRINT, interval)


def test_an_event_becomes_a_report() -> None:
    state = FakeState()
    sink = reports(state)
    sink(Event("sft", "training", 5, 21, 0.5, 32.6, {"loss": 0.123456, "tokens": 123456.7}, 7.0))
    wait_for(lambda: state.written)
    report = state.written[0]
    assert (report.attempt, report.fingerprint, report.message) == (3, PRINT, "training")
    assert report.progress is not None
    assert (report.progress.step, report.progress.total, report.progress.eta_seconds) == (5, 21, 32)
    assert report.metrics == {"loss": "0.1235", "tokens": "123457"}
    assert report.time > 1e9
    sink.succeeded(RESULT)
    assert state.written[-1].result == RESULT
    assert state.written[-1].metrics == report.metrics, "the last figures stay"


def test_the_sink_does_not_wait_and_the_latest_event_counts() -> None:
    gate = threading.Event()
    state = FakeState(lambda: gate.wait(30) and None)
    sink = reports(state)
    for step in range(1, 10_001):
        sink(Event("sft", "training", step, 10_000))
    assert state.written == []
    gate.set()
    wait_for(lambda: state.written and state.written[-1].progress.step == 10_000)  # type: ignore[union-attr]
    assert len(state.written) <= 2


def test_progress_is_written_at_a_bounded_pace() -> None:
    state = FakeState()
    sink = reports(state, interval=3600)
    sink(Event("sft", "one"))
    wait_for(lambda: state.written)
    sink(Event("sft", "two"))
    sink.succeeded(RESULT)
    assert [(report.message, report.result) for report in state.written] == [("one", None), ("two", RESULT)]


def test_progress_that_cannot_be_written_is_told_once_and_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    tries = []

    def before() -> None:
        tries.append(1)
        if len(tries) <= 3:
            raise OSError("no route to host")

    state = FakeState(before)
    sink = reports(state)
    sink(Event("sft", "training"))
    wait_for(lambda: state.written)
    assert len(tries) == 4
    assert capsys.readouterr().err == "warning: progress is not reported: no route to host\n"


def test_after_a_later_attempt_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    def before() -> None:
        raise Superseded("attempt 3 gives way to attempt 4")

    state = FakeState(before)
    sink = reports(state)
    sink(Event("sft", "training"))
    with pytest.raises(Superseded):
        sink.succeeded(RESULT)
    sink.failed(failure_of(PlumblineError("why")))
    assert capsys.readouterr().err == "warning: attempt 3 gives way to attempt 4\n"


def test_the_last_word_is_tried_again_and_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plumbline.state.FIRST_WAIT", 0.01)
    tries = []

    def before() -> None:
        tries.append(1)
        if len(tries) < 4:
            raise ConnectionRefusedError("refused")

    state = FakeState(before)
    reports(state).succeeded(RESULT)
    assert (len(tries), len(state.written)) == (4, 1)

    def never() -> None:
        raise ConnectionRefusedError("refused")

    with pytest.raises(NotReported, match="ConfigMap ns/run-state cannot be written: refused"):
        reports(FakeState(never)).succeeded(RESULT, patience=0.1)


def test_what_is_refused_for_good_is_not_tried_again() -> None:
    class Refused(Exception):
        status = 422

    tries = []

    def before() -> None:
        tries.append(1)
        raise Refused("too large")

    with pytest.raises(NotReported, match="too large"):
        reports(FakeState(before)).succeeded(RESULT)
    assert len(tries) == 1


def test_figures_are_short_strings() -> None:
    assert figures({"a": 0.000123456, "b": 3, "c": "pass", "d": float("nan"), "e": True, "f": 1.0, "g": 1e20}) == {
        "a": "0.0001235",
        "b": "3",
        "c": "pass",
        "d": "nan",
        "e": "True",
        "f": "1",
        "g": "1e+20",
    }
    assert len(figures({str(i): i for i in range(100)})) == 64
    (name,) = figures({"n" * 1000: "v" * 1000})
    assert len(name) == 128


def test_a_report_stays_within_its_bounds_whatever_the_stage_says() -> None:
    state = FakeState()
    sink = reports(state, interval=0)
    sink(Event("sft", "\ud800" + "m" * 5000, -1, 2**40, None, float("inf"), {"x" * 200: float("inf")}))
    wait_for(lambda: state.written)
    report = state.written[0]
    assert report.progress is not None
    assert (report.progress.step, report.progress.total, report.progress.eta_seconds) == (0, 2**31 - 1, 2**31 - 1)
    assert len(report.message) == 1024


def test_a_failure_says_it_in_a_sentence_with_the_traceback_where_it_is_a_fault() -> None:
    foreseen = failure_of(InvalidInput("the file is missing"))
    assert (foreseen.message, foreseen.permanent) == ("the file is missing", True)
    assert not failure_of(PlumblineError("no answer")).permanent
    try:
        json.loads("{")
    except ValueError as error:
        fault = failure_of(error)
    assert fault.message.startswith("JSONDecodeError: Expecting property name")
    assert "\n\n" in fault.message
    assert fault.message.endswith("line 1 column 2 (char 1)")
    assert not fault.permanent
    long = failure_of(ValueError("x" * 100_000)).message
    assert len(long) <= 8192


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [("pass", "Passed"), ("fail", "Failed"), ("inconclusive", "Inconclusive"), (None, None)],
)
def test_a_report_artifact_carries_its_verdict(verdict: str | None, expected: str | None) -> None:
    manifest: dict[str, Any] = {
        "metrics": {"verdict": verdict or "none", "skills/align": 0.65512},
        "details": {"verdict": verdict, "verdictReason": "because" if verdict else None},
    }
    result = result_of(Artifact("/w/report", manifest))
    assert (result.verdict, result.verdict_reason) == (expected, "because" if verdict else None)
    assert result.metrics["skills/align"] == "0.6551"
    assert result_of(Artifact("/w/model", {"metrics": {}, "details": {}})) == Result(artifact="/w/model")


def test_where_to_report_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLUMBLINE_STATE", raising=False)
    assert State.from_environment() is None
    monkeypatch.setenv("PLUMBLINE_STATE", "ns/name")
    state = State.from_environment()
    assert state is not None
    assert (state.namespace, state.name) == ("ns", "name")
    monkeypatch.setenv("PLUMBLINE_STATE", "name")
    with pytest.raises(InvalidInput, match="is not NAMESPACE/NAME"):
        State.from_environment()


def test_the_planner_is_light() -> None:
    code = "import sys, plumbline.planner; print({'ray', 'torch', 'transformers', 'numpy', 'kubernetes'} & set(sys.modules) or '')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_output_goes_to_the_pods_log_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "log"
    target.write_text("earlier\n")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # put back afterwards
    mirror_output(tmp_path / "none")
    mirror_output(target)
    print("to people", flush=True)
    print("error: ä", file=sys.stderr)
    sys.stdout.write("half a line")
    assert target.read_text() == "earlier\nto people\nerror: ä\n"
    assert capsys.readouterr() == ("to people\nhalf a line", "error: ä\n")
