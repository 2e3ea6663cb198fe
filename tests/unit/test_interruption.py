"""A group that is told to stop saves first, and what counts as a loss."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ray.exceptions import RayActorError
from ray.train import TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from plumbline.api.stages.training import ParallelismSpec
from plumbline.training.checkpoint import CheckpointStore
from plumbline.training.ray import _taken_away

# Two ranks train for a thousand steps; nothing is saved on the way.
PROGRAM = """
import sys, time
from plumbline.api.stages.training import AdapterSpec, CheckpointSpec, OptimizerSpec, TrainingSpec
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.training.batch import Sequence, micro_batches
from plumbline.training.checkpoint import CheckpointStore
from plumbline.training.engine import TrainEngine
from plumbline.training.loop import Interrupted, train
from plumbline.training.model import build_trainable
from plumbline.training.objectives.sft import sft
from plumbline.training.world import World

def say(words):
    sys.stdout.write(words + "\\n")  # at once: torchrun takes the buffer away, and print would let the other rank between words and end
    sys.stdout.flush()

def report(step, total, metrics):
    say(f"step {step}")
    time.sleep(0.05)

def source(step):
    sequence = Sequence(list(range(5, 13)), [False] * 4 + [True] * 4)
    return [micro_batches([[sequence]], micro_batch_tokens=64)], {}

world = World.current()
model = build_trainable(ModelReference(TINY), TrainingSpec(adapter=AdapterSpec(rank=2), max_length=16), "sft")
engine = TrainEngine(model, OptimizerSpec(), world)
try:
    train(engine, source, sft, 1000, CheckpointStore(sys.argv[1]), CheckpointSpec(every_steps=1000), 0, report)
except Interrupted:
    say(f"rank {world.rank} stopped")
"""


@pytest.mark.timeout(900)
def test_torchrun_passes_sigterm_on_and_the_group_saves(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    # torchrun kills after 30 seconds, in which a busy machine may not have saved.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--shutdown-timeout=200"]
    command = [*torchrun, "--nproc-per-node=2", str(program)]
    checkpoints = str(tmp_path / "checkpoints")
    with subprocess.Popen([*command, checkpoints], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line.strip())
            if said.count("step 3") == 2:
                break
        process.send_signal(signal.SIGTERM)
        said += [line.strip() for line in process.stdout]
    assert {"rank 0 stopped", "rank 1 stopped"} <= set(said)
    saved = CheckpointStore(checkpoints).latest()
    assert saved is not None
    assert 3 <= saved.step < 1000
    assert f"step {saved.step}" in said
    assert f"step {saved.step + 1}" not in said


@pytest.mark.parametrize("preempted", [True, False])
def test_only_what_ray_knew_of_is_no_loss(preempted: bool) -> None:
    death = RayActorError(preempted=preempted)
    check = WorkerHealthCheckFailedError("gone", death)
    other = RuntimeError("Connection closed by peer")  # what the others see of it
    assert _taken_away(WorkerGroupError("lost", {0: other, 1: check})) is preempted
    assert not _taken_away(WorkerGroupError("lost", {0: other}))
    assert not _taken_away(TrainingFailedError("no group"))


def test_a_number_or_a_range_of_workers() -> None:
    ends = [(spec.least, spec.most) for spec in (ParallelismSpec(), ParallelismSpec(workers=3))]
    assert ends == [(1, 1), (3, 3)]
    spec = ParallelismSpec(min_workers=2, max_workers=5)
    assert (spec.least, spec.most, spec.problems()) == (2, 5, [])
    for fields, where in (
        ({"workers": 2, "min_workers": 1, "max_workers": 2}, ["workers"]),
        ({"min_workers": 2}, ["maxWorkers"]),
        ({"max_workers": 2}, ["minWorkers"]),
        ({"min_workers": 3, "max_workers": 2}, ["minWorkers"]),
    ):
        assert [name for name, _ in ParallelismSpec(**fields).problems()] == where
