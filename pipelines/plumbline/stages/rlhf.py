"""`rlhf`: reinforcement learning with rollout workers (GRPO). Training reads rollouts as if they were data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from plumbline.api.stages.rlhf import RlhfSpec
from plumbline.data.dataset import load_rows
from plumbline.errors import InvalidInput
from plumbline.models.load import adapter_type, load_tokenizer
from plumbline.ray_environment import connect
from plumbline.rollout.engine import Completion, Request, Sampling
from plumbline.rollout.pool import RolloutPool, rollout_pool
from plumbline.rollout.rewards import reward
from plumbline.stage import StageContext
from plumbline.training.batch import MicroBatch, Sequence, micro_batches
from plumbline.training.encode import encode_prompt
from plumbline.training.engine import TrainEngine
from plumbline.training.loop import ReportStep, train
from plumbline.training.model import build_trainable
from plumbline.training.objectives.grpo import group_advantages, grpo
from plumbline.training.schedule import batch_indices
from plumbline.training.tuning import TrainingJob, tune
from plumbline.training.world import World

CANARIES = 16  # answers of each rank and step on which engine and trainer are compared


@dataclass(frozen=True)
class RlhfJob(TrainingJob[RlhfSpec]):
    """A training job with the rollout actors that its driver keeps."""

    pool: RolloutPool


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
    with rollout_pool(
        job.reference,
        workers=spec.rollout.workers,
        trainers=spec.parallelism.most,
        requests=spec.prompts_per_step * spec.group_size,
        max_length=spec.max_length,
        max_failures=spec.parallelism.max_failures,
    ) as pool:
        tune(context, RlhfJob(**vars(job), pool=pool), work)


def work(job: RlhfJob, world: World, report: ReportStep) -> None:
    """One training worker: sample, reward, compare within groups, update."""
    spec = job.spec
    tokenizer = load_tokenizer(job.reference)
    prompts, references = _prompts(job, tokenizer)
    model = build_trainable(job.reference, spec, job.where)
    engine = TrainEngine(
        model, spec.optimizer, world, spec.parallelism, spec.sampling.temperature, keep_reference=spec.kl_coefficient > 0
    )
    config = model.adapter_config()
    pool = job.pool.share(world.rank, world.size)

    def rollouts(step: int) -> tuple[list[list[MicroBatch]], dict[str, float]]:
        drawn = list(enumerate(batch_indices(step, len(prompts), spec.prompts_per_step, spec.seed, spec.shuffle)))
        mine = drawn[world.rank :: world.size]
        groups = [[_request(spec, step, place, k, prompts[i]) for k in range(spec.group_size)] for place, i in mine]
        answers = pool.generate(groups, engine.adapter(), config, version=step)
        rewards = torch.tensor(
            [
                [reward(spec.rewards, tokenizer.decode(c.tokens, skip_special_tokens=True), references[i]) for c in group]
                for (_, i), group in zip(mine, answers, strict=True)
            ]
        ).view(-1, spec.group_size)
        advantages = group_advantages(rewards, spec.scale_advantages)
        shares: list[list[list[Sequence]]] = [[] for _ in range(spec.updates_per_step)]
        for (_, i), group, row in zip(mine, answers, advantages, strict=True):
            for k, (completion, advantage) in enumerate(zip(group, row, strict=True)):
                if advantage != 0 or spec.kl_coefficient:  # equal rewards teach nothing
                    shares[k % spec.updates_per_step].append([_sequence(prompts[i], completion, float(advantage))])
        updates = [micro_batches(share, micro_batch_tokens=spec.micro_batch_tokens) for share in shares]
        if spec.kl_coefficient:
            with engine.reference():
                for made in updates:
                    for batch, logps in zip(made, engine.log_probs(made), strict=True):
                        batch.per_target["reference"] = logps
        gap = _canary(engine, micro_batches(shares[0][:CANARIES], micro_batch_tokens=spec.micro_batch_tokens))
        if not gap <= spec.rollout.sync_tolerance:
            raise InvalidInput(
                f"{job.where}.rollout.syncTolerance: rollout engine and trainer differ by {gap:.3g} in a token's mean "
                f"log-probability, more than {spec.rollout.sync_tolerance:g}: the engine does not hold the trainer's adapter"
            )
        return updates, _metrics(world, rewards, advantages, answers)

    objective = grpo(spec.clip_low, spec.clip_high, spec.kl_coefficient)
    train(engine, rollouts, objective, job.steps, job.store, spec.checkpoint, spec.seed, report)


def _prompts(job: RlhfJob, tokenizer: object) -> tuple[list[tuple[int, ...]], list[str]]:
    """Prompts that leave room for an answer, and the reference answer of each."""
    prompts, references = [], []
    room = job.spec.max_length - job.spec.sampling.max_tokens
    for messages in load_rows(job.dataset, "messages")["messages"].to_pylist():
        tokens = tuple(encode_prompt(tokenizer, messages[:-1]))  # type: ignore[arg-type]
        if len(tokens) <= room:
            prompts.append(tokens)
            references.append(messages[-1]["content"])
    if not prompts:
        raise InvalidInput(
            f"{job.where}.maxLength: no prompt fits into {job.spec.max_length} less sampling.maxTokens "
            f"{job.spec.sampling.max_tokens}; raise the one or lower the other"
        )
    return prompts, references


def _request(spec: RlhfSpec, step: int, place: int, sample: int, tokens: tuple[int, ...]) -> Request:
    """Its seed follows from its place in the run, so that a repeated step samples the same answers."""
    name = f"{spec.seed}/{step}/{place}/{sample}"
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])
    return Request(
        name, tokens, Sampling(temperature=spec.sampling.temperature, max_tokens=spec.sampling.max_tokens, seed=seed)
    )


def _sequence(prompt: tuple[int, ...], completion: Completion, advantage: float) -> Sequence:
    return Sequence(
        ids=[*prompt, *completion.tokens],
        trained=[False] * len(prompt) + [True] * len(completion.tokens),
        values={"advantage": advantage, "behaviour": list(completion.logprobs)},
    )


def _canary(engine: TrainEngine, batches: list[MicroBatch]) -> float:
    """Mean difference between engine and trainer log-probabilities of a token, over all ranks."""
    gaps = [
        (values - batch.per_target["behaviour"]).abs()
        for values, batch in zip(engine.log_probs(batches), batches, strict=True)
    ]
    total, count = engine.world.totals(sum(float(g.sum()) for g in gaps), sum(len(g) for g in gaps))
    return total / count if count else 0.0


def _metrics(
    world: World, rewards: torch.Tensor, advantages: torch.Tensor, answers: list[list[Completion]]
) -> dict[str, float]:
    flat = [completion for group in answers for completion in group]
    total, length, cut, count, equal, groups = world.totals(
        float(rewards.sum()),
        sum(len(c.tokens) for c in flat),
        sum(c.finish_reason == "length" for c in flat),
        len(flat),
        int((advantages == 0).all(dim=1).sum()),
        len(rewards),
    )
    return {
        "reward": total / count,
        "answerTokens": length / count,
        "truncated": cut / count,
        "equalGroups": equal / groups,
    }
