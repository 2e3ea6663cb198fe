"""The `plumbline` command: what is wrong is said in one sentence, before anything starts, with the right exit code."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plumbline import __version__
from plumbline.api.base import ArtifactType
from plumbline.cli import main
from plumbline.errors import EXIT_INVALID, EXIT_RETRYABLE
from plumbline.external import tiny_folder
from plumbline.plan import make_plan
from plumbline.run_file import load_run

RUN = """
apiVersion: plumbline.dev/v1alpha1
kind: AlignmentRun
metadata: {name: small}
spec:
  model: {base: "builtin://tiny"}
  workspace: {uri: WORKSPACE}
  stages:
    - name: data
      curate: {sources: [{uri: "builtin://skills", limit: 40}]}
    - name: sft
      sft: {maxSteps: 2}
    - name: check
      evaluate:
        tasks: [{name: skills, benchmark: skills, limit: 20}]
        gates: [{task: skills, threshold: 0.5}]
    - name: live
      serve: {}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "run.yaml"
    path.write_text(RUN.replace("WORKSPACE", str(tmp_path / "workspace")))
    return path


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def refused(result: tuple[int, str, str], code: int) -> str:
    """The one sentence of a command that was refused."""
    assert result[0] == code, result
    assert result[1] == ""
    assert result[2].startswith("error: ")
    assert result[2].count("\n") == 1, "one sentence in one line"
    return result[2].removeprefix("error: ").rstrip()


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


HEAVY = """
import sys
from plumbline.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end
print("HEAVY", sorted({"torch", "ray", "transformers", "pydantic", "yaml", "fsspec", "rich"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["plan", "-h"], ["validate", "-h"], ["export", "-h"]]
)
def test_help_is_light(arguments: list[str]) -> None:
    done = python(HEAVY, *arguments)
    assert done.returncode == 0, done.stderr
    *shown, heavy = done.stdout.splitlines()
    assert heavy == "HEAVY []"
    assert shown


def test_plan_and_validate_load_neither_ray_nor_torch(file: Path) -> None:
    for name in ("plan", "validate", "stop"):
        heavy = python(HEAVY, name, file).stdout.splitlines()[-1]
        assert not re.search("torch|ray|transformers", heavy), name


def test_help_names_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    for word in ("run", "plan", "stop", "export", "validate", "crd", "Exit codes: 0 done"):
        assert word in shown
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"plumbline {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["run"], ["validate"], ["run", "x.yaml", "--nosuch"]])
def test_a_wrong_command_line_is_wrong_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == EXIT_INVALID
    assert "usage: plumbline" in capsys.readouterr().err


def test_validate_tells_of_every_file(file: Path, tmp_path: Path, command: Command) -> None:
    assert command("validate", file) == (0, f"{file}: valid\n", "")
    bad, worse = tmp_path / "bad.yaml", tmp_path / "worse.yaml"
    bad.write_text(file.read_text().replace("maxSteps", "maxStep").replace("threshold: 0.5", "threshold: 5"))
    code, out, err = command("validate", file, bad, worse, file)
    assert code == EXIT_INVALID
    assert out == f"{file}: valid\n" * 2
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{bad}: spec.stages[1].sft.maxStep: unknown field; did you mean 'maxSteps'?")
    assert lines[1].startswith(f"{bad}: spec.stages[2].evaluate.gates[0].threshold: ")
    assert lines[2].startswith(f"{worse} cannot be read")


def whole(file: Path, stage: str, type: ArtifactType) -> None:
    """Put a whole artifact where the stage's own would be."""
    plan = make_plan(load_run(file))
    fingerprint = plan.fingerprints[stage]
    plan.workspace.acquire(fingerprint, "test")
    with plan.workspace.create(
        kind=plan.graph[stage].kind, fingerprint=fingerprint, stage=stage, type=type, inputs={}, holder="test"
    ) as writer:
        (writer.folder / "file").write_text(stage)


def test_plan_shows_wiring_and_what_is_cached(file: Path, tmp_path: Path, command: Command) -> None:
    whole(file, "data", ArtifactType.DATASET)
    code, out, err = command("plan", file)
    assert (code, err) == (0, "")
    head, *rows = out.splitlines()
    assert head == f"run small   workspace {tmp_path / 'workspace'}"
    words = [row.split() for row in rows]
    assert [row[0] for row in words] == ["data", "sft", "check", "live"]
    assert words[0][1:3] == ["curate", "cached"]
    assert words[1][1:4] == ["sft", "to", "do"]
    assert rows[1].endswith("model ← base, dataset ← data")


def test_plan_as_json(file: Path, tmp_path: Path, command: Command) -> None:
    whole(file, "data", ArtifactType.DATASET)
    code, out, _ = command("plan", file, "--json", "--set", "stages.sft.sft.maxSteps=3")
    value = json.loads(out)
    assert code == 0
    assert (value["run"], value["workspace"]) == ("small", str(tmp_path / "workspace"))
    assert [(row["stage"], row["cached"]) for row in value["stages"]] == [
        ("data", True),
        ("sft", False),
        ("check", False),
        ("live", False),
    ]
    assert value["stages"][1]["inputs"] == {"model": ["base"], "dataset": ["data"]}
    plain = json.loads(command("plan", file, "--json")[1])
    differ = [a["stage"] for a, b in zip(value["stages"], plain["stages"], strict=True) if a != b]
    assert differ == ["sft", "check", "live"]


def test_planning_writes_nothing(file: Path, tmp_path: Path, command: Command) -> None:
    assert command("plan", file)[0] == 0
    assert command("stop", file) == (0, "small: nothing was serving\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml"]


@pytest.mark.parametrize("name", ["run", "plan", "stop"])
def test_a_file_that_cannot_be_read(name: str, tmp_path: Path, command: Command) -> None:
    assert refused(command(name, tmp_path / "none.yaml"), EXIT_INVALID).startswith(f"{tmp_path}/none.yaml cannot be read")
    assert refused(command(name, tmp_path), EXIT_INVALID).startswith(f"{tmp_path} cannot be read")


def test_an_unknown_stage(file: Path, command: Command) -> None:
    words = refused(command("run", file, "--until", "sfd"), EXIT_INVALID)
    assert words == "--until sfd: no such stage; stages: data, sft, check, live"


def test_errors_are_json_for_programs_too(file: Path, command: Command) -> None:
    code, out, err = command("run", file, "--json", "--until", "sfd")
    assert code == EXIT_INVALID
    event = json.loads(out)
    assert (event["event"], event["exitCode"]) == ("error", EXIT_INVALID)
    assert err == f"error: {event['message']}\n"


def _tiny(folder: Path) -> None:
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((tiny_folder() / name).read_bytes())


def _without(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _tiny(folder)
        (folder / name).unlink()

    return make


def _with_broken_config(folder: Path) -> None:
    _tiny(folder)
    (folder / "config.json").write_text("{")


def _a_file(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "is no folder"),
        (_a_file, "is no folder"),
        (_without("config.json"), "has no config.json"),
        (_without("model.safetensors"), "has no *.safetensors weights"),
        (_with_broken_config, "has a config.json that is not JSON"),
    ],
)
def test_a_model_that_is_none_is_refused_before_anything_starts(
    file: Path, tmp_path: Path, command: Command, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / "model")
    said = refused(command("run", file, "--set", f"model.base={tmp_path / 'model'}"), EXIT_INVALID)
    assert said.startswith(f"{file}: spec.model.base: '{tmp_path / 'model'}' {words}")
    assert not (tmp_path / "workspace").exists()


def cached(file: Path, command: Command, *options: str) -> list[bool]:
    return [row["cached"] for row in json.loads(command("plan", file, "--json", *options)[1])["stages"]]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port where nobody listens, and nobody else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_a_ray_that_is_not_there_is_refused_before_anything_starts(
    file: Path, tmp_path: Path, command: Command, closed_port: int
) -> None:
    words = refused(command("run", file, "--ray-address", f"127.0.0.1:{closed_port}"), EXIT_RETRYABLE)
    assert words.startswith(f"no Ray answers at '127.0.0.1:{closed_port}' ")
    assert cached(file, command) == [False] * 4
    assert not (tmp_path / "workspace" / "artifacts").exists()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://127.0.0.1:10001", "Ray Train cannot work through ray://"),
        ("head", "is not HOST:PORT"),
        ("", "is not HOST:PORT"),
    ],
)
def test_a_ray_address_of_a_wrong_form(file: Path, command: Command, address: str, words: str) -> None:
    assert words in refused(command("run", file, "--ray-address", address), EXIT_INVALID)
    assert cached(file, command) == [False] * 4


@pytest.mark.parametrize("name", ["run", "plan", "stop"])
def test_a_workspace_of_an_unknown_scheme(file: Path, command: Command, name: str) -> None:
    words = refused(command(name, file, "--workspace", "nosuch://bucket"), EXIT_INVALID)
    assert words == "spec.workspace.uri: 'nosuch://bucket' cannot be opened: Protocol not known: nosuch"


@pytest.mark.parametrize("name", ["run", "plan"])
def test_a_workspace_below_a_file(file: Path, command: Command, name: str) -> None:
    words = refused(command(name, file, "--workspace", f"{file}/below"), EXIT_INVALID)
    assert words.startswith(f"spec.workspace.uri: '{file}/below' cannot be ")


def test_a_read_only_workspace(file: Path, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() == 0:  # root writes where permissions forbid it
        mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "plumbline-test", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("needs the right to mount a tmpfs")
    else:
        folder.chmod(0o500)
    try:
        words = refused(command("run", file, "--workspace", folder / "a" / "b"), EXIT_INVALID)
        assert words == (
            f"spec.workspace.uri: '{folder}/a/b' cannot be written to: {folder} is read-only; give another folder"
        )
        assert cached(file, command, "--workspace", str(folder / "a")) == [False] * 4, "looking needs no right to write"
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_what_serves_can_be_stopped_after_its_inputs_are_gone(file: Path, tmp_path: Path, command: Command) -> None:
    code, out, _ = command("stop", file, "--set", f"model.base={tmp_path / 'gone'}")
    assert (code, out) == (0, "small: nothing was serving\n")


def test_an_edited_run_file_is_planned_anew(file: Path, tmp_path: Path, command: Command) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("{}\n")
    option = ("--set", f"stages.data.curate.sources.0.uri={source}")
    before: dict[str, Any] = json.loads(command("plan", file, "--json", *option)[1])
    source.write_text("{}\n{}\n")
    after = json.loads(command("plan", file, "--json", *option)[1])
    assert before["stages"][0]["fingerprint"] != after["stages"][0]["fingerprint"]


def test_the_crd_is_yaml_and_a_reader_may_stop_early(tmp_path: Path) -> None:
    shown = python("from plumbline.cli import main; main(['crd'])").stdout
    assert shown.startswith("# ")
    assert "kind: CustomResourceDefinition" in shown
    command = [sys.executable, "-m", "plumbline.cli", "crd"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 1


def test_the_installed_command_is_this_one(file: Path) -> None:
    program = Path(sys.executable).parent / "plumbline"
    if not program.exists():
        pytest.skip("plumbline is not installed in this environment")
    done = subprocess.run([program, "validate", file], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"{file}: valid\n")


def test_an_interrupt_has_its_own_code(file: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("plumbline.run_file.load_run", interrupted)
    assert command("plan", file) == (130, "", "interrupted; the same command continues from here\n")
