"""`rlhf`: reinforcement learning with rollout workers. Training reads rollouts as if they were data."""

from __future__ import annotations

import hashlib
import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from ray.actor import ActorHandle

from plumbline.api.stages.rlhf import RlhfSpec
from plumbline.artifacts import Artifact
from plumbline.data.dataset import load_rows, open_rows
from plumbline.data.row import Chat
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.models.load import adapter_type, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.ray_environment import connect
from plumbline.rollout.collector import Collector, Pool
from plumbline.rollout.engine import Completion, Request, Sampling
from plumbline.rollout.groups import Group, Sample, Task
from plumbline.rollout.pool import SHARED_GPU, RolloutPool, ask, rollout_pool
from plumbline.rollout.rewards.scorer import Answer, Scorer, total
from plumbline.stage import StageContext
from plumbline.training.batch import MicroBatch, Sequence, collate
from plumbline.training.checkpoint import Checkpoint, Piece
from plumbline.training.encode import encode_chat, encode_prompt
from plumbline.training.schedule import batch_indices
from plumbline.training.throughput import ACTORS_LOST, ROLLOUT_SECONDS, ROLLOUT_SHARE
from plumbline.training.tuning import TrainingJob, tune
from plumbline.training.world import World

if TYPE_CHECKING:
    from plumbline.training.engine import TrainEngine
    from plumbline.training.loop import ReportStep
    from plumbline.training.reinforcement import Learner

log = logging.getLogger(__name__)
CANARY_TOKENS = 16
SHOWN = 4  # answers that are kept for people whenever a checkpoint is due


@dataclass(frozen=True)
class RlhfJob(TrainingJob[RlhfSpec]):
    """A training job with what its driver keeps for it.

    Attributes:
        actors: rollout actors.
        judge: the reward model's actor.
        reward_model: what that one holds.
        demonstrations: dataset for `ptxWeight`.
    """

    actors: list[ActorHandle]
    judge: ActorHandle | None
    reward_model: ModelReference | None
    demonstrations: Artifact | None


def run(context: StageContext, spec: RlhfSpec) -> None:
    """Train the adapter on its own answers and hand it over as a Model."""
    connect()
    job = TrainingJob.of(context, spec, spec.steps)
    kind = adapter_type(job.reference)
    if kind not in (None, "LORA"):
        raise InvalidInput(
            f"{context.where}: the input model has an adapter of kind {kind}, and rollout workers are sent LoRA only; name a "
            "model without it in inputs.model"
        )
    graded = context.inputs.get("rewardModel")
    reward_model = ModelReference.of(context.plan, graded[0]) if graded else None
    known = reward_model.artifact() if reward_model is not None else None
    if known is not None and known.details["reward"]["maxLength"] < spec.max_length:
        raise InvalidInput(
            f"{context.where}.maxLength: answers may come to {spec.max_length} tokens with their prompts, and the reward model was trained "
            f"for {known.details['reward']['maxLength']}; lower it here or raise it there"
        )
    shown = context.inputs.get("demonstrations")
    with rollout_pool(
        job.reference,
        workers=spec.rollout.workers,
        trainers=spec.parallelism.most,
        answers=spec.prompts_per_step * spec.option("group_size") * max(1, spec.staleness),
        slots=spec.rollout.slots,
        max_length=spec.max_length,
        colocated=spec.rollout.placement == "colocated",
        engine=spec.rollout.engine,
        reward_model=reward_model if any(reward.type == "rewardModel" for reward in spec.rewards) else None,
    ) as (actors, judge):
        done = tune(
            context,
            RlhfJob(
                **vars(job),
                actors=actors,
                judge=judge,
                reward_model=reward_model,
                demonstrations=shown[0] if shown else None,
            ),
            work,
            gpu=1 - SHARED_GPU if spec.rollout.placement == "colocated" else 1.0,
        )
    context.output.details["samples"] = (done.extra or {}).get("samples", [])


def work(job: RlhfJob, world: World, report: ReportStep) -> None:
    """One training worker: take answers, see what they are worth, learn."""
    # Here, since the driver imports this file too and has no use for what it takes to run a model.
    from plumbline.training.critic import build_critic
    from plumbline.training.engine import TrainEngine
    from plumbline.training.loop import train
    from plumbline.training.model import build_trainable
    from plumbline.training.reinforcement import Learner, keeps_reference, objective_of, temperature_of

    spec = job.spec
    tokenizer = load_tokenizer(job.reference)
    prompts = Prompts.of(job, tokenizer)
    model = build_trainable(job.reference, spec, job.where)
    engine = TrainEngine(
        model, spec.optimizer, world, spec.parallelism, temperature_of(spec), keep_reference=keeps_reference(spec)
    )
    critic = None
    if spec.algorithm == "ppo":
        optimizer = spec.optimizer.model_copy(update={"learning_rate": spec.option("critic_learning_rate")})
        values = build_critic(job.reference, job.reward_model, spec, job.where)
        critic = TrainEngine(values, optimizer, world, spec.parallelism, name="critic/", rate_field="criticLearningRate")
    learner = Learner(spec, engine, prompts.tokens, critic, demonstrations(job, tokenizer))
    model_rewards = partial(ask, job.judge) if job.judge is not None else None
    scorer = Scorer(list(spec.rewards), spec.sampling.max_tokens, f"{job.where}.rewards", model_rewards)

    def pool() -> Pool:
        config = model.adapter_config()
        assert config is not None
        sampling = Sampling(temperature_of(spec), max_tokens=CANARY_TOKENS, seed=spec.seed)
        return RolloutPool(
            job.actors,
            config,
            canary=Request("canary", prompts.tokens[0], sampling),
            max_failures=spec.parallelism.max_failures,
            stall_seconds=spec.rollout.stall_seconds,
            say=log.warning,
        )

    rollouts = Rollouts(spec, job.where, engine, critic, learner, prompts, tokenizer, scorer, pool)
    try:
        train(
            engine, rollouts, objective_of(spec), job.steps, job.store, spec.checkpoint, spec.seed, report, companion=rollouts
        )  # fmt: skip
    finally:
        rollouts.close()


class Rollouts:
    """The source of training: at every step it takes groups of answers to the present policy's prompts, from rank 0, where they
    are collected, and turns them into updates."""

    def __init__(
        self,
        spec: RlhfSpec,
        where: str,
        engine: TrainEngine,
        critic: TrainEngine | None,
        learner: Learner,
        prompts: Prompts,
        tokenizer: Any,
        scorer: Scorer,
        pool: Callable[[], Pool],
    ) -> None:
        self._spec, self._where, self._engine, self._critic, self._learner = spec, where, engine, critic, learner
        self._prompts, self._tokenizer, self._scorer, self._pool = prompts, tokenizer, scorer, pool
        self._collector: Collector | None = None
        self._saved: dict[str, Any] = {}
        self._samples: list[dict[str, Any]] = []
        self._clock: dict[str, float] = {}
        self._lost = 0
        self._ended = time.monotonic()

    def __call__(self, step: int) -> tuple[list[list[MicroBatch]], dict[str, float]]:
        engine, world = self._engine, self._engine.world
        adapter = engine.adapter()
        taken: tuple[list[Group], list[Completion], dict[str, float]] = [], [], {}
        if self._spec.rollout.placement == "colocated" and world.device.type == "cuda":
            torch.cuda.empty_cache()  # it is the actors' turn
            world.maximum(0)  # everyone's
        if world.rank == 0:
            taken = self._opened().take(adapter, version=step)
        groups, canaries, facts = world.gather(taken)[0]
        waited = facts.pop("waitSeconds")
        gap = self._check(canaries if world.rank == 0 else [], step)
        updates, metrics = self._learner.learn(step, groups)
        metrics |= facts | {"canaryGap": gap}
        if step + 1 == self._spec.steps or (step + 1) % self._spec.checkpoint.every_steps == 0:
            self._samples += self._shown(step, groups)
        now = time.monotonic()
        lost = self._collector.lost if self._collector is not None else 0
        self._clock = {
            ROLLOUT_SECONDS: waited,
            ROLLOUT_SHARE: min(1.0, waited / max(1e-9, now - self._ended)),
            ACTORS_LOST: float(lost - self._lost),
        }
        self._ended, self._lost = now, lost
        return updates, metrics

    def pieces(self) -> dict[str, Piece]:
        """See `Companion`."""
        return self._critic.pieces() if self._critic is not None else {}

    def state(self) -> dict[str, Any]:
        """See `Companion`."""
        return {"learner": self._learner.state(), "prompts": self._opened().state(), "samples": list(self._samples)}

    def restore(self, checkpoint: Checkpoint) -> None:
        """See `Companion`."""
        self._saved = checkpoint.extra or {}
        if self._critic is not None:
            self._critic.restore(checkpoint)
        if self._saved:
            self._learner.restore(self._saved["learner"])
            self._samples = self._saved["samples"]

    def clock(self) -> dict[str, float]:
        """See `Companion`."""
        return self._clock

    def close(self) -> None:
        """End what runs beside training."""
        if self._collector is not None:
            self._collector.close()

    def _opened(self) -> Collector:
        if self._collector is None:
            self._collector = Collector(
                self._pool(),
                self._task,
                self._score,
                per_step=self._spec.prompts_per_step,
                staleness=self._spec.staleness,
                skip_equal=bool(self._spec.option("skip_equal_groups")),
                steps=self._spec.steps,
                turns=self._spec.rollout.placement == "colocated",
                state=self._saved.get("prompts"),
            ).start()
        return self._collector

    def _task(self, position: int) -> Task:
        """Seeds follow from the position, so that a repeated step samples the same answers."""
        spec = self._spec
        tokens = self._prompts.tokens[self._prompts.row(position, spec)]
        requests = []
        for k in range(spec.option("group_size")):
            name = f"{spec.seed}/{position}/{k}"
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])
            requests.append(Request(name, tokens, Sampling(spec.sampling.temperature, 1.0, spec.sampling.max_tokens, seed)))
        return Task(position, tuple(requests))

    def _score(self, position: int, completions: list[Completion]) -> Group:
        spec, row = self._spec, self._prompts.row(position, self._spec)
        answers = [Answer(self._text(c.tokens), len(c.tokens), c.finish_reason == "length") for c in completions]
        found = self._scorer.score(self._prompts.chats[row], answers, self._prompts.references[row])
        rewards = list(spec.rewards)
        return Group(
            position, row, [Sample.of(c, parts, total(rewards, parts)) for c, parts in zip(completions, found, strict=True)]
        )

    def _text(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _check(self, canaries: list[Completion], step: int) -> float:
        """Compare what engines and trainer say of the canary's tokens, on every rank at once.

        Returns:
            The largest mean difference of an engine, in nats.

        Raises:
            InvalidInput: they differ: an engine does not hold the trainer's weights.
        """
        wrong = [c for c in canaries if {c.first_version, c.adapter_version} != {step}]
        if wrong:
            raise PlumblineError(f"rollouts came from adapter version {wrong[0].adapter_version}, not {step}")
        prompt = self._prompts.tokens[0]
        batches = [
            collate([[Sequence([*prompt, *c.tokens], [False] * len(prompt) + [True] * len(c.tokens))]]) for c in canaries
        ]
        gaps = [0.0]
        for found, canary in zip(self._engine.log_probs(batches), canaries, strict=True):
            gaps.append(statistics.fmean(abs(a - b) for a, b in zip(found.tolist(), canary.logprobs, strict=True)))
        limit, gap = self._spec.rollout.sync_tolerance, next((g for g in gaps if math.isnan(g)), max(gaps))
        if not gap <= limit:
            raise InvalidInput(
                f"{self._where}.rollout.syncTolerance: a rollout engine and the trainer differ by {gap:.3g} in a token's mean "
                f"log-probability, more than {limit:g}: the engine does not hold the trainer's adapter"
            )
        return self._engine.world.gather(gap)[0]

    def _shown(self, step: int, groups: list[Group]) -> list[dict[str, Any]]:
        if self._engine.world.rank != 0:
            return []
        return [
            {
                "step": step + 1,
                "prompt": self._prompts.chats[group.prompt][-1]["content"],
                "answer": self._text(group.samples[0].tokens),
                "reward": group.samples[0].reward,
            }
            for group in groups[:SHOWN]
        ]


@dataclass(frozen=True)
class Prompts:
    """Prompts that leave room for an answer.

    Attributes:
        tokens, chats, references: of each: as the policy reads it, its turns, and the answer of the dataset.
    """

    tokens: list[tuple[int, ...]]
    chats: list[Chat]
    references: list[str]

    @classmethod
    def of(cls, job: RlhfJob, tokenizer: Any) -> Prompts:
        """Of a job's dataset.

        Raises:
            InvalidInput: none leaves room.
        """
        found = cls([], [], [])
        room = job.spec.max_length - job.spec.sampling.max_tokens
        rows = load_rows(job.dataset, "messages")["messages"].to_pylist()
        for messages in rows:
            tokens = tuple(encode_prompt(tokenizer, messages[:-1]))
            if len(tokens) <= room:
                found.tokens.append(tokens)
                found.chats.append(messages[:-1])
                found.references.append(messages[-1]["content"])
        if not found.tokens:
            raise InvalidInput(
                f"{job.where}.maxLength: no prompt fits into {job.spec.max_length} less sampling.maxTokens "
                f"{job.spec.sampling.max_tokens}; raise the one or lower the other"
            )
        if len(found.tokens) < len(rows):
            log.warning(
                "%d of %d prompts leave no room for an answer and are left out", len(rows) - len(found.tokens), len(rows)
            )
        return found

    def row(self, position: int, spec: RlhfSpec) -> int:
        """Which prompt has this position: every epoch has each once."""
        return batch_indices(position, len(self.tokens), 1, spec.seed, spec.shuffle)[0]


def demonstrations(job: RlhfJob, tokenizer: Any) -> Callable[[int], list[Sequence]] | None:
    """Step → as many demonstrations as a step has prompts; None where there are none to learn."""
    if job.demonstrations is None or job.spec.option("ptx_weight") is None:
        return None
    rows = open_rows(job.demonstrations, "messages")

    def drawn(step: int) -> list[Sequence]:
        chosen = batch_indices(step, len(rows), job.spec.prompts_per_step, job.spec.seed, job.spec.shuffle)
        found = (encode_chat(tokenizer, rows[i]["messages"], job.spec.max_length) for i in chosen)
        return [sequence for sequence in found if sequence.targets]

    return drawn
