"""`preference`: offline tuning on pairs, rankings, labelled or judged answers, distributed by Ray Train."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from plumbline.api.stages.preference import PreferenceSpec
from plumbline.data.dataset import open_rows
from plumbline.errors import InvalidInput
from plumbline.models.load import load_tokenizer
from plumbline.ray_environment import connect
from plumbline.stage import StageContext
from plumbline.training.batch import MicroBatch, Sequence, micro_batches
from plumbline.training.preferences import METHODS, Encoder, marking, unmarked
from plumbline.training.reference import reference_log_probs
from plumbline.training.schedule import batch_indices, total_steps
from plumbline.training.share import encode_rows, own_share
from plumbline.training.tuning import TrainingJob, tune
from plumbline.training.world import World

if TYPE_CHECKING:
    from plumbline.training.engine import TrainEngine
    from plumbline.training.loop import ReportStep


def run(context: StageContext, spec: PreferenceSpec) -> None:
    """Train the adapter and hand it over as a Model."""
    connect()
    rows = context.inputs["dataset"][0].details["rows"]
    steps = total_steps(rows, spec.batch_size, spec.epochs, spec.max_steps)
    marker = spec.options().get("good_marker")
    template = None if marker is None else partial(marking, marker=str(marker))
    tune(context, TrainingJob.of(context, spec, steps), work, template)


def work(job: TrainingJob[PreferenceSpec], world: World, report: ReportStep) -> None:
    """One worker: the same on Ray Train, under torchrun and alone."""
    # Here, since the driver imports this file too and has no use for what it takes to run a model.
    from plumbline.training.engine import TrainEngine
    from plumbline.training.loop import train
    from plumbline.training.model import build_trainable

    spec = job.spec
    method = METHODS[spec.objective]
    options = spec.options()
    rows = open_rows(job.dataset, method.form)
    encoder = Encoder(tokenizer := load_tokenizer(job.reference), spec.max_length)
    if "good_marker" in options:  # an input model that was tuned so has a template that marks by itself
        tokenizer.chat_template = unmarked(str(tokenizer.chat_template))
    engine = TrainEngine(build_trainable(job.reference, spec, job.where), spec.optimizer, world, spec.parallelism)

    def unit(i: int) -> list[Sequence] | None:
        """The sequences of a row; None when one of them is too long."""
        encoded = method.encode(encoder, rows, i, spec)
        return encoded if encoder.fits(encoded) else None

    def batches(step: int) -> tuple[list[list[MicroBatch]], dict[str, float]]:
        drawn = batch_indices(step, len(rows), spec.batch_size, spec.seed, spec.shuffle)
        kept = [encoded for encoded in encode_rows(world, drawn, unit) if encoded is not None]
        mine = own_share(world, kept)
        for place, encoded in enumerate(mine):
            for number, sequence in enumerate(encoded):
                sequence.values["ranking"] = float(place)
                if references is not None:
                    sequence.values["reference"] = float(references[sequence.row, number])
        whole: dict[str, float] = {"pairs": len(kept), "chosenTargets": sum(encoded[0].targets for encoded in kept)}
        if method.baseline:
            whole["kl"] = _divergence(engine, [[encoded.pop()] for encoded in mine], spec.micro_batch_tokens)
        parts = [part for encoded in mine for part in method.parts(encoded)]
        made = micro_batches(parts, micro_batch_tokens=spec.micro_batch_tokens)
        for batch in made:
            batch.per_step = whole
        return [made], {"leftOut": float(len(drawn) - len(kept))}

    if not any(unit(i) for i in range(len(rows))):
        raise InvalidInput(f"{job.where}.maxLength: no row fits into {spec.max_length} tokens; raise it")
    references = None
    if method.reference or options.get("reference"):
        first_epoch = min(job.steps * spec.batch_size, len(rows))
        seen = sorted(batch_indices(0, len(rows), first_epoch, spec.seed, spec.shuffle))
        references = reference_log_probs(engine, unit, seen, spec.micro_batch_tokens, job.store)
    train(engine, batches, method.loss(**options), job.steps, job.store, spec.checkpoint, spec.seed, report)


def _divergence(engine: TrainEngine, unrelated: list[list[Sequence]], micro_batch_tokens: int) -> float:
    """KTO's z0: mean log-ratio of answers to other prompts over all ranks, at least 0."""
    total = 0.0
    batches = micro_batches(unrelated, micro_batch_tokens=micro_batch_tokens)
    for batch, logps in zip(batches, engine.log_probs(batches), strict=True):
        total += float((batch.summed(logps) - batch.per_sequence["reference"]).sum())
    ratio, count = engine.world.totals(total, len(unrelated))
    return max(0.0, ratio / max(1.0, count))
