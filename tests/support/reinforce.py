"""Reinforcement learning in this process: the real loop, engine and learner; only Ray is left out."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from plumbline.api.stages.rlhf import ALGORITHMS, RlhfCheckpointSpec, RlhfOptimizerSpec, RlhfSpec, SamplingSpec
from plumbline.builtin import skills
from plumbline.external import TINY
from plumbline.models.load import end_tokens, load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.rollout.actors import lora_config
from plumbline.rollout.collector import Adapter
from plumbline.rollout.engine import Completion, Request, Sampling, build_engine, generate
from plumbline.rollout.groups import Task
from plumbline.rollout.rewards.scorer import Scorer
from plumbline.stages.rlhf import CANARY_TOKENS, Prompts, Rollouts
from plumbline.training.batch import Sequence, micro_batches
from plumbline.training.checkpoint import CheckpointStore
from plumbline.training.critic import build_critic
from plumbline.training.encode import encode_chat, encode_prompt
from plumbline.training.engine import TrainEngine
from plumbline.training.loop import train
from plumbline.training.model import TargetLogProbs, build_trainable
from plumbline.training.objectives.sft import sft
from plumbline.training.reinforcement import Learner, keeps_reference, objective_of, temperature_of
from plumbline.training.world import World, never

REFERENCE = ModelReference(TINY)
ALONE = World(0, 1, torch.device("cpu"))
LONGEST, ANSWER = 64, 12
EASY = ("sort", "take", "upper")
RISE, WINDOW = 0.3, 4
"""By how much the mean reward of so many steps is to be above that of the first."""


def spec_of(algorithm: str, seed: int = 0, **options: Any) -> RlhfSpec:
    """An algorithm as it learns these prompts: as many answers a step for those that ask each prompt once."""
    alone = ALGORITHMS[algorithm]["group_size"] == 1
    known: dict[str, Any] = {
        "prompts_per_step": 192 if alone else 32,
        "group_size": 1 if alone else 8,
        "steps": 100,
        "max_length": LONGEST,
        "sampling": SamplingSpec(max_tokens=ANSWER),
        "optimizer": RlhfOptimizerSpec(learning_rate=1.5e-3),
        "checkpoint": RlhfCheckpointSpec(every_steps=1000),
    }
    if algorithm == "ppo":  # its critic costs as much again, and its KL penalty holds it back
        known |= {"prompts_per_step": 96, "updates_per_step": 1, "kl_coefficient": 0.01}
    return RlhfSpec(algorithm=algorithm, seed=seed, **known | options)


class LocalPool:
    """One engine, asked in the thread that collects."""

    def __init__(self, config: dict[str, Any], prompt: tuple[int, ...]) -> None:
        model = load_base(REFERENCE)
        end = end_tokens(load_tokenizer(REFERENCE), model)
        self.engine = build_engine(model, lora_config(config), end, slots=128, max_length=LONGEST)
        self.bytes = 0
        self._prompt, self._canaries = prompt, 0
        self._inbox: queue.SimpleQueue[tuple[list[Task], Adapter, int]] = queue.SimpleQueue()
        self._sent = -1
        self._paused = False
        self.lost = 0

    def submit(self, tasks: list[Task], adapter: Adapter, version: int) -> list[int]:
        canaries = []
        if version != self._sent:
            self._canaries -= 1
            request = Request(f"canary{self._canaries}", self._prompt, Sampling(max_tokens=CANARY_TOKENS))
            tasks, canaries = [Task(self._canaries, (request,)), *tasks], [self._canaries]
        self._sent = version
        self._inbox.put((tasks, adapter, version))
        return canaries

    def collect(self, seconds: float) -> list[tuple[int, list[Completion]]]:
        try:
            tasks, adapter, version = self._inbox.get(timeout=seconds)
        except queue.Empty:
            return []
        if self._paused:
            self.engine.resume()
            self._paused = False
        if version != self.engine.adapter_version:
            self.engine.load_adapter(adapter, version)
        answers = iter(generate(self.engine, [request for task in tasks for request in task.requests]))
        return [(task.position, [next(answers) for _ in task.requests]) for task in tasks]

    def pause(self) -> None:
        """Between two steps nothing is under way here."""
        self.engine.pause()
        self._paused = True

    def resume(self) -> None:
        """`collect` does, in its own thread."""


def tokens_of(tokenizer: Any, count: int, seed: int) -> Prompts:
    """Prompts of skills."""
    tasks = list(skills.tasks(count, split="train", seed=seed, skills=EASY))
    chats = [[{"role": "user", "content": task.prompt}] for task in tasks]
    return Prompts([tuple(encode_prompt(tokenizer, c)) for c in chats], chats, [task.answer for task in tasks])


@cache
def taught() -> dict[str, torch.Tensor]:
    """A LoRA that knows the form of the answers and some of them."""
    model = build_trainable(REFERENCE, RlhfSpec(max_length=LONGEST), "sft")
    spec = RlhfSpec().optimizer.model_copy(update={"learning_rate": 5e-3})
    engine, tokenizer = TrainEngine(model, spec, ALONE), load_tokenizer(REFERENCE)
    tasks = skills.tasks(40 * 40, split="train", seed=5)
    chats = [[{"role": "user", "content": t.prompt}, {"role": "assistant", "content": t.answer}] for t in tasks]
    units = [[encode_chat(tokenizer, chat, LONGEST)] for chat in chats]
    for step in range(40):
        batches = micro_batches(units[step * 40 : step * 40 + 40], micro_batch_tokens=4096, row_tokens=256)
        engine.step(batches, sft, 5e-3)
    return {name: p.detach().clone() for name, p in engine.parameters.items()}


def start(model: TargetLogProbs) -> TargetLogProbs:
    """The same model with what `taught` knows."""
    known = taught()
    with torch.no_grad():
        for name, p in model.trainable().items():
            if name in known:
                p.copy_(known[name])
    return model


def reinforce(
    spec: RlhfSpec,
    store: Path,
    steps: int | None = None,
    pool: Callable[[dict[str, Any], tuple[int, ...]], Any] = LocalPool,
    prompts: int = 2048,
    report: Callable[[int, int, dict[str, float]], None] = lambda *_: None,
    interrupted: Callable[[], bool] = never,
    world: World = ALONE,
) -> list[dict[str, float]]:
    """Run the stage's loop to `steps`; the history. On every rank of `world`."""
    tokenizer = load_tokenizer(REFERENCE)
    questions = tokens_of(tokenizer, prompts, spec.seed)
    model = start(build_trainable(REFERENCE, spec, "rlhf"))
    world = replace(world, interrupted=interrupted)
    engine = TrainEngine(
        model,
        spec.optimizer,
        world,
        spec.parallelism,
        temperature=temperature_of(spec),
        keep_reference=keeps_reference(spec),
    )
    critic = None
    if spec.algorithm == "ppo":
        optimizer = spec.optimizer.model_copy(update={"learning_rate": spec.option("critic_learning_rate")})
        critic = TrainEngine(
            build_critic(REFERENCE, None, spec, "rlhf"),
            optimizer,
            world,
            spec.parallelism,
            name="critic/",
            rate_field="criticLearningRate",
        )

    def shown(step: int) -> list[Sequence]:
        tasks = skills.tasks(8, split="train", seed=1000 + step)
        chats = [[{"role": "user", "content": t.prompt}, {"role": "assistant", "content": t.answer}] for t in tasks]
        return [encode_chat(tokenizer, chat, LONGEST) for chat in chats]

    learner = Learner(spec, engine, questions.tokens, critic, shown if spec.ptx_weight else None)
    scorer = Scorer(list(spec.rewards), spec.sampling.max_tokens, "rlhf.rewards", None)
    config = model.adapter_config()
    assert config is not None
    rollouts = Rollouts(
        spec, "rlhf", engine, critic, learner, questions, tokenizer, scorer, lambda: pool(config, questions.tokens[0])
    )
    kept = CheckpointStore(str(store))
    try:
        train(
            engine, rollouts, objective_of(spec), steps or spec.steps, kept, spec.checkpoint, spec.seed,
            report, companion=rollouts,
        )  # fmt: skip
    finally:
        rollouts.close()
    return kept.history()
