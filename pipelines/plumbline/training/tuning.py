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
from plumbline.training.checkpoint import CheckpointStore
from plumbline.training.export import export_model

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
    context: StageContext, job: TrainingJob[Spec], worker: Worker, template: Callable[[str], str] | None = None
) -> None:
    """Run the workers until the last step's checkpoint is there, then hand it over as a Model, its chat template changed by `template`."""
    from plumbline.training.ray import launch

    done = job.store.latest()
    if done is None or done.step < job.steps:
        context.report.say("starting workers")
        launch(worker, job, job.spec.parallelism, context.checkpoints, context.report)
        done = job.store.latest()
    if done is None or done.step < job.steps:
        raise PlumblineError(
            f"the workers have finished, and their last checkpoint is not to be found at {job.checkpoints}; "
            "all nodes must reach one workspace"
        )
    context.report.say("writing the adapter")
    export_model(context, job.reference, done, template)
