"""The stage program with broken inputs, as a driver starts it: one `error:` line, an exit code that says what it means."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline import errors
from plumbline.api.base import ArtifactType
from plumbline.api.run import AlignmentRun
from plumbline.artifacts import MANIFEST
from plumbline.errors import GateNotPassed, InvalidInput, PlumblineError, complain, one_line, sentence
from plumbline.plan import Plan, make_plan
from plumbline.runner import failure_words
from plumbline.stage import main


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """data → sft, nothing done yet."""
    value = {
        "apiVersion": "plumbline.dev/v1alpha1",
        "kind": "AlignmentRun",
        "metadata": {"name": "stage"},
        "spec": {
            "model": {"base": "builtin://tiny"},
            "workspace": {"uri": str(tmp_path / "workspace")},
            "stages": [
                {"name": "data", "curate": {"sources": [{"uri": "builtin://skills"}]}},
                {"name": "sft", "sft": {}},
            ],
        },
    }
    return make_plan(AlignmentRun.model_validate(value, by_name=False, by_alias=True))


@pytest.fixture
def run_json(plan: Plan, tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(plan.to_json()))
    return path


def stage(*arguments: object) -> tuple[int, str]:
    """Exit code and standard error of the program."""
    command = [sys.executable, "-m", "plumbline.stage", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda value: value.pop(key) and None


def _no_fingerprint(value: dict[str, Any]) -> None:
    del value["fingerprints"]["data"]


def _wrong_run(value: dict[str, Any]) -> None:
    value["run"]["spec"]["stages"][1]["sft"]["epochs"] = "many"


def _wrong_wiring(value: dict[str, Any]) -> None:
    value["run"]["spec"]["stages"][1]["name"] = "data"


def _unknown_field(value: dict[str, Any]) -> None:
    value["run"]["spec"]["stages"][1]["sft"]["epoch"] = 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is no RUN.json of this version: Invalid JSON"),
        (b"{'run'", "is no RUN.json of this version: Invalid JSON"),
        (b"\xff\xfe", "is no RUN.json of this version: Invalid JSON"),
        (b"[]", "is no RUN.json of this version: Input should be an object"),
        (b"null", "is no RUN.json of this version: Input should be an object"),
        (without("run"), "is no RUN.json of this version: run: Field required"),
        (without("workspace"), "is no RUN.json of this version: workspace: Field required"),
        (_no_fingerprint, "is no RUN.json of this version: no fingerprint for stage 'data'"),
        (_wrong_run, "is no RUN.json of this version: run.spec.stages.1.sft.epochs: Input should be"),
        (_unknown_field, "is no RUN.json of this version: run.spec.stages.1.sft.epoch: Extra inputs"),
        (_wrong_wiring, "'data' names stage 0 too"),
    ],
)
def test_an_unreadable_run_json_is_one_sentence(
    run_json: Path, content: bytes | Callable[[dict[str, Any]], None] | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is None:
        run_json.unlink()
    elif isinstance(content, bytes):
        run_json.write_bytes(content)
    else:
        value = json.loads(run_json.read_text())
        content(value)
        run_json.write_text(json.dumps(value))
    assert main([str(run_json), "sft"]) == errors.EXIT_INVALID
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words in lines[0]


def test_the_program_itself_ends_with_the_code_and_without_a_traceback(tmp_path: Path, run_json: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    code, text = stage(tmp_path / "broken.json", "sft")
    assert code == errors.EXIT_INVALID
    assert text.startswith(f"error: {tmp_path / 'broken.json'} is no RUN.json of this version")
    assert text.count("\n") == 1
    assert stage(tmp_path / "none.json", "sft") == (
        errors.EXIT_INVALID,
        f"error: {tmp_path / 'none.json'} cannot be read: No such file or directory\n",
    )
    assert stage(run_json, "sfd") == (
        errors.EXIT_INVALID,
        f"error: {run_json} has no stage 'sfd'; stages: data, sft\n",
    )


def test_a_missing_input_is_named_with_the_stage_that_makes_it(run_json: Path) -> None:
    assert stage(run_json, "sft") == (
        errors.EXIT_RETRYABLE,
        "error: stage 'sft' needs the artifact of 'data', which is not there yet; run 'data' first\n",
    )


@pytest.fixture
def data(plan: Plan) -> Path:
    """The folder of a whole `data` artifact."""
    fingerprint = plan.fingerprints["data"]
    plan.workspace.acquire(fingerprint, "test")
    with plan.workspace.create(
        kind="curate", fingerprint=fingerprint, stage="data", type=ArtifactType.DATASET, inputs={}, holder="test"
    ) as writer:
        (writer.folder / "part-0.parquet").write_bytes(b"rows")
    artifact = plan.artifact("data")
    assert artifact is not None
    return Path(artifact.uri)


def test_a_damaged_input_is_named_with_what_to_do(plan: Plan, run_json: Path, data: Path) -> None:
    (data / "part-0.parquet").write_bytes(b"rowz")
    code, text = stage(run_json, "sft")
    assert code == errors.EXIT_RETRYABLE
    assert text == (f"error: {data}/part-0.parquet does not have the checksum in {MANIFEST}; delete {data} and run again\n")
    assert plan.artifact("sft") is None


def test_a_broken_manifest_of_an_input_is_named(run_json: Path, data: Path) -> None:
    (data / MANIFEST).write_text("{")
    code, text = stage(run_json, "sft")
    assert code == errors.EXIT_RETRYABLE
    assert text.startswith(f"error: {data / MANIFEST} is not JSON")
    assert text.endswith("delete it and run again\n")


def test_a_stage_that_is_done_is_done(run_json: Path, data: Path) -> None:
    assert stage(run_json, "data") == (0, "")


def test_a_workspace_that_cannot_be_written_to_is_one_sentence(run_json: Path, tmp_path: Path) -> None:
    value = json.loads(run_json.read_text())
    file = tmp_path / "file"
    file.write_text("")
    value["workspace"] = f"{file}/workspace"
    run_json.write_text(json.dumps(value))
    code, text = stage(run_json, "data")
    assert code == errors.EXIT_INVALID
    assert text.startswith(f"error: spec.workspace.uri: '{file}/workspace' cannot be ")
    assert text.count("\n") == 1


def test_a_progress_file_that_cannot_be_made_is_no_traceback(run_json: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_json), "sft", "--progress", f"{run_json}/x/progress.jsonl"]) == errors.EXIT_RETRYABLE
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: NotADirectoryError: ")


def test_the_later_attempt_goes_on_and_the_earlier_gives_way(
    plan: Plan, run_json: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.workspace.acquire(plan.fingerprints["sft"], "other", 3)
    assert main([str(run_json), "sft", "--attempt", "2"]) == errors.EXIT_RETRYABLE
    assert "gives way to attempt 3" in capsys.readouterr().err
    assert main([str(run_json), "sft", "--attempt", "4"]) == errors.EXIT_RETRYABLE
    assert "needs the artifact of 'data'" in capsys.readouterr().err


class Wrapper(Exception):
    """As Ray does it: the cause is an attribute."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("worker failed:\n  Traceback …")
        self.cause = cause


class Group(Exception):
    """As Ray Train does it: the failures of the workers by rank."""

    def __init__(self, failure: BaseException) -> None:
        super().__init__("group failed")
        self.worker_failures = {0: failure}


@pytest.mark.parametrize("wrap", [lambda e: e, Wrapper, Group, lambda e: Group(Wrapper(e))])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidInput("wrong"), ("wrong", errors.EXIT_INVALID)),
        (PlumblineError("later"), ("later", errors.EXIT_RETRYABLE)),
        (GateNotPassed("held back"), ("held back", errors.EXIT_GATE)),
    ],
)
def test_our_words_pass_through_what_was_wrapped_around_them(
    wrap: Callable[[BaseException], BaseException], error: PlumblineError, expected: tuple[str, int]
) -> None:
    assert sentence(wrap(error)) == expected


@pytest.mark.parametrize("wrap", [lambda e: e, Wrapper, Group, lambda e: Group(Wrapper(e))])
def test_a_full_disk_is_told_through_what_was_wrapped_around_it(wrap: Callable[[BaseException], BaseException]) -> None:
    words, code = sentence(wrap(OSError(28, "No space left on device", "/data/x")))
    assert words == "no space left on the device at /data/x; make room and run again, finished stages are kept"
    assert code == errors.EXIT_RETRYABLE


def test_what_failed_holds_no_file_any_more_when_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A removed file that is still open fills the disk that the log is on."""
    streams = []

    def work() -> None:
        stream = (tmp_path / "rows").open("wb")
        streams.append(weakref.ref(stream))
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as error:
        work()
    assert complain(error.value) == errors.EXIT_RETRYABLE
    assert streams[0]() is None
    said = capsys.readouterr().err
    assert "in work" in said
    assert "error: no space left on the device" in said


def test_the_driver_says_what_the_log_says_or_why_it_may_be_silent(tmp_path: Path) -> None:
    log = tmp_path / "data.log"
    log.write_text("error: earlier\nwords\nerror: last\n")
    assert failure_words(1, log) == "last"
    assert failure_words(-9, log) == "killed by SIGKILL (out of memory?)"
    log.write_text("")
    assert failure_words(1, log) == f"ended with exit code 1 and said nothing; is there no space left at {tmp_path}?"


def test_other_errors_are_told_by_type_and_last_line() -> None:
    assert sentence(ValueError("first\n\nlast\n")) == ("ValueError: last", errors.EXIT_RETRYABLE)
    assert sentence(ValueError()) == ("ValueError: no message", errors.EXIT_RETRYABLE)
    circle = ValueError("a")
    circle.__context__ = KeyError("b")
    circle.__context__.__context__ = circle
    assert sentence(circle) == ("ValueError: a", errors.EXIT_RETRYABLE)


def test_errors_in_one_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("x" * 400), limit=10) == "x" * 10 + "…"
