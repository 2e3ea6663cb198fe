"""`preference`: offline tuning on pairs, rankings, labelled or judged answers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plumbline.api.base import ArtifactType, Input, NonNegativeFloat, PositiveFloat, PositiveInt, Share, validated_by
from plumbline.api.options import foreign_options, option, option_rules
from plumbline.api.stages.training import MODEL_INPUT, TRAINING_RULES, OptimizerSpec, Schedule, TrainingSpec

Option = float | bool | str

OPTIONS: dict[str, dict[str, Option]] = {
    "dpo": {"beta": 0.1, "label_smoothing": 0.0, "robust": False},
    "rpo": {"beta": 0.1, "label_smoothing": 0.0, "nll_weight": 0.005, "length_normalised": False},
    "ipo": {"beta": 0.1, "length_normalised": True},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "orpo": {"beta": 0.1},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "cpo": {"beta": 0.1, "nll_weight": 1.0, "label_smoothing": 0.0},
    "slic": {"beta": 1.0, "margin": 1.0, "nll_weight": 0.5, "reference": False},
    "rrhf": {"length_penalty": 1.0, "nll_weight": 1.0},
    "pro": {"nll_weight": 0.05},
    "judge": {},
    "coh": {"good_marker": "Give a good answer.", "bad_marker": "Give a bad answer.", "forget": 0.15},
    "crlft": {"good_marker": "Give a good answer.", "bad_marker": "Give a bad answer.", "bad_weight": 0.1},
    "cut": {"threshold": 1.1, "unlikelihood_weight": 1.0},
}
"""The options of each objective and what they are where the run does not say."""


class PreferenceOptimizerSpec(OptimizerSpec):
    """AdamW with the defaults of offline preference tuning."""

    learning_rate: PositiveFloat = 5e-5
    """Peak learning rate. 5e-5 is ten times the DPO paper's full-tuning 5e-6, as is usual for adapters."""
    schedule: Schedule = "linear"
    """Decay after the warm-up: none, or to zero at the last step."""


class PreferenceSpec(TrainingSpec):
    """Preference tuning without reinforcement learning. Options that are unset have the values of the objective's paper."""

    model_config = validated_by(
        *TRAINING_RULES,
        *option_rules("objective", OPTIONS),
    )

    inputs: ClassVar = {"model": MODEL_INPUT, "dataset": Input(type=ArtifactType.PREFERENCE_DATASET)}
    program: ClassVar = "plumbline.stages.preference"
    code_version: ClassVar = "2"

    objective: Literal[
        "dpo", "rpo", "ipo", "kto", "orpo", "simpo", "cpo", "slic", "rrhf", "pro", "judge", "coh", "crlft", "cut"
    ] = "dpo"
    """The loss. On pairs: `dpo` (arXiv 2305.18290), `rpo` (DPO plus likelihood of the chosen answer, 2405.16436), `ipo` (2310.12036),
    `orpo` (2403.07691), `simpo` (2405.14734), `cpo` (2401.08417), `slic` (2305.10425), `coh` (Chain of Hindsight, 2302.02676). On rankings:
    `rrhf` (2304.05302), `pro` (2306.17492), and `judge`, which makes a model that says which of two answers is better (PandaLM,
    2306.05087). On answers labelled good or bad: `kto` (2402.01306), `crlft` (class-conditioned tuning, 2309.11235). On answers with
    a written judgment: `cut` (2312.14591)."""
    beta: PositiveFloat | None = None
    """Strength of the tie to the input model, or scale of the reward. 0.1 (dpo, rpo, ipo, kto, cpo; orpo, whose paper calls it λ), 2.0 (simpo), 1.0 (slic)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    """Assumed share of swapped labels, 0 (dpo, rpo, cpo)."""
    robust: bool | None = None
    """dpo: unbiased under that share of swapped labels (arXiv 2403.00409), instead of conservative."""
    gamma: NonNegativeFloat | None = None
    """simpo: target margin, 1.0 (half of beta)."""
    margin: PositiveFloat | None = None
    """slic: the margin δ, 1.0."""
    nll_weight: NonNegativeFloat | None = None
    """Weight of the good answer's negative log-likelihood: 0.005 (rpo), 1.0 (cpo, rrhf), 0.5 (slic), 0.05 (pro, times (answers - 1)²)."""
    length_normalised: bool | None = None
    """Divide by the answer's tokens: the log-ratio, true (ipo); the likelihood, false (rpo)."""
    length_penalty: NonNegativeFloat | None = None
    """rrhf: log-probabilities are divided by tokens to this power, 1.0."""
    desirable_weight: PositiveFloat | None = None
    """kto: λ_D, 1.0. Keep λ_D·good / (λ_U·bad answers) between 1 and 4/3."""
    undesirable_weight: PositiveFloat | None = None
    """kto: λ_U, 1.0."""
    reference: bool | None = None
    """slic: compare with the input model's log-probabilities, false as in the paper."""
    good_marker: str | None = None
    """coh, crlft: what the prompt ends with before a good answer, `Give a good answer.` The model's chat template then adds it to every prompt."""
    bad_marker: str | None = None
    """coh, crlft: the same before a bad answer, `Give a bad answer.`"""
    bad_weight: Share | None = None
    """crlft: weight of bad answers in the loss, 0.1; good ones have 1."""
    forget: Share | None = None
    """coh: share of earlier tokens that are hidden, so that the better answer is not copied from the worse: 0.15."""
    threshold: PositiveFloat | None = None
    """cut: λ; a token counts as inappropriate where the judgment makes it more likely by this factor, 1.1."""
    unlikelihood_weight: NonNegativeFloat | None = None
    """cut: weight of making inappropriate tokens less likely, 1.0."""
    optimizer: PreferenceOptimizerSpec = PreferenceOptimizerSpec()
    """Optimizer and learning rate."""
    epochs: PositiveFloat = 1.0
    """Passes over the rows."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    batch_size: PositiveInt = 64
    """Rows (pairs, rankings, answers) in one optimizer step, over all workers (DPO paper: 64)."""

    def options(self) -> dict[str, Option]:
        """The objective's options, as set or by default."""
        return {name: option(self, self.objective, name, OPTIONS) for name in OPTIONS[self.objective]}

    def problems(self) -> list[tuple[str, str]]:
        return super().problems() + foreign_options(self, self.objective, OPTIONS)
