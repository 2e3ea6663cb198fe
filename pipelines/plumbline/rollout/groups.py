"""Answers to one prompt, on their way from engines to training; plain values that a checkpoint can hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from plumbline.rollout.engine import Completion, FinishReason, Request


@dataclass(frozen=True)
class Task:
    """A prompt to be answered several times.

    Attributes:
        position: number of the prompt in the run's endless sequence of prompts; -1 and below are canaries.
        requests: one for each answer.
    """

    position: int
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Sample:
    """One answer with its reward.

    Attributes:
        tokens, logprobs: of the answer, as they were drawn.
        finish_reason: why it ended.
        began, ended: versions of the weights that drew its first and its last token.
        rewards: name → value, unweighted.
        reward: their weighted sum.
    """

    tokens: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    began: int
    ended: int
    rewards: dict[str, float]
    reward: float

    @classmethod
    def of(cls, completion: Completion, rewards: dict[str, float], reward: float) -> Sample:
        return cls(
            completion.tokens, completion.logprobs, completion.finish_reason, completion.first_version, completion.adapter_version,
            rewards, reward,
        )  # fmt: skip


@dataclass(frozen=True)
class Group:
    """The answers to one prompt.

    Attributes:
        position: see `Task`.
        prompt: number of the prompt's row.
        samples: the answers.
    """

    position: int
    prompt: int
    samples: list[Sample]

    @property
    def equal(self) -> bool:
        """Whether no answer is better than another."""
        return len({sample.reward for sample in self.samples}) == 1

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Group:
        """What `plain` gave."""
        return cls(plain["position"], plain["prompt"], [Sample(**sample) for sample in plain["samples"]])
