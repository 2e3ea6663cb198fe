"""`evaluate`: deploy the models as they would be served, ask them over HTTP, compare them and decide the gate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from plumbline.api.base import BASE
from plumbline.api.stages.evaluate import EvaluateSpec, TaskSpec
from plumbline.evaluation import report
from plumbline.evaluation.benchmarks import BENCHMARKS, humaneval
from plumbline.evaluation.benchmarks.benchmark import Item
from plumbline.evaluation.client import Question, Sampling, ask
from plumbline.evaluation.contamination import Exposure, exposures
from plumbline.evaluation.journal import Journal, Reply
from plumbline.evaluation.lineage import Ancestor, ancestors
from plumbline.evaluation.results import Results, Sample, conclude
from plumbline.models.reference import ModelReference
from plumbline.ray_environment import connect
from plumbline.serving.application import ServedModel
from plumbline.serving.local import deployment
from plumbline.stage import StageContext

Asked = tuple[TaskSpec, Item, str]  # task, item, model name


@dataclass(frozen=True)
class Evaluated:
    """A model under evaluation; the bare base has the name `base`."""

    name: str
    fingerprint: str
    reference: ModelReference


def run(context: StageContext, spec: EvaluateSpec) -> None:
    """Write the Report artifact. A verdict other than pass is a result too: the drivers read it from the manifest.

    Raises:
        InvalidInput: a benchmark file is not what it should be, or this host cannot isolate the programs of a model.
        PlumblineError: the models cannot be deployed or stop answering.
    """
    models = evaluated(context)
    if any(task.benchmark == "humaneval" for task in spec.tasks):
        humaneval.require_isolation()
    items = {task.name: BENCHMARKS[task.benchmark].load(task) for task in spec.tasks}
    asked = [(task, item, model) for task in spec.tasks for item in items[task.name] for model in models]
    replies = _ask(context, spec, models, asked)
    samples = scored(asked, replies)
    candidate, *baselines = models
    context.report.say("comparing")
    results = conclude(
        samples,
        candidate=candidate,
        baselines=baselines,
        gates=spec.gates,
        confidence=spec.confidence,
        exposures=_exposures(context, spec),
    )
    setting = report.Setting(
        context.plan.name,
        context.node.name,
        {model.name: model.fingerprint for model in models.values()},
        spec.tasks,
        spec.temperature,
    )
    report.write(context.output.folder, setting, results, samples, _lineage(context))
    _publish(context, spec, results)


def evaluated(context: StageContext) -> dict[str, Evaluated]:
    """The candidate and its baselines by name, each once, the candidate first."""
    found: dict[str, Evaluated] = {}
    for role in ("model", "baselines"):
        artifacts = iter(context.inputs.get(role, []))
        for name in context.node.inputs.get(role, ()):
            artifact = None if name == BASE else next(artifacts)
            base = context.plan.identities[context.plan.run.spec.model.base]
            reference = ModelReference.of(context.plan, artifact)
            found.setdefault(name, Evaluated(name, artifact.fingerprint if artifact else base, reference))
    return found


def scored(asked: Sequence[Asked], replies: Sequence[Reply]) -> list[Sample]:
    """Group replies by item, and score them."""
    grouped: dict[tuple[str, str], Sample] = {}
    for (task, item, model), reply in zip(asked, replies, strict=True):
        sample = grouped.setdefault((task.name, item.id), Sample(task.name, item, {}, {}))
        score = BENCHMARKS[task.benchmark].score(reply.text, item)
        grouped[task.name, item.id] = Sample(
            task.name, item, {**sample.replies, model: reply}, {**sample.scores, model: score}
        )
    return list(grouped.values())


def item_seed(task: TaskSpec, item: Item) -> int:
    """The sampling seed of an item: its own, so that items are independent, and the same for every model."""
    digest = hashlib.sha256(f"{task.seed}:{task.name}:{item.id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _ask(context: StageContext, spec: EvaluateSpec, models: dict[str, Evaluated], asked: Sequence[Asked]) -> list[Reply]:
    # Stages of equal fingerprint are one model: it is deployed and asked once, under the first of its names.
    served = {model.fingerprint: model for model in reversed(models.values())}
    questions = [
        Question(
            served[models[model].fingerprint].name,
            models[model].fingerprint,
            item.prompt,
            Sampling(spec.temperature, task.max_tokens, item_seed(task, item)),
        )
        for task, item, model in asked
    ]
    longest = max(task.max_tokens for task in spec.tasks)
    with Journal(f"{context.checkpoints}/replies") as journal:
        if all(question.key in journal.replies for question in questions):  # killed after the last reply
            return [journal.replies[question.key] for question in questions]
        connect()
        names = [model.name for model in served.values()]
        context.report.say(f"deploying {', '.join(names)}")
        with deployment(
            [ServedModel(model.name, model.reference, longest) for model in served.values()],
            application=f"evaluate-{context.plan.name}-{context.node.name}",
            port=None,
            replicas=1,
            max_ongoing_requests=spec.concurrency,
        ) as base_url:
            context.report.say(f"asking {', '.join(names)}")
            return ask(base_url, questions, concurrency=spec.concurrency, journal=journal, on_reply=context.report.step)


def _lineage(context: StageContext) -> list[Ancestor]:
    candidate = context.input("model")
    return ancestors(candidate, context.plan.workspace) if candidate else []


def _exposures(context: StageContext, spec: EvaluateSpec) -> dict[str, Exposure]:
    models = [artifact for artifacts in context.inputs.values() for artifact in artifacts]
    return exposures(spec.tasks, context.plan.identities, models, context.plan.workspace)


def _publish(context: StageContext, spec: EvaluateSpec, results: Results) -> None:
    output, values = context.output, results.to_json()
    identities = context.plan.identities
    output.sources += [
        {"field": field, "uri": uri, "identity": identities[uri]} for field, uri in spec.external_uris().items()
    ]
    output.metrics["verdict"] = values["verdict"] or "none"
    output.metrics |= {f"{score['task']}/{score['model']}": score["score"] for score in values["scores"]}
    output.details["verdict"] = values["verdict"]
    output.details["verdictReason"] = values["verdictReason"]
    output.details["candidate"] = results.candidate
    output.details["scores"] = {
        task.name: {
            score["model"]: {name: score[name] for name in ("score", "low", "high", "n", "unparseable")}
            for score in values["scores"]
            if score["task"] == task.name
        }
        for task in spec.tasks
    }
