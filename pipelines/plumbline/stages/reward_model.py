"""`rewardModel`: a scalar head trained on comparisons, distributed by Ray Train."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from plumbline.api.stages.reward_model import RewardModelSpec
from plumbline.data.dataset import open_rows
from plumbline.errors import InvalidInput
from plumbline.models.load import load_tokenizer
from plumbline.models.reference import HEAD, HEAD_FILE
from plumbline.ray_environment import connect
from plumbline.stage import StageContext
from plumbline.training.batch import MicroBatch, micro_batches
from plumbline.training.objectives.bradley_terry import bradley_terry
from plumbline.training.preferences import Encoder, pair_by_score, ranking
from plumbline.training.schedule import batch_indices, total_steps
from plumbline.training.share import Unit, encode_rows, own_share
from plumbline.training.tuning import TrainingJob, tune
from plumbline.training.world import World

if TYPE_CHECKING:
    from plumbline.training.loop import ReportStep

MEASURED = 1024  # comparisons from which mean and standard deviation are taken
STATISTICS = "rewards"


def run(context: StageContext, spec: RewardModelSpec) -> None:
    """Train backbone adapter and head, and hand them over with the rewards' mean and standard deviation."""
    connect()
    rows = context.inputs["dataset"][0].details["rows"]
    job = TrainingJob.of(context, spec, total_steps(rows, spec.batch_size, spec.epochs, spec.max_steps))
    done = tune(context, job, work, leaves=(STATISTICS,))
    save_file({HEAD: done.parameters[HEAD]}, context.output.folder / HEAD_FILE)
    measured = job.store.load_tensors(STATISTICS) or {}
    mean, std = (float(measured[name]) for name in ("mean", "std"))
    context.output.details["reward"] = {"mean": mean, "std": std, "maxLength": spec.max_length}


def work(job: TrainingJob[RewardModelSpec], world: World, report: ReportStep) -> None:
    """One worker: the same on Ray Train, under torchrun and alone."""
    # Here, since the driver imports this file too and has no use for what it takes to run a model.
    from plumbline.training.engine import TrainEngine
    from plumbline.training.loop import train
    from plumbline.training.model import build_trainable
    from plumbline.training.reward_model import Rewards

    spec = job.spec
    rows = open_rows(job.dataset, spec.learn_from)
    encoder = Encoder(load_tokenizer(job.reference), spec.max_length)
    encode = pair_by_score if spec.learn_from == "pairs" else ranking
    trainable = build_trainable(job.reference, spec, job.where)
    model = Rewards(trainable.causal, spec.seed)
    model.compute_dtype = trainable.compute_dtype
    engine = TrainEngine(model, spec.optimizer, world, spec.parallelism)

    def unit(i: int) -> Unit | None:
        """The answers of a row; None when one of them is too long."""
        encoded = encode(encoder, rows[i])
        return encoded if encoder.fits(encoded) else None

    def layout(units: list[Unit]) -> list[MicroBatch]:
        for place, encoded in enumerate(units):
            for sequence in encoded:
                sequence.values["ranking"] = float(place)
        return micro_batches(units, micro_batch_tokens=spec.micro_batch_tokens)

    def batches(step: int) -> tuple[list[list[MicroBatch]], dict[str, float]]:
        drawn = batch_indices(step, len(rows), spec.batch_size, spec.seed, spec.shuffle)
        kept = [encoded for encoded in encode_rows(world, drawn, unit) if encoded is not None]
        return [layout(own_share(world, kept))], {"leftOut": float(len(drawn) - len(kept))}

    if not any(unit(i) for i in range(len(rows))):
        raise InvalidInput(f"{job.where}.maxLength: no comparison fits into {spec.max_length} tokens; raise it")
    train(
        engine, batches, bradley_terry(spec.centering, spec.margin), job.steps, job.store, spec.checkpoint, spec.seed, report
    )
    drawn = batch_indices(0, len(rows), len(rows), spec.seed)  # the rows' own order may be a curriculum
    measured = list(islice((encoded for i in drawn if (encoded := unit(i)) is not None), MEASURED))
    rewards = torch.cat([torch.zeros(0), *engine.log_probs(layout(measured[world.rank :: world.size]))])
    total, squares, count = world.totals(float(rewards.double().sum()), float((rewards.double() ** 2).sum()), len(rewards))
    mean = total / count
    if world.rank == 0:
        std = max(squares / count - mean**2, 1e-12) ** 0.5
        job.store.save_tensors(STATISTICS, {"mean": torch.tensor(mean), "std": torch.tensor(std)})
