"""The models under evaluation and their judge: deployed as they would be served, asked, every reply kept."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import ray

from plumbline.api.base import BASE
from plumbline.api.stages.evaluate import EvaluateSpec
from plumbline.api.synthesis.teacher import JUDGE_KEY
from plumbline.artifacts import Artifact
from plumbline.data.row import Chat
from plumbline.data.synthesis.budget import Budget
from plumbline.data.synthesis.calls import Calls
from plumbline.data.synthesis.endpoint import Endpoint, key_of
from plumbline.data.synthesis.program import Request
from plumbline.data.synthesis.program import Sampling as JudgeSampling
from plumbline.evaluation.client import Question, ask
from plumbline.evaluation.journal import REPLIES, Journal, Reply
from plumbline.evaluation.judges.calls import Call
from plumbline.models.reference import ModelReference
from plumbline.ray_environment import connect
from plumbline.rollout.actors import RewardActor
from plumbline.serving.chat import ServedModel
from plumbline.serving.local import deployment
from plumbline.stage import StageContext

WARMER = 0.7  # temperature of a further try of a verdict: at 0 the same would come again
REWARD_BATCH = 256  # chats that are sent to a reward model together


@dataclass(frozen=True)
class Evaluated:
    """A model under evaluation; the bare base has the name `base`."""

    name: str
    fingerprint: str
    reference: ModelReference
    artifact: Artifact | None


class EvaluatedModels:
    """The models of a stage and its judge, put up at the first question that has to be sent. A context manager."""

    def __init__(self, context: StageContext, spec: EvaluateSpec, models: dict[str, Evaluated]) -> None:
        self._context, self._spec = context, spec
        # Stages of equal fingerprint are one model: it is deployed and asked once, under the first of its names.
        self._served = {model.fingerprint: model for model in reversed(models.values())}
        self._models = [model.fingerprint for model in models.values()]
        self._judge = own_judge(context)
        if self._judge is not None:
            self._served.setdefault(self._judge.fingerprint, self._judge)
        self._stack = ExitStack()
        self._url: str | None = None
        self._rewards: Any = None
        self._key: str | None = None
        self._judged = 0, 0
        self._cost: dict[str, Counter[str]] = {}

    @property
    def judge_name(self) -> str:
        """The judge, for people."""
        if self._judge is not None:
            return self._judge.name
        graded = self._context.node.inputs.get("rewardModel", ("",))[0]
        return (self._spec.judge.model if self._spec.judge else None) or graded

    @property
    def judge_identity(self) -> str:
        """What tells the judge's content from another's."""
        graded = self._context.input("rewardModel")
        own = graded.fingerprint if graded else self._judge.fingerprint if self._judge else None
        judge = self._spec.judge
        return own or (f"{judge.endpoint} {judge.model}" if judge else "")

    def __enter__(self) -> EvaluatedModels:
        judge = self._spec.judge
        if judge is not None:  # before anything is asked: without its key there is no judge
            self._key = key_of(judge.key_secret, JUDGE_KEY, f"{self._context.where}.judge")
        # Beside checkpoints, by candidate: another rule or another task is no reason to ask and pay again.
        folder = hashlib.sha256(f"evaluate {self._models[0]}".encode()).hexdigest()[:20]
        self._journal = self._stack.enter_context(Journal(f"{self._context.plan.workspace.uri}/{REPLIES}/{folder}"))
        self._calls = self._stack.enter_context(
            Calls(
                lambda _: self._judge_endpoint(),
                (self.judge_identity, self.judge_identity),
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
            return Endpoint(judge.endpoint, judge.model, where=where, key=self._key)
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


def own_judge(context: StageContext) -> Evaluated | None:
    """The judge that the stage serves itself."""
    names = context.node.inputs.get("judge", ())
    return _evaluated(context, names[0], context.input("judge")) if names else None
