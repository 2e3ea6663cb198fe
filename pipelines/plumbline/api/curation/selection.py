"""`select` of `curate`: a budget of rows, the best by one method."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from plumbline.api.base import WHOLE, PositiveInt, SpecModel, Uri, attribute, validated_by
from plumbline.api.curation.filters import JudgeSpec

METHODS = ("random", "longest", "ifd", "deita", "tags", "kCenter")
BUDGETS = ("rows", "share", "tokens")

MaxTokens = Annotated[int, Field(ge=8, le=32_768), WHOLE]
Template = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"\{(prompt|answer)\}")]


class RandomSpec(SpecModel):
    """A random sample: what every method has to beat."""


class LongestSpec(SpecModel):
    """The longest answers, in tokens (arXiv 2402.04833: the 1,000 longest of Alpaca beat AlpaGasus and LIMA)."""


class IfdSpec(SpecModel):
    """Instruction-following difficulty (Cherry, arXiv 2308.12032): mean negative log-likelihood of the answers given
    their prompts, divided by that of the answers alone. The highest first: answers that their prompts help least with."""

    model: Uri | None = None
    """Causal model, as folder or URI. Default: the run's base."""
    max_tokens: MaxTokens = 2048
    """Longer rows are dropped, since the ratio of a part is not that of the whole (Cherry drops truncated rows)."""
    max_ratio: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Rows above it are dropped: the prompt makes the answer less likely, so that they do not belong together (Cherry's)."""


class EmbeddingSpec(SpecModel):
    """Embedding of a row: mean of a model's last hidden states over prompt and answer, at length 1."""

    model: Uri | None = None
    """Model folder or URI. Default: the run's base. One that was trained for similarity tells rows apart better."""
    max_tokens: MaxTokens = 512
    """Tokens of a row that the model reads."""


class ScorerSpec(SpecModel):
    """A model that scores prompts or answers."""

    model_config = validated_by(
        ("!(has(self.label) && has(self.template))", "label is of classifiers, template of causal models: give one")
    )

    model: Uri
    """Folder or URI with safetensors weights: a sequence classifier; or, with `template`, a causal model."""
    label: str | None = Field(default=None, min_length=1, max_length=200)
    """Label of the classifier whose probability is the score. Unset, for models with one output: its value."""
    template: Template | None = None
    """What the causal model was trained to continue with a digit from 1 to 6, with `{prompt}` and `{answer}` in it; the
    score is the mean of the digits by their probabilities (DEITA)."""
    max_tokens: Annotated[int, Field(ge=8, le=8192), WHOLE] = 2048
    """Tokens that the model reads: a classifier the first; rows that exceed it in a template get the middle score 3
    (DEITA's fallback)."""

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions, by field path below the block."""
        both = self.label is not None and self.template is not None
        return [("label", "label is of classifiers, template of causal models: give one")] if both else []


class DeitaSpec(EmbeddingSpec):
    """DEITA (arXiv 2312.15685): the best by complexity × quality, summed over exchanges, that are not too near to a
    better one."""

    quality: ScorerSpec | None = None
    """Scores each answer with its prompt. Default: the row's score, which a record, the judge or the quality classifier
    gives; rows without one are dropped."""
    complexity: ScorerSpec | None = None
    """Scores each prompt. Default: every prompt counts 1, and quality alone decides."""
    similarity: Annotated[float, Field(ge=0, le=1)] = 0.9
    """A row is dropped if its cosine to a row that was taken exceeds this (DEITA's, with LLaMA-13B's embeddings). It
    depends on the model: see in the data card how many rows fell to it."""

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions, by field path below the block."""
        scorers = {"quality": self.quality, "complexity": self.complexity}
        return [(f"{name}.{where}", what) for name, scorer in scorers.items() if scorer for where, what in scorer.problems()]


class TaggerSpec(JudgeSpec):
    """A model behind an OpenAI-compatible endpoint that names what prompts ask for. Every answer is paid once, also by
    later runs."""

    max_tokens: PositiveInt = 256
    """Longest list in tokens."""
    token_budget: PositiveInt | None = None
    """No call is made that could lift all calls' tokens above this; rows that are then not asked about have no tag, and
    are dropped."""
    rubric: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    """Completes "name …". Default: the tasks, subjects, constraints and skills that the prompt calls for."""


class TagsSpec(SpecModel):
    """Complexity-first diverse sampling (InsTag, arXiv 2308.07074): rows with most tags first, each with a tag that the
    rows of its round lack; when none is left, a new round begins."""

    tagger: TaggerSpec | None = None
    """Who names the tags. Default: the record's category is the one tag of a row, so that rounds go over categories."""
    min_count: Annotated[int, Field(ge=1, le=1_000_000), WHOLE] = 1
    """Tags of fewer rows are left out as noise. 1 keeps all; InsTag took 20 for millions of tags."""


class KCenterSpec(EmbeddingSpec):
    """Greedy k-center (arXiv 1708.00489): each next row is the one farthest from all that are taken. Covers the data,
    outliers first. Takes time with rows × budget, as one cosine each at most."""


class SelectSpec(SpecModel):
    """Keep a budget of rows by one method. The data card sets it beside a random choice and the longest answers."""

    model_config = validated_by(
        (
            f"[{', '.join(f'has(self.{method})' for method in METHODS)}].exists_one(given, given)",
            f"give exactly one method of {', '.join(METHODS)}",
        ),
        (
            f"[{', '.join(f'has(self.{budget})' for budget in BUDGETS)}].exists_one(given, given)",
            f"give exactly one budget of {', '.join(BUDGETS)}",
        ),
    )

    rows: PositiveInt | None = None
    """Keep at most so many rows."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep at most this share of the rows that reach selection; 1 keeps all that the method does not drop (Cherry: 0.1)."""
    tokens: PositiveInt | None = None
    """Keep at most so many tokens, as the run's tokenizer and chat template count. A row that does not fit any more is
    passed over."""
    random: RandomSpec | None = None
    """Baseline."""
    longest: LongestSpec | None = None
    """Baseline."""
    ifd: IfdSpec | None = None
    """By how much prompts help with answers."""
    deita: DeitaSpec | None = None
    """By scores, without near neighbours."""
    tags: TagsSpec | None = None
    """By tags."""
    k_center: KCenterSpec | None = None
    """By coverage."""

    @property
    def method(self) -> str:
        """The method that is given, in YAML spelling."""
        return self._given(METHODS)[0]

    @property
    def budget(self) -> str:
        """The budget that is given, in YAML spelling."""
        return self._given(BUDGETS)[0]

    @property
    def block(self) -> SpecModel:
        """The method's block."""
        found: SpecModel = getattr(self, attribute(self.method))
        return found

    @property
    def tells_difficulty(self) -> bool:
        """Whether the method measures how hard rows are, so that they can be ordered by it."""
        return (
            self.ifd is not None or self.tags is not None or (self.deita is not None and self.deita.complexity is not None)
        )

    def problems(self, form: str = "messages") -> list[tuple[str, str]]:
        """Contradictions, also with what rows hold, by field path below the block."""
        found = []
        for what, names in (("method", METHODS), ("budget", BUDGETS)):
            given = self._given(names)
            if len(given) != 1:
                found.append(("", f"give exactly one {what} of {', '.join(names)}; here: {' and '.join(given) or 'none'}"))
        if self.deita is not None:
            found += [(f"deita.{where}", words) for where, words in self.deita.problems()]
        asks = {
            "ifd": self.ifd is not None,
            "deita.quality": self.deita is not None and self.deita.quality is not None,
            "deita.complexity": self.deita is not None and self.deita.complexity is not None,
            "tags.tagger": self.tags is not None and self.tags.tagger is not None,
        }
        if form == "text":
            found += [
                (field, "plain text has no prompts to go by; select by another method")
                for field, set_ in asks.items()
                if set_
            ]
        return found

    def _given(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if getattr(self, attribute(name)) is not None]
