"""`sft`: supervised fine-tuning on chats, or on plain texts, distributed by Ray Train."""

from __future__ import annotations

from collections import abc
from typing import TYPE_CHECKING

from plumbline.api.stages.sft import SftSpec
from plumbline.artifacts import Artifact
from plumbline.data.dataset import form_held, open_rows
from plumbline.errors import InvalidInput
from plumbline.models.load import load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.ray_environment import connect
from plumbline.stage import StageContext
from plumbline.training.batch import MicroBatch, Sequence, micro_batches
from plumbline.training.early_stopping import DRIFT, Probe, exchanges_of, hold_out, prepare, summary
from plumbline.training.encode import encode_chat
from plumbline.training.objectives.sft import sft
from plumbline.training.schedule import batch_indices, total_steps
from plumbline.training.share import Unit, encode_rows, own_share
from plumbline.training.texts import measure, text_sequences
from plumbline.training.tuning import TrainingJob, tune
from plumbline.training.world import World

if TYPE_CHECKING:
    from plumbline.training.loop import ReportStep


def run(context: StageContext, spec: SftSpec) -> None:
    """Train the adapter and hand it over as a Model."""
    connect()
    dataset = context.inputs["dataset"][0]
    texts = _tokenised(context, spec) if _holds_text(dataset) else None
    rows = texts["sequences"] if texts else dataset.details["rows"]
    early = spec.early_stopping
    if early is not None:
        rows -= early.prompts
    job = TrainingJob.of(context, spec, total_steps(rows, spec.batch_size, spec.epochs, spec.max_steps))
    done = tune(context, job, work, early=early)
    if texts:
        context.output.details["texts"] = texts
    if early is not None:
        from plumbline.evaluation.charts import phases_chart

        context.output.details["earlyStopping"] = found = summary(job.store, done.history, early)
        context.output.metrics.update(done.history[done.step - 1])
        before = {"step": 0.0, DRIFT: 0.0, **found["start"]}
        phases = phases_chart(context.node.name, [before, *done.history], early.threshold, done.step)
        (context.output.folder / "phases.svg").write_text(phases, "utf-8")
        context.report.say(f"{found['reason']}; of {found['steps']} steps, step {done.step} is handed over")


def _holds_text(dataset: Artifact) -> bool:
    return form_held(dataset, "messages", "text") == "text"


def _tokenised(context: StageContext, spec: SftSpec) -> dict[str, int]:
    """Make the sequences of plain texts; what they come to.

    Raises:
        InvalidInput: a setting has no meaning for texts, or there is nothing to learn.
    """
    dataset, where = context.inputs["dataset"][0], context.where
    if spec.train_on != "all":
        raise InvalidInput(f"{where}.trainOn: plain text has no turns, all of it is trained on; leave trainOn out")
    if spec.early_stopping is not None:
        raise InvalidInput(f"{where}.earlyStopping: plain text holds no instructions to follow; leave earlyStopping out")
    if spec.max_length < 2:
        raise InvalidInput(f"{where}.maxLength: {spec.max_length} leaves no token to predict; use at least 2")
    context.report.say("tokenising texts")
    tokenizer = load_tokenizer(ModelReference.of(context.plan, context.input("model")), chat=False)
    found = measure(text_sequences(dataset, tokenizer, spec.max_length), dataset.details["rows"])
    if not found["sequences"]:
        raise InvalidInput(
            f"{where}: the texts of stage '{dataset.manifest['stage']}' are empty; name another dataset in inputs"
        )
    context.report.say(
        f"{found['documents']:,} texts make {found['sequences']:,} sequences with {found['targets']:,} tokens to learn; "
        f"{found['split']:,} are longer than {spec.max_length} tokens and go on in another sequence"
    )
    return found


def work(job: TrainingJob[SftSpec], world: World, report: ReportStep) -> None:
    """One worker: the same on Ray Train, under torchrun and alone."""
    # Here, since the driver imports this file too and has no use for what it takes to run a model.
    from plumbline.training.engine import TrainEngine
    from plumbline.training.loop import train
    from plumbline.training.model import build_trainable

    spec = job.spec
    texts = _holds_text(job.dataset)
    tokenizer = load_tokenizer(job.reference, chat=not texts)
    rows = text_sequences(job.dataset, tokenizer, spec.max_length) if texts else open_rows(job.dataset, "messages")
    model = build_trainable(job.reference, spec, job.where, spec.packing, spec.embeddings)
    packing = not model.virtual_tokens if spec.packing is None else spec.packing
    early = spec.early_stopping
    probes: list[Probe] = []
    taught: abc.Sequence[int] = range(len(rows))
    if early is not None:
        held, probes = hold_out(rows, tokenizer, early, spec.max_length, spec.seed, job.where)
        taught = sorted(set(taught).difference(held))
    engine = TrainEngine(model, spec.optimizer, world, spec.parallelism, keep_reference=early is not None)

    def encode(i: int) -> Unit:
        if texts:
            return [Sequence(ids := rows[i]["ids"], [True] * len(ids))]
        return [encode_chat(tokenizer, rows[i]["messages"], spec.max_length + 1, spec.train_on)]

    def batches(step: int) -> tuple[list[list[MicroBatch]], dict[str, float]]:
        drawn = [taught[i] for i in batch_indices(step, len(taught), spec.batch_size, spec.seed, spec.shuffle)]
        whole = [sequence for unit in encode_rows(world, drawn, encode) for sequence in unit or []]
        kept = [[sequence] for one in whole if (sequence := one.cut(spec.max_length)).targets]
        row_tokens = min(spec.max_length, spec.micro_batch_tokens) if packing else None
        made = micro_batches(own_share(world, kept), micro_batch_tokens=spec.micro_batch_tokens, row_tokens=row_tokens)
        cut = sum(len(sequence.ids) > spec.max_length for sequence in whole)
        return [made], {"cut": float(cut), "leftOut": float(len(whole) - len(kept))}

    if not any(sequence.cut(spec.max_length).targets for i in taught for sequence in encode(i)):
        raise InvalidInput(f"{job.where}.maxLength: no chat has an answer within {spec.max_length} tokens; raise it")
    stopping = None
    if early is not None:
        exchanges = exchanges_of(rows, taught, spec.seed)
        stopping = prepare(engine, exchanges, probes, tokenizer, spec, job.where, job.store)
    train(engine, batches, sft, job.steps, job.store, spec.checkpoint, spec.seed, report, stopping)
