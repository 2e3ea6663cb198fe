"""`synthesize`: new data from a stronger teacher or from the model itself."""

from __future__ import annotations

from typing import ClassVar, Literal

from plumbline.api.base import ArtifactType, Input, NonNegativeInt, PositiveInt, StageSpec, attribute, validated_by
from plumbline.api.curation.decontamination import DecontaminateSpec
from plumbline.api.synthesis.methods import (
    AlpacaSpec,
    DistillSpec,
    EvolInstructSpec,
    ExplainSpec,
    SelfImproveSpec,
    SelfInstructSpec,
    TextbookSynthesisSpec,
)
from plumbline.api.synthesis.teacher import JUDGE_KEY, TEACHER_KEY, CallsSpec, TeacherSpec

METHODS = ("selfInstruct", "alpaca", "evolInstruct", "explain", "distill", "textbook", "selfImprove")


class SynthesizeSpec(StageSpec):
    """Write instructions, answers or pairs with a teacher model. Holds exactly one method. Every answer is paid once: what
    the same teacher was asked before with the same method, dataset and seed is found again, whatever else is edited, in
    `replies` of the workspace; nothing cleans that folder, and deleting it costs nothing but paying again."""

    model_config = validated_by(
        (
            f"[{', '.join(f'has(self.{method})' for method in METHODS)}].exists_one(given, given)",
            f"give exactly one method of {', '.join(METHODS)}",
        ),
        ("self.produces == 'Dataset' || has(self.selfImprove)", "only selfImprove makes a PreferenceDataset"),
    )

    inputs: ClassVar = {
        "model": Input(type=ArtifactType.MODEL, default_to_base=True),
        "dataset": Input(type=ArtifactType.DATASET, unless="textbook"),
    }
    output: ClassVar = None
    program: ClassVar = "plumbline.stages.synthesize"
    unfingerprinted: ClassVar = frozenset({"calls"})

    self_instruct: SelfInstructSpec | None = None
    """New tasks in the manner of the dataset's."""
    alpaca: AlpacaSpec | None = None
    """New tasks in the manner of the dataset's, in one pass."""
    evol_instruct: EvolInstructSpec | None = None
    """The dataset's instructions made harder or rarer, and answered."""
    explain: ExplainSpec | None = None
    """The dataset's prompts answered with reasons."""
    distill: DistillSpec | None = None
    """The dataset's prompts answered."""
    textbook: TextbookSynthesisSpec | None = None
    """Lessons and exercises; needs no dataset."""
    self_improve: SelfImproveSpec | None = None
    """The best of several answers to the dataset's prompts."""
    produces: Literal["Dataset", "PreferenceDataset"] = "Dataset"
    """`Dataset`: chats. `PreferenceDataset`: best and worst answer as prompt/chosen/rejected (`selfImprove` only)."""
    teacher: TeacherSpec = TeacherSpec()
    """Who writes; for `selfImprove`, who is sampled."""
    rows: PositiveInt = 1000
    """How many rows to make; fewer come where the dataset, the budget or the teacher's ideas end. Bounds the cost."""
    token_budget: PositiveInt | None = None
    """No call is made that could lift all calls' tokens, prompts and answers, above this. The server's `usage` counts where the texts
    bear it out, else an estimate from the texts. Tries that brought rubbish count; of those that brought nothing at all nobody
    knows what they took."""
    calls: CallsSpec = CallsSpec()
    """How calls are made. Does not enter the fingerprint."""
    decontaminate: DecontaminateSpec = DecontaminateSpec()
    """Rows that hold questions of benchmarks."""
    seed: NonNegativeInt = 0
    """Seed of every draw, sent with each call too."""

    @property
    def method(self) -> str:
        """The method that is given, in YAML spelling."""
        return next(alias for alias in METHODS if getattr(self, attribute(alias)) is not None)

    @property
    def judge(self) -> TeacherSpec | None:
        """The judge, where the method has one."""
        return self.self_improve.judge if self.self_improve else None

    def reads(self, role: str) -> bool:
        return self.asks_own_model if role == "model" else self.textbook is None

    @property
    def asks_own_model(self) -> bool:
        """Whether the stage's model input writes or judges, rather than endpoints alone."""
        return self.teacher.endpoint is None

    def external_uris(self) -> dict[str, str]:
        return {f"decontaminate.{where}": uri for where, uri in self.decontaminate.external_uris().items()}

    def avoids_benchmarks(self) -> bool:
        return self.decontaminate.enabled

    def secrets(self) -> dict[str, tuple[str, str]]:
        found = {TEACHER_KEY: self.teacher.key_secret, JUDGE_KEY: self.judge.key_secret if self.judge else None}
        return {variable: (name, "apiKey") for variable, name in found.items() if name}

    def problems(self) -> list[tuple[str, str]]:
        found = [(f"teacher.{field}", what) for field, what in self.teacher.problems()]
        found += [(f"decontaminate.{field}", what) for field, what in self.decontaminate.problems()]
        given = [alias for alias in METHODS if getattr(self, attribute(alias)) is not None]
        if len(given) != 1:
            found.append(("", f"give exactly one method of {', '.join(METHODS)}; here: {' and '.join(given) or 'none'}"))
        if self.produces == "PreferenceDataset" and self.self_improve is None:
            found.append(("produces", "only selfImprove makes a PreferenceDataset"))
        if self.self_improve is not None:
            if (self.self_improve.judge is None) == (not self.self_improve.rewards):
                found.append(("selfImprove", "give either rewards or a judge"))
            if self.judge is not None:
                found += [(f"selfImprove.judge.{field}", what) for field, what in self.judge.problems()]
        return found
