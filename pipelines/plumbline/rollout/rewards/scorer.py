"""All rewards of a run, for the answers to one prompt at a time: what the rollout loop calls."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from joblib import cpu_count  # of this container, not of the node

from plumbline.api.stages.rewards import RewardSpec
from plumbline.api.stages.rlhf import reward_key
from plumbline.data.row import Chat
from plumbline.data.synthesis.endpoint import Endpoint, key_of
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.rollout.rewards.judge import Judge
from plumbline.rollout.rewards.remote import RemoteReward
from plumbline.rollout.rewards.verifiable import READY, Verify, overlong

UNSCORED = "unscored"
"""How many of its rewards an answer did not get."""


@dataclass(frozen=True)
class Answer:
    """One sampled answer.

    Attributes:
        text: without special tokens.
        tokens: its length.
        cut: whether it ended at the length limit.
    """

    text: str
    tokens: int
    cut: bool


RewardModel = Callable[[list[Chat]], list[float | None]]
"""Chats that end with the answer → scores."""
Values = Sequence[float | None]
Score = Callable[[Chat, list[Answer], str], Values]
"""(prompt, answers to it, reference answer) → one value each, None where there is none."""


class Scorer:
    """The rewards of a run. Thread-safe; a call blocks until all its answers are scored.

    Everything that can be wrong with a reward is found here, before any answer is sampled.

    Args:
        specs: the rewards.
        max_tokens: longest answer.
        where: field path of the list of rewards, for messages.
        reward_model: scores by the input `rewardModel`; None if the run has none.

    Raises:
        InvalidInput: a reward that cannot work: a key that is not set, a schema that is none, a host that cannot isolate code.
    """

    def __init__(self, specs: list[RewardSpec], max_tokens: int, where: str, reward_model: RewardModel | None) -> None:
        # As many as cores: more tests at once than can run would use up their seconds waiting.
        self._pool = ThreadPoolExecutor(cpu_count(), thread_name_prefix="reward")
        self._scores: dict[str, Score] = {}
        for i, (name, variable, spec) in enumerate(zip(names(specs), key_variables(specs), specs, strict=True)):
            self._scores[name] = self._score_of(spec, max_tokens, f"{where}[{i}]", variable, reward_model)

    def score(self, prompt: Chat, answers: list[Answer], reference: str) -> list[dict[str, float]]:
        """Values of each answer by reward, unweighted, in the order of the answers.

        An answer that a reward has no value for gets the mean of the others, so that it is neither pushed nor pulled within its
        group; 0 if none has one. `unscored` counts such rewards of the answer.

        Args:
            prompt: the turns before the answers.
            answers: a group.
            reference: the reference answer.

        Raises:
            InvalidInput, PlumblineError: an endpoint or the reward model fails.
        """
        parts: list[dict[str, float]] = [{UNSCORED: 0.0} for _ in answers]
        for name, score in self._scores.items():
            values = score(prompt, answers, reference)
            known = [value for value in values if value is not None]
            mean = sum(known) / len(known) if known else 0.0
            for part, value in zip(parts, values, strict=True):
                part[name] = mean if value is None else value
                part[UNSCORED] += value is None
        return parts

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _score_of(
        self, spec: RewardSpec, max_tokens: int, where: str, variable: str | None, reward_model: RewardModel | None
    ) -> Score:
        if spec.type in READY:
            return self._verifiable(READY[spec.type](spec, where))
        if spec.type == "overlong":
            buffer = spec.option("buffer_tokens")
            if buffer > max_tokens:
                raise InvalidInput(
                    f"{where}.bufferTokens: {buffer} is more than sampling.maxTokens {max_tokens}: every answer would be punished; "
                    "lower it"
                )
            return lambda prompt, answers, reference: [overlong(answer.tokens, max_tokens, buffer) for answer in answers]
        if spec.type == "rewardModel":
            if reward_model is None:
                raise InvalidInput(
                    f"{where}.type: rewardModel scores by the input rewardModel, and there is none; name one in inputs"
                )
            return _modelled(reward_model, where)
        url, timeout = spec.option("url"), spec.option("timeout_seconds")
        assert variable is not None
        key = key_of(spec.option("key_secret"), variable, where)
        if spec.type == "http":
            remote = RemoteReward(url, where=where, key=key, timeout=timeout)
            return lambda prompt, answers, reference: remote.rewards(prompt, [answer.text for answer in answers], reference)
        judge = Judge(Endpoint(url, spec.option("model"), where=where, key=key, timeout=timeout), spec.option("rubric"))
        return lambda prompt, answers, reference: judge.rewards(prompt, [answer.text for answer in answers])

    def _verifiable(self, verify: Verify) -> Score:
        """Equal answers are verified once."""

        def score(prompt: Chat, answers: list[Answer], reference: str) -> Values:
            texts = list(dict.fromkeys(answer.text for answer in answers))
            values = dict(zip(texts, self._pool.map(lambda text: verify(text, reference), texts), strict=True))
            return [values[answer.text] for answer in answers]

        return score


def _modelled(reward_model: RewardModel, where: str) -> Score:
    def score(prompt: Chat, answers: list[Answer], reference: str) -> Values:
        values = reward_model([[*prompt, {"role": "assistant", "content": answer.text}] for answer in answers])
        if len(values) != len(answers) or not all(value is None or math.isfinite(value) for value in values):
            raise PlumblineError(
                f"{where}: the reward model gave {values[:8]} for {len(answers)} answers, not one finite score each"
            )
        return values

    return score


def names(specs: Sequence[RewardSpec]) -> list[str]:
    """The name of each reward in metrics: its type, `type-2` for the second of a type, and so on."""
    counts = Counter[str]()
    found = []
    for spec in specs:
        counts[spec.type] += 1
        found.append(spec.type if counts[spec.type] == 1 else f"{spec.type}-{counts[spec.type]}")
    return found


def key_variables(specs: Sequence[RewardSpec]) -> list[str | None]:
    """The environment variable by which the key of each reward comes; None for one that asks no endpoint."""
    found: list[str | None] = []
    asked = 0
    for spec in specs:
        asks = spec.type in ("judge", "http")
        found.append(reward_key(asked) if asks else None)
        asked += asks
    return found


def total(specs: Sequence[RewardSpec], parts: dict[str, float]) -> float:
    """The weighted sum of one answer's values."""
    return sum((spec.weight * parts[name] for name, spec in zip(names(specs), specs, strict=True)), 0.0)
