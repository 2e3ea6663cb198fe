"""`evaluate`: deploy the models as they would be served, ask them over HTTP, have replies scored or judged, compare and decide the gate."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import ray

from plumbline.api.base import BASE
from plumbline.api.stages.evaluate import JUDGED, EvaluateSpec, TaskSpec
from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.api.synthesis.teacher import JUDGE_KEY
from plumbline.artifacts import Artifact
from plumbline.data.row import Chat
from plumbline.data.synthesis.budget import Budget
from plumbline.data.synthesis.calls import Calls
from plumbline.data.synthesis.endpoint import Endpoint, key_of
from plumbline.data.synthesis.program import Request
from plumbline.data.synthesis.program import Sampling as JudgeSampling
from plumbline.errors import InvalidInput
from plumbline.evaluation import judging, report
from plumbline.evaluation.benchmarks import BENCHMARKS, QUESTIONS, humaneval
from plumbline.evaluation.benchmarks.benchmark import Item
from plumbline.evaluation.benchmarks.open_questions import stored_answers
from plumbline.evaluation.client import Question, ask
from plumbline.evaluation.contamination import Exposure, exposures
from plumbline.evaluation.conversations import Asked, converse
from plumbline.evaluation.gate import check_groups
from plumbline.evaluation.journal import Journal, Reply
from plumbline.evaluation.judge_report import JudgeReport
from plumbline.evaluation.judges.biases import Origin, related
from plumbline.evaluation.judges.calls import Call
from plumbline.evaluation.judges.qualification import Labelled, read_labelled
from plumbline.evaluation.judges.self_tests import distrust
from plumbline.evaluation.judges.styles import STYLES
from plumbline.evaluation.judging import Judge, Judged, Trust
from plumbline.evaluation.lineage import Ancestor, ancestors, family
from plumbline.evaluation.metrics.likeness import likeness
from plumbline.evaluation.model_card import card
from plumbline.evaluation.results import Results, Sample, conclude
from plumbline.models.load import base_folder
from plumbline.models.reference import ModelReference
from plumbline.ray_environment import connect
from plumbline.rollout.actors import RewardActor
from plumbline.serving.chat import ServedModel
from plumbline.serving.local import deployment
from plumbline.stage import StageContext

OPPONENT = "opponent"
"""Name of whoever gave the answers of `opponents`."""
WARMER = 0.7  # temperature of a further try of a verdict: at 0 the same would come again
CARD, DATA_CARD = "MODEL_CARD.md", "card.json"
TURNS = "\n\n--- next turn ---\n\n"  # between the replies of a conversation, where people read them
REWARD_BATCH = 256  # chats that are sent to a reward model together


@dataclass(frozen=True)
class Evaluated:
    """A model under evaluation; the bare base has the name `base`."""

    name: str
    fingerprint: str
    reference: ModelReference
    artifact: Artifact | None


def run(context: StageContext, spec: EvaluateSpec) -> None:
    """Write the Report artifact. A verdict other than pass is a result too: the drivers read it from the manifest.

    Raises:
        InvalidInput: a benchmark file is not what it should be, a judge's key is missing, or this host cannot isolate the programs of a model.
        PlumblineError: the models cannot be deployed or stop answering.
    """
    models = evaluated(context)
    if any(task.benchmark == "humaneval" for task in spec.tasks):
        humaneval.require_isolation()
    questions = {
        task.name: Questions.of(task, list(models), f"{context.where}.tasks[{i}]") for i, task in enumerate(spec.tasks)
    }
    check_groups(spec.gates, {name: found.items for name, found in questions.items()})
    labelled = _labelled(spec)
    with Models(context, spec, models) as asked:
        replies = answers(spec, questions, models, asked.ask)
        judged, trust = _judge(context, spec, questions, replies, next(iter(models)), labelled, asked)
    candidate, *baselines = models
    context.report.say("comparing")
    samples = [
        _sample(task, item, replies[task.name], judged.get(task.name))
        for task in spec.tasks
        for item in questions[task.name].items
    ]
    for task in spec.tasks:
        if task.metrics:
            context.report.say(f"comparing the replies of {task.name} with their references")
            samples = _with_likeness(task, samples)
    figures = {
        task.name: found for task in spec.tasks if (found := getattr(BENCHMARKS.get(task.benchmark), "figures", None))
    }
    results = conclude(
        samples,
        candidate=candidate,
        baselines=baselines,
        gates=spec.gates,
        confidence=spec.confidence,
        exposures=_exposures(context, spec),
        trust=trust.reasons,
        figures=figures,
        remarks=[*(words for found in questions.values() for words in found.remarks), *_kinship(context, spec, models)],
    )
    setting = report.Setting(
        context.plan.name,
        context.node.name,
        {model.name: model.fingerprint for model in models.values()},
        spec.tasks,
        spec.temperature,
        asked.cost,
        JudgeReport(asked.judge_name, spec.judge.style, spec.judge.samples, list(judged.values()), trust)
        if spec.judge
        else None,
    )
    values = report.write(context.output.folder, setting, results, samples, _lineage(context))
    (context.output.folder / CARD).write_text(
        _card(context, next(iter(models.values())), values), encoding="utf-8", errors="replace"
    )
    _publish(context, spec, results)


@dataclass(frozen=True)
class Questions:
    """A task's items and whom they are asked.

    Attributes:
        items: of a pairwise task with stored answers only those that have one.
        models: names of those who are asked.
        opponent: of a pairwise task, whom the candidate is compared with.
        stored: the opponent's answers, where they are not asked for.
        remarks: what a reader of the figures must know.
    """

    items: list[Item]
    models: list[str]
    opponent: str | None = None
    stored: Mapping[str, tuple[str, ...]] | None = None
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: TaskSpec, models: Sequence[str], where: str) -> Questions:
        """The items of a task's files.

        Args:
            task: what is asked.
            models: names, the candidate first.
            where: field path of the task.

        Raises:
            InvalidInput: a file is not what it should be, or there is nobody to compare with.
        """
        items = QUESTIONS[task.benchmark].load(task)
        candidate, *baselines = models
        if not task.pairwise:
            return cls(items, list(models))
        if task.opponents is None:
            against = task.against or next(iter(baselines), None)
            if against is None or against not in baselines:
                problem = f"'{against}' is no baseline" if against else "there is nobody to compare with"
                raise InvalidInput(
                    f"{where}.against: {problem}; baselines: {', '.join(baselines) or 'none but the candidate itself'}; "
                    "name another in inputs.baselines, or give stored answers as opponents"
                )
            return cls(items, [candidate, against], against)
        stored = stored_answers(task.opponents, items, f"{where}.opponents")
        known = [item for item in items if item.id in stored]
        for item in known:
            if len(stored[item.id]) != 1 + len(item.turns):
                raise InvalidInput(
                    f"{where}.opponents: the answer to question {item.id} has {len(stored[item.id])} turns, the question {1 + len(item.turns)}"
                )
        missing = len(items) - len(known)
        remark = (
            (f"{task.name}: {missing} of {len(items)} questions have no stored answer to compare with and are left out",)
            if missing
            else ()
        )
        return cls(known, [candidate], OPPONENT, stored, remark)


Replies = dict[str, dict[str, tuple[Reply, ...]]]
"""Model → item id → its replies, one a turn."""


class Models:
    """The models of a stage and its judge, put up at the first question that has to be sent. A context manager."""

    def __init__(self, context: StageContext, spec: EvaluateSpec, models: dict[str, Evaluated]) -> None:
        self._context, self._spec = context, spec
        # Stages of equal fingerprint are one model: it is deployed and asked once, under the first of its names.
        self._served = {model.fingerprint: model for model in reversed(models.values())}
        self._judge = _own_judge(context)
        if self._judge is not None:
            self._served.setdefault(self._judge.fingerprint, self._judge)
        self._stack = ExitStack()
        self._url: str | None = None
        self._rewards: Any = None
        self._judged = 0, 0
        self._cost: dict[str, Counter[str]] = {}

    @property
    def judge_name(self) -> str:
        """The judge, for people."""
        if self._judge is not None:
            return self._judge.name
        graded = self._context.node.inputs.get("rewardModel", ("",))[0]
        return (self._spec.judge.model if self._spec.judge else None) or graded

    def __enter__(self) -> Models:
        judge = self._spec.judge
        identity = (
            f"{judge.endpoint} {judge.model}"
            if judge and self._judge is None
            else self._judge.fingerprint
            if self._judge
            else ""
        )
        self._journal = self._stack.enter_context(Journal(f"{self._context.checkpoints}/replies"))
        self._calls = self._stack.enter_context(
            Calls(
                lambda _: self._judge_endpoint(),
                (identity, identity),
                self._journal,
                Budget(None),
                self._spec.concurrency,
                self._on_verdict,
            )
        )
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Replies of the models under evaluation."""
        renamed = [replace(question, model=self._served[question.fingerprint].name) for question in questions]
        known = self._journal.replies
        url = "" if all(question.key in known for question in renamed) else self._address()  # killed after the last reply
        if url:
            self._context.report.say(f"asking {', '.join(dict.fromkeys(question.model for question in renamed))}")
        found = ask(
            url, renamed, concurrency=self._spec.concurrency, journal=self._journal, on_reply=self._context.report.step
        )
        distinct = {question.key: (question.model, reply) for question, reply in zip(renamed, found, strict=True)}
        for model, reply in distinct.values():
            self._cost.setdefault(model, Counter()).update(
                {"calls": 1, "prompt tokens": reply.prompt_tokens, "answer tokens": reply.completion_tokens}
            )
        return found

    def ask_judge(self, calls: Sequence[Call], attempt: int) -> dict[str, Reply]:
        """Replies of the judge, by key of the call.

        Raises:
            InvalidInput: every call would fail: wrong key, unknown model.
            PlumblineError: it fails again and again; every reply so far is kept.
        """
        judge = self._spec.judge
        assert judge is not None
        temperature = max(judge.temperature, WARMER) if attempt else judge.temperature
        requests = [
            Request(list(call.messages), JudgeSampling(temperature, judge.max_tokens, call.seed), judge=True)
            for call in calls
        ]
        self._context.report.say("judging" if not attempt else f"judging {len(calls)} again whose verdict cannot be read")
        self._judged = 0, len(calls)
        replies = self._calls.ask(requests)
        return {call.key: reply for call, reply in zip(calls, replies, strict=True)}

    def rewards(self, chats: Sequence[Chat]) -> list[float | None]:
        """Scores of the reward model."""
        if self._rewards is None:
            connect()
            graded = self._context.input("rewardModel")
            gpu = int(ray.available_resources().get("GPU", 0) >= 1)
            self._rewards = RewardActor.options(num_gpus=gpu).remote(ModelReference.of(self._context.plan, graded))
            self._stack.callback(ray.kill, self._rewards)
        found: list[float | None] = []
        for at in range(0, len(chats), REWARD_BATCH):
            found += ray.get(self._rewards.score.remote(list(chats[at : at + REWARD_BATCH])))
            self._context.report.step(len(found), len(chats))
        return found

    def _on_verdict(self) -> None:
        done, total = self._judged
        self._judged = done + 1, total
        self._context.report.step(done + 1, total)

    @property
    def cost(self) -> dict[str, Counter[str]]:
        """Who was asked → calls, prompt tokens and answer tokens; equal questions are one call."""
        counts = self._calls.counts
        judge = Counter({what: counts[f"judge {what}"] for what in ("calls", "prompt tokens", "answer tokens")})
        return self._cost | ({f"judge {self.judge_name}": judge} if judge["calls"] else {})

    def _judge_endpoint(self) -> Endpoint:
        judge = self._spec.judge
        assert judge is not None
        where = f"{self._context.where}.judge"
        if judge.endpoint is not None and judge.model is not None:
            return Endpoint(judge.endpoint, judge.model, where=where, key=key_of(judge.key_secret, JUDGE_KEY, where))
        assert self._judge is not None
        return Endpoint(self._address(), self._served[self._judge.fingerprint].name, where=where, remote=False)

    def _address(self) -> str:
        if self._url is None:
            context, spec = self._context, self._spec
            connect()
            context.report.say(f"deploying {', '.join(model.name for model in self._served.values())}")
            longest = max([*(task.max_tokens for task in spec.tasks), spec.judge.max_tokens if spec.judge else 0])
            self._url = self._stack.enter_context(
                deployment(
                    [ServedModel(model.name, model.reference, longest) for model in self._served.values()],
                    application=f"evaluate-{context.plan.name}-{context.node.name}",
                    port=None,
                    replicas=1,
                    max_ongoing_requests=spec.concurrency,
                )
            )
        return self._url


def evaluated(context: StageContext) -> dict[str, Evaluated]:
    """The candidate and its baselines by name, each once, the candidate first."""
    found: dict[str, Evaluated] = {}
    for role in ("model", "baselines"):
        artifacts = iter(context.inputs.get(role, []))
        for name in context.node.inputs.get(role, ()):
            found.setdefault(name, _evaluated(context, name, None if name == BASE else next(artifacts)))
    return found


def _evaluated(context: StageContext, name: str, artifact: Artifact | None) -> Evaluated:
    base = context.plan.identities[context.plan.run.spec.model.base]
    reference = ModelReference.of(context.plan, artifact)
    return Evaluated(name, artifact.fingerprint if artifact else base, reference, artifact)


def _own_judge(context: StageContext) -> Evaluated | None:
    """The judge that the stage serves itself."""
    names = context.node.inputs.get("judge", ())
    return _evaluated(context, names[0], context.input("judge")) if names else None


def answers(
    spec: EvaluateSpec,
    questions: Mapping[str, Questions],
    models: Mapping[str, Evaluated],
    ask: Callable[[Sequence[Question]], list[Reply]],
) -> dict[str, Replies]:
    """Task → what everybody answered."""
    asked = [
        Asked(task, item, model, models[model].fingerprint)
        for task in spec.tasks
        for item in questions[task.name].items
        for model in questions[task.name].models
    ]
    found: dict[str, Replies] = {task.name: {name: {} for name in questions[task.name].models} for task in spec.tasks}
    for one, replies in zip(asked, converse(asked, spec.temperature, ask), strict=True):
        found[one.task.name][one.model][one.item.id] = replies
    for name, task in questions.items():
        if task.opponent is not None and task.stored is not None:
            found[name][task.opponent] = {
                item.id: tuple(Reply(text, "stop") for text in task.stored[item.id]) for item in task.items
            }
    return found


def _sample(task: TaskSpec, item: Item, replies: Replies, judged: Judged | None) -> Sample:
    own = {model: of[item.id] for model, of in replies.items()}
    if judged is None:
        scores = {model: BENCHMARKS[task.benchmark].score(turns[-1].text, item) for model, turns in own.items()}
    else:
        scores = dict(judged.scores[item.id])
    turns = {model: tuple(turn.text for turn in of) for model, of in own.items()} if item.turns else {}
    return Sample(task.name, item, {model: _whole(of) for model, of in own.items()}, scores, turns)


def _with_likeness(task: TaskSpec, samples: Sequence[Sample]) -> list[Sample]:
    """The samples, those of the task with its text metrics as variants of their scores."""
    own = [(i, model) for i, sample in enumerate(samples) if sample.task == task.name for model in sample.scores]
    encoder = None
    if task.encoder is not None:
        from plumbline.evaluation.metrics.bertscore import Encoder

        encoder = Encoder(str(base_folder(task.encoder)))
    values = likeness(
        task.metrics,
        [samples[i].replies[model].text for i, model in own],
        [samples[i].item.references or (samples[i].item.reference,) for i, _ in own],
        encoder,
    )
    found = list(samples)
    for (i, model), more in zip(own, values, strict=True):
        score = found[i].scores[model]
        told = replace(score, variants={**score.variants, **more})
        found[i] = replace(found[i], scores={**found[i].scores, model: told})
    return found


def _whole(turns: Sequence[Reply]) -> Reply:
    """The replies of all turns as one, for people; it ended as the last one did."""
    return turns[0] if len(turns) == 1 else replace(turns[-1], text=TURNS.join(turn.text for turn in turns))


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
    asked: Models,
) -> tuple[dict[str, Judged], Trust]:
    """What the judge makes of the open tasks, and whether it may be believed."""
    if spec.judge is None:
        return {}, Trust(None, {}, {})
    judge = Judge(STYLES.get(spec.judge.style), spec.judge.samples, asked.ask_judge, asked.rewards)
    qualification = None
    if labelled is not None and spec.judge.qualification is not None:
        context.report.say("qualifying the judge")
        qualification = judging.qualified(labelled, spec.judge.qualification.min_accuracy, judge)
    judged: dict[str, Judged] = {}
    tests, reasons = {}, {}
    for task in spec.tasks:
        if task.benchmark not in JUDGED:
            continue
        found, texts = questions[task.name], _texts(replies[task.name])
        if found.opponent is not None:
            judged[task.name] = judging.compare(task, found.items, texts, candidate, found.opponent, judge, spec.confidence)
        else:
            judged[task.name] = judging.grade(task, found.items, texts, judge)
        gated = any(gate.task == task.name for gate in spec.gates)
        problems = [qualification.reason] if qualification is not None and not qualification.qualified else []
        if gated and spec.judge.self_tests:
            tests[task.name] = judging.tests_of(task, found.items, texts, judged[task.name], judge)
            problems += filter(None, [distrust(tests[task.name]), judging.tripped(found.items, texts[candidate])])
        if problems:
            reasons[task.name] = "; ".join(problems)
    return judged, Trust(qualification, tests, reasons)


def _texts(replies: Replies) -> dict[str, dict[str, tuple[str, ...]]]:
    return {
        model: {known: tuple(turn.text for turn in turns) for known, turns in of.items()} for model, of in replies.items()
    }


def _kinship(context: StageContext, spec: EvaluateSpec, models: Mapping[str, Evaluated]) -> list[str]:
    """Whether the judge may favour the candidate as its own."""
    if spec.judge is None or spec.judge.style == "rewardModel":
        return []
    own = _own_judge(context)
    judge = Origin(spec.judge.model or "") if own is None else _origin(context, own)
    candidate = next(iter(models.values()))
    made_of = {ancestor.fingerprint for ancestor in _lineage(context)}
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
    made_of = ancestors(model.artifact, context.plan.workspace) if model.artifact else []
    return Origin(model.name, {one.fingerprint for one in made_of if one.type == "Model"}, {model.reference.base})


def _lineage(context: StageContext) -> list[Ancestor]:
    candidate = context.input("model")
    return ancestors(candidate, context.plan.workspace) if candidate else []


def _exposures(context: StageContext, spec: EvaluateSpec) -> dict[str, Exposure]:
    models = [artifact for role in ("model", "baselines") for artifact in context.inputs.get(role, [])]
    return exposures(spec.tasks, context.plan.identities, models, context.plan.workspace)


def _card(context: StageContext, candidate: Evaluated, values: Mapping[str, Any]) -> str:
    """The model's card, from the report and what its family left behind."""
    known = (
        [member.artifact for member in family([candidate.artifact], context.plan.workspace)] if candidate.artifact else []
    )
    artifacts = [artifact for artifact in known if artifact is not None]
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
