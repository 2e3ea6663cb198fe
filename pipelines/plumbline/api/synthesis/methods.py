"""One block per synthesis method. Each holds its own sampling defaults, those of its source."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plumbline.api.base import WHOLE, NonNegativeFloat, PositiveInt, SpecModel, validated_by
from plumbline.api.stages.rewards import MatchSpec
from plumbline.api.synthesis.teacher import TeacherSpec

TopP = Annotated[float, Field(gt=0, le=1)]
Similarity = Annotated[float, Field(gt=0, le=1)]
Line = Annotated[str, Field(min_length=1, max_length=200)]


class SelfInstructSpec(SpecModel):
    """Self-Instruct (arXiv 2212.10560): new tasks from demonstrations, then whether each is a classification, then instances."""

    temperature: NonNegativeFloat = 0.7
    """Of the call that proposes tasks (the paper's); instances are drawn greedily."""
    top_p: TopP = 0.5
    """Likewise."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 2.0
    """Likewise. Some endpoints know only 0."""
    max_tokens: PositiveInt = 1024
    """Longest answer in tokens, of every call."""
    calls_per_round: Annotated[int, Field(ge=1, le=1024), WHOLE] = 16
    """Calls for tasks in one round; what a round accepts can be demonstrated in the next. The paper has 5: more run faster
    and see a staler pool."""
    max_similarity: Similarity = 0.7
    """A task whose ROUGE-L F with any earlier task is above this is dropped (the paper's)."""


class AlpacaSpec(SpecModel):
    """Alpaca's variant of Self-Instruct: whole tasks (instruction, input, output) in one call, from 3 demonstrations."""

    temperature: NonNegativeFloat = 1.0
    """Alpaca's."""
    max_tokens: PositiveInt = 3072
    """Longest answer in tokens: 20 tasks (Alpaca's)."""
    calls_per_round: Annotated[int, Field(ge=1, le=1024), WHOLE] = 16
    """Calls in one round; a task is compared with those of earlier rounds and with those before it."""
    max_similarity: Similarity = 0.7
    """A task whose ROUGE-L F with any earlier task is above this is dropped (Alpaca's)."""


class EvolInstructSpec(SpecModel):
    """Evol-Instruct (arXiv 2304.12244): instructions are rewritten round by round to be harder or rarer, then answered."""

    domain: Literal["general", "code"] = "general"
    """`general`: five operations in depth and one in breadth. `code`: the five of WizardCoder (arXiv 2306.08568)."""
    rounds: Annotated[int, Field(ge=1, le=16), WHOLE] = 4
    """How often an instruction is evolved (the paper's)."""
    temperature: NonNegativeFloat = 1.0
    """Of rewriting and answering (the authors' script)."""
    top_p: TopP = 0.95
    """Likewise."""
    max_tokens: PositiveInt = 2048
    """Longest answer in tokens (the authors' script)."""


class ExplainSpec(SpecModel):
    """Explained answers (Orca, arXiv 2306.02707): a system prompt that asks for reasons goes before each prompt, and stays in the row."""

    system_prompts: list[Annotated[str, Field(min_length=1, max_length=2000)]] | None = Field(default=None, max_length=64)
    """One is drawn for each prompt. Default: sixteen built-in ones."""
    temperature: NonNegativeFloat = 0.0
    """0 gives the teacher's likeliest answer."""
    max_tokens: PositiveInt = 2048
    """Longest answer in tokens."""


class DistillSpec(SpecModel):
    """Answers by the teacher in place of the dataset's last answers."""

    system_prompt: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    """Shown to the teacher in place of the row's system prompt; the row keeps its own."""
    temperature: NonNegativeFloat = 0.0
    """0 gives the teacher's likeliest answer."""
    max_tokens: PositiveInt = 2048
    """Longest answer in tokens."""


class TextbookSynthesisSpec(SpecModel):
    """Textbook lessons and exercises (after Phi-1, arXiv 2306.11644): topics × subtopics × audiences keep them apart."""

    topics: list[Line] = Field(min_length=1, max_length=256)
    """What to teach. The teacher divides each into subtopics first."""
    audiences: list[Line] = Field(
        default=["a curious ten-year-old", "a student in high school", "an undergraduate", "a working professional"],
        min_length=1,
        max_length=64,
    )
    """Whom to teach."""
    styles: list[Literal["lesson", "exercise"]] = Field(default=["lesson", "exercise"], min_length=1, max_length=2)
    """`lesson`: a section with an example. `exercise`: a problem with its worked solution."""
    subtopics: Annotated[int, Field(ge=1, le=100), WHOLE] = 20
    """How many subtopics of each topic."""
    temperature: NonNegativeFloat = 1.0
    """1 keeps texts apart."""
    max_tokens: PositiveInt = 2048
    """Longest answer in tokens."""


class SelfImproveSpec(SpecModel):
    """The best of several samples for each prompt of the dataset (RAFT, arXiv 2304.06767); or best and worst as a pair.
    The metrics `meanScoreDrawn` and `meanScoreKept` tell what choosing brought."""

    model_config = validated_by(
        ("has(self.judge) != (has(self.rewards) && self.rewards.size() > 0)", "give either rewards or a judge")
    )

    samples: Annotated[int, Field(ge=2, le=64), WHOLE] = 4
    """Answers drawn for each prompt."""
    rewards: list[MatchSpec] | None = Field(default=None, max_length=16)
    """Score an answer by its distance to the dataset's last answer: the weighted sum."""
    judge: TeacherSpec | None = None
    """Score an answer by a judge, 0 to 5. `{}`: the sampled model judges itself (self-rewarding)."""
    min_score: float = 0.0
    """The best answer must score more than this; 0 with rewards: something must be right."""
    min_gap: NonNegativeFloat = 0.0
    """In a pair, the best must score more than this above the worst."""
    temperature: NonNegativeFloat = 1.0
    """1 samples the model's own distribution."""
    max_tokens: PositiveInt = 512
    """Longest answer in tokens."""
