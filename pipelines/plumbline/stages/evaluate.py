"""`evaluate`: deploy the models as they would be served, ask them over HTTP, have replies scored or judged, compare and decide the gate."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import fsspec

from plumbline.api.base import ArtifactType
from plumbline.api.stages.evaluate import HARNESS, JUDGED, EvaluateSpec, TaskSpec
from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.artifacts import Artifact
from plumbline.evaluation import harness, judging, report
from plumbline.evaluation.benchmarks import BENCHMARKS, humaneval
from plumbline.evaluation.benchmarks.benchmark import Item
from plumbline.evaluation.client import CONTEXT_CUT, Question
from plumbline.evaluation.contamination import Exposure, exposures
from plumbline.evaluation.conversations import Asked, converse
from plumbline.evaluation.gate import check_groups
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.judge_report import JudgeReport
from plumbline.evaluation.judges.biases import Origin, related
from plumbline.evaluation.judges.qualification import Labelled, read_labelled
from plumbline.evaluation.judges.self_tests import distrust
from plumbline.evaluation.judges.styles import STYLES
from plumbline.evaluation.judging import Judge, Judged, Trust
from plumbline.evaluation.lineage import Ancestor, Member, ancestors, family
from plumbline.evaluation.metrics.likeness import with_likeness
from plumbline.evaluation.model_card import card
from plumbline.evaluation.questions import Questions
from plumbline.evaluation.results import Results, Sample, conclude
from plumbline.external import pinned
from plumbline.models.load import base_folder
from plumbline.serving.evaluation import Evaluated, EvaluatedModels, evaluated, own_judge
from plumbline.stage import StageContext

if TYPE_CHECKING:
    from plumbline.evaluation.metrics.bertscore import Encoder

CARD, DATA_CARD = "MODEL_CARD.md", "card.json"
TURNS = "\n\n--- next turn ---\n\n"  # between the replies of a conversation, where people read them
SAMPLES = "\n\n--- next sample ---\n\n"


def run(context: StageContext, spec: EvaluateSpec) -> None:
    """Write the Report artifact. A verdict other than pass is a result too: the drivers read it from the manifest.

    Raises:
        InvalidInput: a benchmark file is not what it should be, a judge's key is missing, or this host cannot isolate the programs of a model.
        PlumblineError: the models cannot be deployed or stop answering.
    """
    planned, spec = spec, pinned(spec, context.plan.identities)
    models = evaluated(context)
    encoders = {task.name: _encoder(task.encoder) for task in spec.tasks}
    if any(task.benchmark == "humaneval" for task in spec.tasks):
        humaneval.require_isolation()
    places = {task.name: f"{context.where}.tasks[{i}]" for i, task in enumerate(spec.tasks)}
    harnessed = {task.name: harness.load(task, places[task.name]) for task in spec.tasks if task.benchmark == HARNESS}
    own = [task for task in spec.tasks if task.name not in harnessed]
    questions = {task.name: Questions.of(task, list(models), places[task.name]) for task in own}
    check_groups(spec.gates, {name: found.items for name, found in (questions | harnessed).items()})
    labelled = _labelled(spec)
    with EvaluatedModels(context, spec, models) as asked:
        replies = answers(own, spec.temperature, questions, models, asked.ask)
        prints = {name: model.fingerprint for name, model in models.items()}
        told = {name: found.samples(prints, spec.temperature, asked.ask) for name, found in harnessed.items()}
        judged, trust = _judge(context, spec, questions, replies, next(iter(models)), labelled, asked)
    candidate, *baselines = models
    context.report.say("comparing")
    samples = [
        sample
        for task in spec.tasks
        for sample in (
            told[task.name][0]
            if task.name in told
            else [_sample(task, item, replies[task.name], judged.get(task.name)) for item in questions[task.name].items]
        )
    ]
    for task in spec.tasks:
        if task.metrics:
            context.report.say(f"comparing the replies of {task.name} with their references")
            samples = with_likeness(task, samples, encoders[task.name])
    figures = {
        task.name: found for task in spec.tasks if (found := getattr(BENCHMARKS.get(task.benchmark), "figures", None))
    } | {name: one.controlled for name, one in judged.items() if one.controlled is not None}
    results = conclude(
        samples,
        candidate=candidate,
        baselines=baselines,
        gates=spec.gates,
        confidence=spec.confidence,
        exposures=_exposures(context, spec),
        trust=trust.reasons,
        figures=figures,
        remarks=[
            *(words for found in questions.values() for words in found.remarks),
            *(words for _, remarks in told.values() for words in remarks),
            *_cut(samples),
            *_kinship(context, spec, next(iter(models.values()))),
        ],
    )
    setting = report.Setting(
        context.plan.name,
        context.node.name,
        {model.name: model.fingerprint for model in models.values()},
        spec.tasks,
        spec.temperature,
        asked.cost,
        JudgeReport(
            asked.judge_name,
            spec.judge.style,
            spec.judge.samples,
            asked.judge_identity,
            spec.judge.temperature,
            spec.judge.max_tokens,
            list(judged.values()),
            trust,
        )
        if spec.judge
        else None,
    )
    values = report.write(context.output.folder, setting, results, samples, _lineage(context))
    (context.output.folder / CARD).write_text(
        _card(context, next(iter(models.values())), values), encoding="utf-8", errors="replace"
    )
    _publish(context, planned, results)


Replies = dict[str, dict[str, tuple[Reply, ...]]]
"""Model → item id → its replies, one a turn, or where a task asks for several samples one a sample."""


def answers(
    tasks: Sequence[TaskSpec],
    temperature: float,
    questions: Mapping[str, Questions],
    models: Mapping[str, Evaluated],
    ask: Callable[[Sequence[Question]], list[Reply]],
) -> dict[str, Replies]:
    """Task → what everybody answered."""
    asked = [
        Asked(task, item, model, models[model].fingerprint, sample)
        for task in tasks
        for item in questions[task.name].items
        for model in questions[task.name].models
        for sample in range(task.samples)
    ]
    found: dict[str, Replies] = {task.name: {name: {} for name in questions[task.name].models} for task in tasks}
    for one, replies in zip(asked, converse(asked, temperature, ask), strict=True):
        of = found[one.task.name][one.model]
        of[one.item.id] = of.get(one.item.id, ()) + replies
    for name, task in questions.items():
        if task.opponent is not None and task.stored is not None:
            found[name][task.opponent] = {
                item.id: tuple(Reply(text, "stop") for text in task.stored[item.id]) for item in task.items
            }
    return found


def _sample(task: TaskSpec, item: Item, replies: Replies, judged: Judged | None) -> Sample:
    own = {model: of[item.id] for model, of in replies.items()}
    if task.benchmark == "humaneval":
        scores = {model: humaneval.score_samples([one.text for one in of], item, task.k) for model, of in own.items()}
    elif judged is None:
        scores = {model: BENCHMARKS[task.benchmark].score(turns[-1].text, item) for model, turns in own.items()}
    else:
        scores = dict(judged.scores[item.id])
    turns = {model: tuple(turn.text for turn in of) for model, of in own.items()} if item.turns else {}
    between = SAMPLES if task.samples > 1 else TURNS
    return Sample(task.name, item, {model: _whole(of, between) for model, of in own.items()}, scores, turns)


@cache
def _encoder(model: str | None) -> Encoder | None:
    if model is None:
        return None
    from plumbline.evaluation.metrics.bertscore import Encoder

    return Encoder(str(base_folder(model)))


def _whole(replies: Sequence[Reply], between: str) -> Reply:
    """The replies of all turns, or all samples, as one, for people; it ended as the last one did."""
    return replies[0] if len(replies) == 1 else replace(replies[-1], text=between.join(one.text for one in replies))


def _labelled(spec: EvaluateSpec) -> Labelled | None:
    asked = spec.judge.qualification if spec.judge else None
    return read_labelled(asked.format, asked.uri, asked.limit) if asked else None


def _judge(
    context: StageContext,
    spec: EvaluateSpec,
    questions: Mapping[str, Questions],
    replies: Mapping[str, Replies],
    candidate: str,
    labelled: Labelled | None,
    asked: EvaluatedModels,
) -> tuple[dict[str, Judged], Trust]:
    """What the judge makes of the open tasks, and whether it may be believed."""
    if spec.judge is None:
        return {}, Trust(None, {}, {})
    judge = Judge(STYLES.get(spec.judge.style), spec.judge.samples, asked.ask_judge, asked.rewards)
    qualification = None
    if labelled is not None and spec.judge.qualification is not None:
        context.report.say("qualifying the judge")
        qualification = judging.qualified(labelled, spec.judge.qualification.min_accuracy, judge)
    unqualified = qualification.reason if qualification is not None and not qualification.qualified else None
    biased = _learned_from(context)
    judged: dict[str, Judged] = {}
    tests, reasons = {}, {}
    for task in spec.tasks:
        if task.benchmark not in JUDGED:
            continue
        found, texts = questions[task.name], _texts(replies[task.name])
        if found.opponent is not None:
            judged[task.name] = judging.compare(
                task, found.items, texts, candidate, found.opponent, judge, spec.confidence, found.difficulty
            )
        else:
            judged[task.name] = judging.grade(task, found.items, texts, judge)
        gated = any(gate.task == task.name for gate in spec.gates)
        moved = None
        if gated and spec.judge.self_tests:
            tests[task.name] = judging.tests_of(task, found.items, texts, judged[task.name], judge)
            moved = distrust(tests[task.name])
        problems = [why for why in (unqualified, moved, judging.tripped(found.items, texts[candidate]), biased) if why]
        if problems:
            reasons[task.name] = "; ".join(problems)
    return judged, Trust(qualification, tests, reasons)


def _texts(replies: Replies) -> dict[str, dict[str, tuple[str, ...]]]:
    return {
        model: {known: tuple(turn.text for turn in turns) for known, turns in of.items()} for model, of in replies.items()
    }


def _learned_from(context: StageContext) -> str | None:
    """Whether the candidate was tuned to please the reward model that judges it."""
    graded = context.input("rewardModel")
    if graded is None or graded.fingerprint not in {one.fingerprint for one in _family(context, context.input("model"))}:
        return None
    return f"the candidate learned from reward model '{graded.manifest['stage']}', which judges it; let another judge"


def _cut(samples: Sequence[Sample]) -> list[str]:
    """Tasks whose prompts lost their beginning."""
    counts = Counter(one.task for one in samples for reply in one.replies.values() if reply.finish_reason == CONTEXT_CUT)
    return [
        f"{task}: {count} prompts were longer than the model's context and lost their beginning; show fewer examples (shots)"
        for task, count in counts.items()
    ]


def _kinship(context: StageContext, spec: EvaluateSpec, candidate: Evaluated) -> list[str]:
    """Whether the judge may favour the candidate as its own."""
    if spec.judge is None or spec.judge.style == "rewardModel":
        return []
    own = own_judge(context)
    judge = Origin(spec.judge.model or "") if own is None else _origin(context, own)
    made_of = {one.fingerprint for one in _family(context, candidate.artifact)}
    teachers = [
        Origin(node.spec.teacher.model)
        for node in context.plan.graph.nodes
        if isinstance(node.spec, SynthesizeSpec)
        and node.spec.teacher.model
        and context.plan.fingerprints[node.name] in made_of
    ]
    found = related(judge, _origin(context, candidate), teachers)
    return [found] if found else []


def _origin(context: StageContext, model: Evaluated) -> Origin:
    made_of = {one.fingerprint for one in _family(context, model.artifact) if one.type == ArtifactType.MODEL}
    return Origin(model.name, made_of, {model.reference.base})


def _family(context: StageContext, model: Artifact | None) -> list[Member]:
    """A model and all it was made from; nothing for the bare base. Without curves, which `_lineage` reads."""
    return family([model], context.plan.workspace) if model else []


def _lineage(context: StageContext) -> list[Ancestor]:
    candidate = context.input("model")
    return ancestors(candidate, context.plan.workspace) if candidate else []


def _exposures(context: StageContext, spec: EvaluateSpec) -> dict[str, Exposure]:
    models = [artifact for role in ("model", "baselines") for artifact in context.inputs.get(role, [])]
    return exposures(spec.tasks, context.plan.identities, models, context.plan.workspace)


def _card(context: StageContext, candidate: Evaluated, values: Mapping[str, Any]) -> str:
    """The model's card, from the report and what its family left behind."""
    artifacts = [one.artifact for one in _family(context, candidate.artifact) if one.artifact is not None]
    cards = {}
    for artifact in artifacts:
        if DATA_CARD in artifact.manifest["files"]:
            with fsspec.open(f"{artifact.uri}/{DATA_CARD}", "rb") as stream:
                cards[artifact.fingerprint] = json.load(stream)
    reference = candidate.reference
    manifests = [artifact.manifest for artifact in artifacts]
    return card(values, base=reference.base, revision=reference.revision, manifests=manifests, cards=cards)


def _publish(context: StageContext, spec: EvaluateSpec, results: Results) -> None:
    output, values = context.output, results.to_json()
    identities = context.plan.identities
    output.sources += [
        {"field": field, "uri": uri, "identity": identities[uri]}
        for field, uri in (spec.external_uris() | spec.external_models()).items()
    ]
    output.metrics["verdict"] = values["verdict"] or "none"
    output.metrics |= {f"{score['task']}/{score['model']}": score["score"] for score in values["scores"] if score["n"]}
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
