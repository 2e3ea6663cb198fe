"""Training across real Ray nodes: they go with and without notice, others come, and the weights do not tell."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from plumbline.api.run import AlignmentRun
from plumbline.plan import make_plan
from plumbline.progress import Event, FileTail
from support.nodes import Nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# The stage program. Its steps take their time until a file says that all has happened that was to happen to them.
PROGRAM = """
import sys, time
from pathlib import Path
from plumbline import stage
from plumbline.stages import sft
from plumbline.training import ray as groups

go = Path(sys.argv.pop(1))
groups.GRACE = 10.0

def work(job, world, report):
    from plumbline.stages.sft import work
    def unhurried(*step):
        report(*step)
        if not go.exists():
            time.sleep(0.25)
    work(job, world, unhurried)

sft.work = work
sys.exit(stage.main())
"""
STEPS = 60
Happening = tuple[Callable[[list[Event]], bool], Callable[[], Any]]


class Training:
    """Supervised tuning of the built-in model in a workspace of its own."""

    def __init__(self, nodes: Nodes, folder: Path, parallelism: dict[str, Any]) -> None:
        self._nodes, self._folder = nodes, folder
        self.workspace = folder / "workspace"
        data = {"name": "data", "curate": {"sources": [{"uri": "builtin://skills", "limit": 200}]}}
        block = {"maxSteps": STEPS, "batchSize": 8, "maxLength": 96, "checkpoint": {"everySteps": 4}}
        sft = {"name": "sft", "sft": block | {"parallelism": parallelism}}
        spec = {"model": {"base": "builtin://tiny"}, "workspace": {"uri": str(self.workspace)}, "stages": [data, sft]}
        run = {"apiVersion": "plumbline.dev/v1alpha1", "kind": "AlignmentRun", "metadata": {"name": "small"}, "spec": spec}
        plan = make_plan(AlignmentRun.model_validate(run, by_name=False, by_alias=True))
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(plan.to_json()))

    def stage(self, name: str, *happenings: Happening) -> list[Event]:
        """Run a stage to its end. Whenever the first of the happenings' conditions holds, it happens."""
        log, progress, go = (self._folder / f"{name}.{kind}" for kind in ("log", "progress", "go"))
        tail, events, left = FileTail(progress), [], list(happenings)
        command = (sys.executable, "-c", PROGRAM, str(go), str(self._folder / "run.json"), name, "--progress", str(progress))
        with self._nodes.program(log, *command) as process:
            while process.poll() is None:
                events += tail.read()
                if left and left[0][0](events):
                    left.pop(0)[1]()
                if not left:
                    go.touch()
                time.sleep(0.05)
        events += tail.read()
        assert process.returncode == 0, log.read_text()
        assert not left
        return events

    def weights(self) -> Path:
        (found,) = self.workspace.glob("artifacts/sft/*/**/adapter_model.safetensors")
        return found

    def steps(self) -> list[int]:
        """Of which the artifact tells."""
        (metrics,) = self.workspace.glob("artifacts/sft/*/metrics.jsonl")
        return [json.loads(line)["step"] for line in metrics.read_text().splitlines()]


def after(step: int, times: int = 1) -> Callable[[list[Event]], bool]:
    """Whether a group has got beyond a step, in its `times`th start."""
    return lambda events: starts(events) >= times and bool(events) and (events[-1].step or 0) >= step


def starts(events: list[Event]) -> int:
    return sum(event.message == "training" and event.step is None for event in events)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with Nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Trained by two workers on nodes `a` and `b`, which live on."""
    nodes.start("a", "b")
    training = Training(nodes, tmp_path_factory.mktemp("nodes") / "undisturbed", {"workers": 2})
    training.stage("data")
    training.stage("sft")
    return training


def disturbed(nodes: Nodes, folder: Path, undisturbed: Training, parallelism: dict[str, Any]) -> Training:
    training = Training(nodes, folder / "disturbed", parallelism)
    shutil.copytree(undisturbed.workspace / "artifacts" / "curate", training.workspace / "artifacts" / "curate")
    return training


def test_a_node_that_is_taken_away_and_one_that_is_lost(nodes: Nodes, undisturbed: Training, tmp_path: Path) -> None:
    a, b = nodes.nodes["a"], nodes.nodes["b"]
    training = disturbed(nodes, tmp_path, undisturbed, {"workers": 2, "maxFailures": 1})
    events = training.stage(
        "sft",
        (after(6), lambda: (b.terminate(), nodes.start("c"))),
        (after(18, times=2), lambda: (nodes.lose(a), nodes.start("d"))),
        (after(24, times=3), lambda: None),
    )
    messages = [event.message for event in events if event.step is None]
    assert [words for words in messages if "about to go" in words or "was lost" in words] == [
        "1 of its nodes is about to go; all is saved, a new group goes on",
        *[words for words in messages if words.startswith("a worker was lost")],
    ]
    assert starts(events) == 3
    second = [i for i, event in enumerate(events) if event.message == "training" and event.step is None][1]
    before, behind = ([e.step for e in part if e.step is not None] for part in (events[:second], events[second:]))
    assert max(before) < behind[0] <= max(before) + 2  # nothing was done twice
    assert training.steps() == list(range(1, STEPS + 1))
    assert training.weights().read_bytes() == undisturbed.weights().read_bytes()
    assert b.process.wait(60) is not None  # it went by itself when its work was done


def test_a_range_goes_on_with_fewer(nodes: Nodes, undisturbed: Training, tmp_path: Path) -> None:
    training = disturbed(nodes, tmp_path, undisturbed, {"minWorkers": 1, "maxWorkers": 2, "maxFailures": 1})
    here = [name for name, node in nodes.nodes.items() if node.process.poll() is None]
    events = training.stage(
        "sft",
        (after(6), lambda: nodes.lose(nodes.nodes[here[-1]])),
        (after(10, times=2), lambda: None),
    )
    assert starts(events) == 2
    assert training.steps() == list(range(1, STEPS + 1))
    ours, theirs = (load_file(one.weights()) for one in (training, undisturbed))
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() < 1e-4, name
