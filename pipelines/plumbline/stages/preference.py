"""`preference`: offline tuning on pairs (DPO), distributed by Ray Train."""

from __future__ import annotations

import torch

from plumbline.api.stages.preference import PreferenceSpec
from plumbline.data.dataset import load_rows
from plumbline.errors import InvalidInput
from plumbline.models.load import load_tokenizer
from plumbline.ray_environment import connect
from plumbline.stage import StageContext
from plumbline.training.batch import MicroBatch, Sequence, micro_batches
from plumbline.training.encode import encode_chat
from plumbline.training.engine import TrainEngine
from plumbline.training.loop import ReportStep, train
from plumbline.training.model import build_trainable
from plumbline.training.objectives.dpo import dpo
from plumbline.training.schedule import batch_indices, total_steps
from plumbline.training.tuning import TrainingJob, tune
from plumbline.training.world import World


def run(context: StageContext, spec: PreferenceSpec) -> None:
    """Train the adapter and hand it over as a Model."""
    connect()
    rows = context.inputs["dataset"][0].details["rows"]
    tune(context, TrainingJob.of(context, spec, total_steps(rows, spec.batch_size, spec.epochs, spec.max_steps)), work)


def work(job: TrainingJob[PreferenceSpec], world: World, report: ReportStep) -> None:
    """One worker: the same on Ray Train, under torchrun and alone."""
    spec = job.spec
    tokenizer = load_tokenizer(job.reference)
    rows = load_rows(job.dataset, "pairs").select(["prompt", "chosen", "rejected"]).to_pylist()
    model = build_trainable(job.reference, spec, job.where)
    engine = TrainEngine(model, spec.optimizer, world, spec.parallelism.sharding)

    def pair(i: int) -> list[Sequence] | None:
        """Chosen and rejected; None when one of them is too long."""
        chats = [rows[i]["prompt"] + rows[i][side] for side in ("chosen", "rejected")]
        both = [encode_chat(tokenizer, chat, spec.max_length + 1, "last") for chat in chats]
        return both if all(len(s.ids) <= spec.max_length and s.targets for s in both) else None

    def batches(step: int) -> tuple[list[list[MicroBatch]], dict[str, float]]:
        mine = batch_indices(step, len(rows), spec.batch_size, spec.seed, spec.shuffle)[world.rank :: world.size]
        pairs = [encoded for i in mine if (encoded := pair(i)) is not None]
        made = micro_batches(pairs, micro_batch_tokens=spec.micro_batch_tokens)
        with engine.reference():
            logps = engine.log_probs(made)
        for batch, values in zip(made, logps, strict=True):
            batch.per_sequence["reference"] = torch.zeros(batch.size).index_add(0, batch.sequence, values)
        (left_out,) = world.totals(len(mine) - len(pairs))
        return [made], {"leftOut": left_out}

    if not any(pair(i) for i in range(len(rows))):
        raise InvalidInput(f"{job.where}.maxLength: no pair fits into {spec.max_length} tokens; raise it")
    objective = dpo(spec.beta, spec.label_smoothing)
    train(engine, batches, objective, job.steps, job.store, spec.checkpoint, spec.seed, report)
