"""The embedded driver end to end: interrupted anywhere, it ends with what an undisturbed run gives."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from support.embedded import RUN, Runs, Watch
from support.patience import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Long enough not to be over before the signal arrives: asking, and training.
LONG_CHECK = RUN.replace("limit: 60", "limit: 240")
LONG_SFT = RUN.replace("maxSteps: 12", "maxSteps: 60\n        epochs: 10").replace("batchSize: 16", "batchSize: 64")


def checksums(workspace: Path) -> dict[str, dict[str, str]]:
    """Every file of every artifact but reports and model cards, which hold times: its SHA-256, by kind and fingerprint."""
    return {
        f"{manifest.parent.parent.name}/{manifest.parent.name}": {
            name: facts["sha256"]
            for name, facts in json.loads(manifest.read_text())["files"].items()
            if "report" not in name and name != "MODEL_CARD.md"
        }
        for manifest in workspace.glob("artifacts/*/*/manifest.json")
    }


def at(stage: str, step: int | None = None, message: str = "") -> Watch:
    """True at the stage's progress event with this step or a later one, or with this message."""

    def watch(event: dict[str, Any]) -> bool:
        if event["event"] != "progress" or event["stage"] != stage:
            return False
        return message in event.get("message", "") and (step is None or event.get("step", -1) >= step)

    return watch


def leftovers(workspace: Path) -> list[str]:
    """Command lines of living processes that name this workspace, each with its state."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if str(workspace) in command:
                found.append(f"{command}: {(process / 'status').read_text()}")
        except OSError:  # it has just ended
            continue
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace of an undisturbed run."""
    runs = Runs(tmp_path_factory.mktemp("straight"))
    code, events, err = runs.run(runs.file(LONG_CHECK), "--no-serve")
    assert code == 0, err
    assert [e["stage"] for e in events if e["event"] == "finished"] == ["data", "sft", "align", "check"]
    return runs.folder / "workspace"


def test_killed_at_every_stage_it_ends_with_the_same_artifacts(runs: Runs, straight: Path) -> None:
    file, workspace = runs.file(LONG_CHECK), runs.folder / "workspace"
    for when in (at("data", message="reading"), at("sft", step=6), at("align", step=3), at("check", message="asking")):
        code, _ = runs.interrupt(file, when, signal.SIGKILL, "--no-serve")
        assert code == -signal.SIGKILL
    code, events, err = runs.run(file, "--no-serve")
    assert code == 0, err
    assert [e["stage"] for e in events if e["event"] == "cached"] == ["data", "sft", "align"]
    assert checksums(workspace) == checksums(straight)
    for metrics in workspace.glob("artifacts/*/*/metrics.jsonl"):  # nothing lost, nothing doubled
        steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
        assert steps == list(range(1, len(steps) + 1))
    assert not list((workspace / "checkpoints").iterdir())
    # The kernel and Ray need a moment to end a killed driver's children.
    wait_for(lambda: not leftovers(workspace), 60, lambda: leftovers(workspace))


def test_interrupted_by_the_user_it_says_so_and_continues(runs: Runs, straight: Path) -> None:
    runs.begin_with(straight, "curate")
    file = runs.file(LONG_SFT)
    # The checkpoint of step 8 is begun only when that of step 4 is whole.
    code, err = runs.interrupt(file, at("sft", step=9), signal.SIGINT, "--until", "sft")
    assert code == 130
    assert "the same command continues" in err
    assert not leftovers(runs.folder / "workspace")
    code, events, err = runs.run(file, "--until", "sft")
    assert code == 0, err
    first = next(e for e in events if e["event"] == "progress" and e["stage"] == "sft" and "step" in e)
    assert first["step"] > 4  # from the checkpoint, not from the start
    # An unchanged run does nothing; an edited stage is done again, and what it reads is not.
    code, events, _ = runs.run(file, "--until", "sft")
    assert [(e["event"], e["stage"]) for e in events] == [("cached", "data"), ("cached", "sft")]
    edited = runs.plan(file, "--set", "stages.sft.sft.maxSteps=2")
    assert edited == {"data": True, "sft": False, "align": False, "check": False, "live": False}
    assert runs.plan(file, "--set", "stages.sft.sft.parallelism.workers=1")["sft"]


def test_driver_killed_while_the_endpoint_starts_leaves_none_behind(runs: Runs) -> None:
    file = runs.file(
        """
apiVersion: plumbline.dev/v1alpha1
kind: AlignmentRun
metadata: {name: bare}
spec:
  model: {base: "builtin://tiny"}
  workspace: {uri: WORKSPACE}
  stages: [{name: live, serve: {ungated: true}}]
"""
    )
    code, _ = runs.interrupt(file, lambda e: e["event"] == "started", signal.SIGKILL)
    assert code == -signal.SIGKILL
    wait_for(lambda: not leftovers(runs.folder), 60, lambda: leftovers(runs.folder))


def test_a_killed_training_worker_is_replaced(runs: Runs, straight: Path) -> None:
    runs.begin_with(straight, "curate")
    file = runs.file(LONG_SFT)
    process = runs.start(file, "--until", "sft")
    assert process.stdout is not None
    events = []
    for line in process.stdout:
        events.append(json.loads(line))
        if len(events) > 1 and at("sft", step=6)(events[-1]):
            os.kill(training_worker(process.pid), signal.SIGKILL)
            break
    out, err = process.communicate(timeout=600)
    events += [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 0, err
    assert any("a worker was lost" in e.get("message", "") for e in events)
    metrics = next((runs.folder / "workspace").glob("artifacts/sft/*/metrics.jsonl"))
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 61))


def training_worker(driver: int) -> int:
    """A Ray Train worker process below the driver."""
    parents = {}
    workers = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if b"RayTrainWorker" in (process / "cmdline").read_bytes():
                workers.append(int(process.name))
        except OSError:
            continue
    for worker in workers:
        above = worker
        while above > 1:
            above = parents.get(above, 0)
            if above == driver:
                return worker
    raise AssertionError(f"no training worker below {driver}: {workers}")
