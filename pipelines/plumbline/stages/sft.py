"""`sft`: supervised fine-tuning on chats, distributed by Ray Train."""

from __future__ import annotations

from plumbline.api.stages.sft import SftSpec
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
from plumbline.training.objectives.sft import sft
from plumbline.training.schedule import batch_indices, total_steps
from plumbline.training.tuning import TrainingJob, tune
from plumbline.training.world import World


def run(context: StageContext, spec: SftSpec) -> None:
    """Train the adapter and hand it over as a Model."""
    connect()
    rows = context.inputs["dataset"][0].details["rows"]
    tune(context, TrainingJob.of(context, spec, total_steps(rows, spec.batch_size, spec.epochs, spec.max_steps)), work)


def work(job: TrainingJob[SftSpec], world: World, report: ReportStep) -> None:
    """One worker: the same on Ray Train, under torchrun and alone."""
    spec = job.spec
    tokenizer = load_tokenizer(job.reference)
    chats = load_rows(job.dataset, "messages")["messages"].to_pylist()
    model = build_trainable(job.reference, spec, job.where, spec.packing, spec.embeddings)
    engine = TrainEngine(model, spec.optimizer, world, spec.parallelism)

    def encode(i: int) -> Sequence:
        return encode_chat(tokenizer, chats[i], spec.max_length + 1, spec.train_on)

    def batches(step: int) -> tuple[list[list[MicroBatch]], dict[str, float]]:
        mine = batch_indices(step, len(chats), spec.batch_size, spec.seed, spec.shuffle)[world.rank :: world.size]
        whole = [encode(i) for i in mine]
        kept = [sequence.cut(spec.max_length) for sequence in whole]
        units = [[sequence] for sequence in kept if sequence.targets]
        row_tokens = min(spec.max_length, spec.micro_batch_tokens) if spec.packing else None
        cut, left_out = world.totals(sum(len(s.ids) > spec.max_length for s in whole), len(kept) - len(units))
        made = micro_batches(units, micro_batch_tokens=spec.micro_batch_tokens, row_tokens=row_tokens)
        return [made], {"cut": cut, "leftOut": left_out}

    if not any(encode(i).cut(spec.max_length).targets for i in range(len(chats))):
        raise InvalidInput(f"{job.where}.maxLength: no chat has an answer within {spec.max_length} tokens; raise it")
    train(engine, batches, sft, job.steps, job.store, spec.checkpoint, spec.seed, report)
