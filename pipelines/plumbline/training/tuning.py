"""What the training stage kinds share: a job of plain values, and train → export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from plumbline.api.stages.training import TrainingSpec
from plumbline.artifacts import Artifact
from plumbline.errors import PlumblineError
from plumbline.models.reference import ModelReference
from plumbline.stage import StageContext
from plumbline.training.checkpoint import Checkpoint, CheckpointStore
from plumbline.training.export import export_model
from plumbline.training.loop import ADAPTER

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
) -> Checkpoint:
    """Run the workers until the last step's checkpoint is there, then hand it over as a model.

    Args:
        context: of the stage.
        job: what the workers work on.
        worker: what they run.
        template: change to the chat template.
        leaves: names of further tensors that workers keep after the last step.
    """
    from plumbline.training.ray import launch

    def finished() -> Checkpoint | None:
        done = job.store.latest()
        whole = done is not None and done.step >= job.steps
        return done if whole and all(job.store.load_tensors(name) is not None for name in (ADAPTER, *leaves)) else None

    done = finished()
    if done is None:
        context.report.say("starting workers")
        launch(worker, job, job.spec.parallelism, context.checkpoints, context.report)
        done = finished()
    if done is None:
        raise PlumblineError(
            f"the workers have finished, and their last checkpoint is not to be found at {job.checkpoints}; "
            "all nodes must reach one workspace"
        )
    context.report.say("writing the model")
    export_model(context, job.reference, done, job.store.load_tensors(ADAPTER) or {}, template)
    return done
