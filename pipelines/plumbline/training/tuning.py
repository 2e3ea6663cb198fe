"""What the training stage kinds share: a job of plain values, and train → export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from plumbline.api.stages.sft import EarlyStoppingSpec
from plumbline.api.stages.training import TrainingSpec
from plumbline.artifacts import Artifact
from plumbline.errors import PlumblineError
from plumbline.models.reference import ModelReference
from plumbline.stage import StageContext
from plumbline.training.checkpoint import ADAPTER, Checkpoint, CheckpointStore
from plumbline.training.early_stopping import load_best, reason_to_stop
from plumbline.training.export import export_model
from plumbline.training.tracking import tracked

if TYPE_CHECKING:
    from plumbline.training.ray import Worker

Spec = TypeVar("Spec", bound=TrainingSpec)


@dataclass(frozen=True)
class TrainingJob(Generic[Spec]):
    """All that a training worker needs; it travels to the workers.

    Attributes:
        reference: the model to start from.
        dataset: what to train on.
        spec: the stage's block.
        steps: steps in all.
        checkpoints: folder URI.
        where: field path of the stage's block, for error messages.
    """

    reference: ModelReference
    dataset: Artifact
    spec: Spec
    steps: int
    checkpoints: str
    where: str

    @classmethod
    def of(cls, context: StageContext, spec: Spec, steps: int) -> TrainingJob[Spec]:
        reference = ModelReference.of(context.plan, context.input("model"))
        return cls(reference, context.inputs["dataset"][0], spec, steps, context.checkpoints, context.where)

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(self.checkpoints, self.spec.checkpoint.keep)


def tune(
    context: StageContext,
    job: TrainingJob[Spec],
    worker: Worker,
    template: Callable[[str], str] | None = None,
    leaves: tuple[str, ...] = (),
    early: EarlyStoppingSpec | None = None,
    gpu: float = 1.0,
) -> Checkpoint:
    """Run the workers until the last step's checkpoint is there, then hand it over as a model.

    Args:
        context: of the stage.
        job: what the workers work on.
        worker: what they run.
        template: change to the chat template.
        leaves: names of further tensors that workers keep after the last step.
        early: when the last step is, and which one is handed over: its weights, with the metrics of all.
        gpu: what a worker takes of one.
    """
    from plumbline.training.page import REPORT, page, summary  # here, since workers import this file too
    from plumbline.training.ray import launch

    def finished() -> Checkpoint | None:
        done = job.store.latest()
        stopped = done is not None and early is not None and reason_to_stop(done.history, early) is not None
        whole = done is not None and (done.step >= job.steps or stopped)
        return done if whole and all(job.store.load_tensors(name) is not None for name in (ADAPTER, *leaves)) else None

    with tracked(context, job.spec, job.store.history) as clock:
        done = finished()
        if done is None:
            context.report.say("starting workers")
            launch(worker, job, job.spec.parallelism, context.checkpoints, context.report, gpu)
            done = finished()
        if done is None:
            raise PlumblineError(
                f"the workers have finished, and their last checkpoint is not to be found at {job.checkpoints}; "
                "all nodes must reach one workspace"
            )
    if early is not None:
        done = replace(load_best(job.store, done.history, early), history=done.history)
    context.report.say("writing the model")
    export_model(context, job.reference, done, job.store.load_tensors(ADAPTER) or {}, template)
    context.output.metrics.update(summary(clock))
    (context.output.folder / REPORT).write_text(
        page(context.node.name, done.history, clock, job.spec, (done.extra or {}).get("samples", [])), encoding="utf-8"
    )
    return done
