"""Groups of rewarded answers → what a step learns from them, and with which loss. One `Learner` on every rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch

from plumbline.api.stages.rlhf import RlhfSpec
from plumbline.rollout.advantages import (
    KlController,
    generalised,
    group_advantages,
    leave_one_out,
    returns_to_go,
    token_rewards,
    whitened,
)
from plumbline.rollout.groups import Group, Sample
from plumbline.rollout.rewards.scorer import UNSCORED
from plumbline.training.batch import MicroBatch, Sequence, micro_batches, share
from plumbline.training.engine import TrainEngine, together
from plumbline.training.objectives import Objective
from plumbline.training.objectives.dpo import dpo
from plumbline.training.objectives.policy_gradient import PolicyLoss, policy_gradient
from plumbline.training.objectives.sft import sft
from plumbline.training.objectives.value import clipped_value
from plumbline.training.schedule import learning_rate
from plumbline.training.share import balanced

Updates = list[list[MicroBatch]]
Ask = Callable[[list[MicroBatch]], list[torch.Tensor]]

IMITATION = ("raft", "rejectionSampling")
KL_IN_REWARD = ("rloo", "reinforcePlusPlus", "ppo")


def objective_of(spec: RlhfSpec) -> Objective:
    """The policy's loss."""
    if spec.algorithm in IMITATION:
        return sft
    if spec.algorithm == "onlineDpo":
        return dpo(spec.option("beta"))
    return policy_gradient(
        PolicyLoss(
            clip_low=spec.option("clip_low"),
            clip_high=spec.option("clip_high"),
            sequence_ratio=spec.algorithm == "gspo",
            aggregate=spec.option("aggregate"),
            longest=spec.sampling.max_tokens,
            kl_coefficient=0.0 if spec.algorithm in KL_IN_REWARD else spec.option("kl_coefficient"),
            kl_estimator=spec.option("kl_estimator") or "k1",
            dual_clip=spec.option("dual_clip"),
            mismatch=spec.option("mismatch"),
            ptx_weight=spec.option("ptx_weight") or 0.0,
        )
    )


def keeps_reference(spec: RlhfSpec) -> bool:
    """Whether the input model's log-probabilities are asked for."""
    return spec.algorithm == "onlineDpo" or bool(spec.option("kl_coefficient"))


def temperature_of(spec: RlhfSpec) -> float:
    """What the trainer's logits are divided by: as in sampling where the loss is of the probabilities that answers were drawn with; 1 where
    they are data like any other."""
    return 1.0 if spec.algorithm in (*IMITATION, "onlineDpo") else spec.sampling.temperature


@dataclass
class _Answer:
    """An answer that this rank learns from.

    Attributes:
        update: in which of the step's updates.
        advantage: [T], or nothing yet.
    """

    sample: Sample
    sequence: Sequence
    update: int
    advantage: torch.Tensor


class Learner:
    """Turns a step's groups into the policy's updates, and teaches the critic where there is one.

    Args:
        spec: the stage's block.
        engine: the policy.
        prompts: row → tokens of its prompt.
        critic: of PPO.
        demonstrations: step → sequences of the whole step to learn by heart beside it.
    """

    def __init__(
        self,
        spec: RlhfSpec,
        engine: TrainEngine,
        prompts: list[tuple[int, ...]],
        critic: TrainEngine | None = None,
        demonstrations: Callable[[int], list[Sequence]] | None = None,
    ) -> None:
        self._spec, self._engine, self._prompts = spec, engine, prompts
        self._critic, self._demonstrations = critic, demonstrations
        self._updates: int = spec.option("updates_per_step") or 1
        self._epochs: int = spec.option("epochs_per_step") or 1
        self.kl = KlController(
            spec.option("kl_coefficient") or 0.0, spec.option("kl_target"), spec.option("kl_horizon") or 1
        )

    def learn(self, step: int, groups: list[Group]) -> tuple[Updates, dict[str, float]]:
        """The policy's updates of a step, for this rank, and metrics.

        Args:
            step: number of the step.
            groups: all of it, the same on every rank.
        """
        spec, world = self._spec, self._engine.world
        metrics = measured(groups)
        if spec.option("skip_equal_groups"):
            groups = [group for group in groups if not group.equal]
        sizes = [sum(len(self._prompts[g.prompt]) + len(s.tokens) for s in g.samples) for g in groups]
        mine = [(place, groups[place]) for place in balanced(sizes, world.size)[world.rank]]
        if spec.algorithm == "onlineDpo":
            updates, kl = self._pairs(mine)
            return updates, metrics | kl
        if spec.algorithm in IMITATION:
            units = [[[self._sequence(group, s)] for s in chosen(group.samples, spec)] for _, group in mine]
            learned = [unit for found in units for unit in found]
            metrics["learned"] = world.totals(float(len(learned)))[0] / max(1, sum(len(g.samples) for g in groups))
            return [self._layout(learned)], metrics
        answers = [self._answers(place, group) for place, group in mine]
        metrics |= self._advantages(mine, answers)
        counted = [[a for a in found if not self._dropped(a)] for found in answers]
        parts = [[[a for a in found if a.update == u] for found in counted] for u in range(self._updates)]
        updates = [self._update(part) for part in parts]
        metrics |= self._teach_critic(step, updates * self._epochs)
        if step < (spec.option("critic_warmup_steps") or 0):
            return [], metrics
        if self._demonstrations is not None:
            updates = [self._with_demonstrations(step, *one) for one in zip(parts, updates, strict=True)]
        return updates * self._epochs, metrics

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"klCoefficient": self.kl.coefficient}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self.kl.coefficient = state["klCoefficient"]

    def _answers(self, place: int, group: Group) -> list[_Answer]:
        return [
            _Answer(sample, self._sequence(group, sample), place % self._updates, torch.zeros(len(sample.tokens)))
            for sample in group.samples
        ]

    def _sequence(self, group: Group, sample: Sample) -> Sequence:
        prompt = self._prompts[group.prompt]
        ids = [*prompt, *sample.tokens]
        return Sequence(ids, [i >= len(prompt) for i in range(len(ids))])

    def _dropped(self, answer: _Answer) -> bool:
        return bool(self._spec.option("drop_truncated")) and answer.sample.finish_reason == "length"

    def _update(self, answers: list[list[_Answer]]) -> list[MicroBatch]:
        """This rank's micro-batches of an update. Answers whose loss has no gradient are not computed, and the mean counts them."""
        penalised = self._spec.algorithm not in KL_IN_REWARD and bool(self._spec.option("kl_coefficient"))
        moving = [[a for a in found if penalised or bool(a.advantage.any())] for found in answers]
        batches = self._layout([[a.sequence for a in found] for found in moving if found])
        idle = self._weight(answers) - self._weight(moving)
        ranks = [rank for rank, there in enumerate(self._engine.world.gather(bool(batches))) if there]
        if ranks[:1] == [self._engine.world.rank]:
            batches[0] = replace(batches[0], per_step={"idle": idle})
        return batches

    def _weight(self, answers: list[list[_Answer]]) -> float:
        """What the mean of the loss counts these answers as, over all ranks."""
        tokens, number = self._engine.world.totals(
            sum(len(a.sample.tokens) for found in answers for a in found), sum(len(found) for found in answers)
        )
        spec = self._spec
        return {"tokens": tokens, "sequences": number, "constant": number * spec.sampling.max_tokens}[
            spec.option("aggregate")
        ]

    def _advantages(self, mine: list[tuple[int, Group]], answers: list[list[_Answer]]) -> dict[str, float]:
        """Set every answer's advantage, and its other values; metrics."""
        spec, world, every = self._spec, self._engine.world, [a for found in answers for a in found]
        units = [[a.sequence for a in found] for found in answers]
        for a in every:
            a.sequence.values = {"behaviour": a.sample.logprobs}
        metrics: dict[str, float] = {}
        divergence = [torch.zeros(len(a.sample.tokens)) for a in every]
        if keeps_reference(spec):
            with self._engine.reference():
                references = self._ask(units, self._engine.log_probs)
            for a, reference in zip(every, references, strict=True):
                a.sequence.values["reference"] = reference.tolist()
            divergence = [torch.tensor(a.sample.logprobs) - r for a, r in zip(every, references, strict=True)]
            total, number = world.totals(sum(float(d.sum()) for d in divergence), len(every))
            metrics["klOfAnswer"] = total / max(1.0, number)
        if spec.option("mismatch") not in (None, "none"):
            for a, old in zip(every, self._ask(units, self._engine.log_probs), strict=True):
                a.sequence.values["old"] = old.tolist()
        rewards = torch.tensor([[s.reward for s in group.samples] for _, group in mine]).view(
            len(mine), self._spec.option("group_size")
        )
        found: list[torch.Tensor]
        if spec.algorithm in ("ppo", "reinforcePlusPlus"):
            streams = [
                token_rewards(a.sample.reward, d, self.kl.coefficient) for a, d in zip(every, divergence, strict=True)
            ]
            if self._critic is None:
                found = [returns_to_go(stream) for stream in streams]
            else:
                found = self._criticised(units, every, streams)
            found = whitened(found, world.totals)
        else:
            if spec.algorithm == "rloo":
                sums = torch.tensor([float(d.sum()) for d in divergence]).view(rewards.shape)
                table = leave_one_out(rewards - self.kl.coefficient * sums) if len(mine) else rewards
            else:
                table = group_advantages(rewards, bool(spec.option("scale_advantages"))) if len(mine) else rewards
            found = [value.expand(len(a.sample.tokens)) for value, a in zip(table.flatten(), every, strict=True)]
            if spec.algorithm == "reinforcePlusPlusBaseline":
                found = whitened(found, world.totals)
        for a, advantage in zip(every, found, strict=True):
            a.advantage = advantage
            a.sequence.values["advantage"] = advantage.tolist()
        if keeps_reference(spec) and spec.algorithm in KL_IN_REWARD:
            metrics["klCoefficient"] = self.kl.coefficient
            self.kl.update(metrics["klOfAnswer"], int(world.totals(len(every))[0]))
        return metrics

    def _criticised(
        self, units: list[list[Sequence]], answers: list[_Answer], rewards: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        assert self._critic is not None
        found = []
        for a, stream, values in zip(answers, rewards, self._ask(units, self._critic.log_probs), strict=True):
            advantage, returns = generalised(stream, values, self._spec.option("discount"), self._spec.option("gae_lambda"))
            a.sequence.values |= {"value": values.tolist(), "return": returns.tolist()}
            found.append(advantage)
        return found

    def _teach_critic(self, step: int, updates: Updates) -> dict[str, float]:
        """The critic's own optimizer steps, on the same micro-batches as the policy's."""
        if self._critic is None:
            return {}
        rate = learning_rate(step, self._spec.steps, self._critic.spec)
        objective = clipped_value(self._spec.option("value_clip"))
        told = together([self._critic.step(batches, objective, rate) for batches in updates])
        return {
            new: told[old]
            for old, new in (("loss", "valueLoss"), ("gradNorm", "valueGradNorm"), ("valueClipFraction",) * 2)
            if old in told
        }

    def _with_demonstrations(self, step: int, answers: list[list[_Answer]], batches: list[MicroBatch]) -> list[MicroBatch]:
        """An update's micro-batches of this rank, and those of what is learned by heart beside them."""
        assert self._demonstrations is not None
        world, spec = self._engine.world, self._spec
        names = {"advantage", "behaviour"} | ({"reference"} if keeps_reference(spec) else set())
        names |= {"old"} if spec.option("mismatch") != "none" else set()
        shown = self._demonstrations(step)
        for sequence in shown:
            sequence.values = {name: [0.0] * sequence.targets for name in names}
        taught = self._layout([[sequence] for sequence in shown[world.rank :: world.size]])
        (targets,) = world.totals(sum(len(batch.targets) for batch in taught))
        weights = self._weight(answers)
        mixed = [*((b, 0.0) for b in batches), *((b, 1.0) for b in taught)]
        return [
            replace(
                batch,
                per_sequence={**batch.per_sequence, "demonstration": torch.full((batch.size,), demonstration)},
                per_step={**batch.per_step, "weights": weights, "demonstrations": targets},
            )
            for batch, demonstration in mixed
        ]

    def _pairs(self, mine: list[tuple[int, Group]]) -> tuple[Updates, dict[str, float]]:
        """The best and the worst answer of each group, for DPO; metrics."""
        pairs: list[tuple[int, list[Sequence]]] = []
        drawn: list[float] = []
        for place, group in mine:
            if not group.equal:
                ordered = sorted(group.samples, key=lambda s: s.reward)  # stable: of equals the first worst, the last best
                two = (ordered[-1], ordered[0])
                pairs.append((place % self._updates, [self._sequence(group, s) for s in two]))
                drawn += [sum(s.logprobs) for s in two]
        with self._engine.reference():
            references = self._ask([pair for _, pair in pairs], self._engine.log_probs)
        sequences = [sequence for _, pair in pairs for sequence in pair]
        for sequence, reference in zip(sequences, references, strict=True):
            sequence.values = {"reference": float(reference.sum())}
        kl = sum(drawn) - sum(float(reference.sum()) for reference in references)
        total, number = self._engine.world.totals(kl, len(drawn))
        updates = [
            self._layout([pair for update, pair in pairs if update == u], together=True) for u in range(self._updates)
        ]
        return updates, {"klOfAnswer": total / number} if number and self._spec.sampling.temperature == 1 else {}

    def _ask(self, units: list[list[Sequence]], ask: Ask) -> list[torch.Tensor]:
        """Numbers [targets] of each sequence, in order, whatever the layout."""
        places = count()
        numbered = [[replace(s, values={"place": float(next(places))}) for s in unit] for unit in units]
        found = [torch.zeros(0)] * next(places)
        batches = self._layout(numbered)
        for batch, numbers in zip(batches, ask(batches), strict=True):
            lengths = torch.bincount(batch.sequence, minlength=batch.size).tolist()
            for place, own in zip(batch.per_sequence["place"].tolist(), numbers.split(lengths), strict=True):
                found[int(place)] = own
        return found

    def _layout(self, units: list[list[Sequence]], together: bool = False) -> list[MicroBatch]:
        """Micro-batches of units, the sequences of each of which begin with the same prompt; it is computed once where the model can.

        Args:
            units: the answers to one prompt each.
            together: a unit's sequences must share a micro-batch.
        """
        most = self._spec.micro_batch_tokens
        engines = [self._engine, self._critic] if self._critic is not None else [self._engine]
        if all(engine.model.shares_prompts for engine in engines):
            bound = 2**31 if together else most
            laid = [part for unit in units for part in share(unit, unit[0].trained.index(True), bound)]
        else:
            laid = units if together else [[sequence] for unit in units for sequence in unit]
        return micro_batches(laid, micro_batch_tokens=most)


def chosen(samples: list[Sample], spec: RlhfSpec) -> list[Sample]:
    """The answers to learn by heart: the best of the group (RAFT, arXiv 2304.06767, section 3.1), or every different one that is good
    enough."""
    least = spec.option("least_reward")
    good = [sample for sample in samples if least is None or sample.reward >= least]
    if spec.algorithm == "raft":
        return [max(good, key=lambda sample: sample.reward)] if good else []
    return list({tuple(sample.tokens): sample for sample in good}.values())


def measured(groups: list[Group]) -> dict[str, float]:
    """Means over all answers of a step; entropy in nats of a token, estimated from the probabilities that tokens were drawn with."""
    samples = [sample for group in groups for sample in group.samples]
    number, tokens = max(1, len(samples)), sum(len(sample.tokens) for sample in samples)
    parts: dict[str, float] = {}
    for sample in samples:
        for name, value in sample.rewards.items():
            parts[name] = parts.get(name, 0.0) + value / number
    unscored = parts.pop(UNSCORED, 0.0)
    return {
        "reward": sum(sample.reward for sample in samples) / number,
        **({f"reward/{name}": value for name, value in parts.items()} if len(parts) > 1 else {}),
        **({UNSCORED: unscored} if unscored else {}),
        "answerTokens": tokens / number,
        "entropy": -sum(sum(sample.logprobs) for sample in samples) / max(1, tokens),
        "truncated": sum(sample.finish_reason == "length" for sample in samples) / number,
        "equalGroups": sum(group.equal for group in groups) / max(1, len(groups)),
    }
