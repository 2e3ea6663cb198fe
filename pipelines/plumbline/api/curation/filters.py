"""`filters` of `curate`: which rows stay, by what their texts say. Each block is one filter, off until it is given."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plumbline.api.base import (
    WHOLE,
    NonNegativeFloat,
    NonNegativeInt,
    ObjectName,
    PositiveInt,
    Share,
    SpecModel,
    Uri,
    attribute,
    validated_by,
)
from plumbline.api.synthesis.teacher import CallsSpec, EndpointUrl

Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]
Region = Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
PiiType = Literal["secret", "email", "iban", "card", "ip", "phone"]
Rubric = Annotated[str, Field(min_length=1, max_length=2000)]
Part = Literal["chat", "prompt", "answer"]
LENGTHS = ("promptWords", "answerWords", "promptCharacters", "answerCharacters", "turns", "ratio")


class RangeSpec(SpecModel):
    """From `min` to `max`, both included; one that is unset is no bound."""

    min: NonNegativeFloat | None = None
    """The least that is accepted."""
    max: NonNegativeFloat | None = None
    """The most that is accepted."""

    def holds(self, value: float) -> bool:
        """Whether a value lies in it."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class LengthSpec(SpecModel):
    """How long texts are. Prompt: all user turns together; answer: all answers together, of a preference the better one."""

    model_config = validated_by(
        (" || ".join(f"has(self.{name})" for name in LENGTHS), f"give at least one of {', '.join(LENGTHS)}")
    )

    prompt_words: RangeSpec | None = None
    """Words; in scripts written without spaces each character is one. Self-Instruct keeps instructions of 4 to 150."""
    answer_words: RangeSpec | None = None
    """Likewise."""
    prompt_characters: RangeSpec | None = None
    """Unicode code points."""
    answer_characters: RangeSpec | None = None
    """Likewise."""
    turns: RangeSpec | None = None
    """User turns."""
    ratio: RangeSpec | None = None
    """Characters of the answer for one of the prompt."""

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions, by field path below the block."""
        given = {name: getattr(self, attribute(name)) for name in LENGTHS}
        found = [
            (name, f"min {range_.min:g} is above max {range_.max:g}: no row could stay")
            for name, range_ in given.items()
            if range_ and range_.min is not None and range_.max is not None and range_.min > range_.max
        ]
        return found if any(given.values()) else [("", f"give at least one of {', '.join(LENGTHS)}")]


class LanguageSpec(SpecModel):
    """Which language a row is in: by script, common English words, or py3langid's model (97 languages, offline). Noted in
    the row."""

    keep: list[Language] | None = Field(default=None, min_length=1, max_length=100)
    """Codes (ISO 639-1, such as en) that stay. Unset: all; the language is only noted."""
    min_confidence: Share = 0.5
    """Below this probability the language is undetermined (0.5: of Alpaca 1 % are, which are too short to tell; of the others
    3 in 10,000 get a wrong one). Script and common words count as certain."""
    undetermined: Literal["keep", "drop"] = "keep"
    """Rows too short, or too much code and numbers, to tell."""
    mixed: Literal["keep", "drop"] = "keep"
    """Rows whose answer is in another language than the prompt, which names no language and asks for no translation:
    unfinished translations."""


class RepetitionSpec(SpecModel):
    """Answers that repeat themselves. Bounds are for instructions, where lists and code repeat forms: those for web text
    would drop 1 % of Alpaca."""

    max_loop_share: Share = 0.3
    """Share of an answer's words in one phrase said 5 times or more without a break, as models do that got stuck."""
    max_ngram_share: Share = 0.75
    """Share of words in phrases of 5 words that occurred before in the answer, of 50 words at least and not code. Tables and
    exercise plans have up to 0.7."""
    max_line_share: Share = 0.5
    """Share of characters in lines, or paragraphs, that are there before (Gopher: 0.2 for web text), of an answer that is
    not code. Songs with a chorus have up to 0.5. Lines of fewer than 20 characters do not count."""


class SymbolsSpec(SpecModel):
    """Texts that are damaged or not text. Code is left out."""

    max_symbol_share: Share = 0.4
    """Share of characters that are no letters, digits, white space or common punctuation, in an answer of 40 characters at
    least."""
    max_hidden_share: Share = 0.01
    """Share of private-use, tag and direction-override characters. Zero-width spaces are taken out instead."""
    mojibake: Literal["drop", "keep"] = "drop"
    """Text that was decoded wrongly: U+FFFD, or UTF-8 read as Latin-1 (â€™)."""
    placeholders: Literal["drop", "keep"] = "drop"
    """Prompts with a field that nobody filled, such as [insert article here]. In answers, such as letters, they are
    meant."""


class RefusalsSpec(SpecModel):
    """Answers that refuse, at their beginning, in English or Chinese."""

    drop: list[Literal["unable", "missing", "unsafe", "disclaimer"]] = Field(
        default=["unable", "missing", "disclaimer"], min_length=1, max_length=4
    )
    """`unable`: says it cannot (no access, no images), without a reason of safety. `missing`: asks for what the prompt did
    not give. `unsafe`: declines as harmful, illegal or private, or without a reason; kept by default, since a model has to
    learn it. `disclaimer`: begins with "As an AI language model" and goes on to answer."""


class PiiSpec(SpecModel):
    """Personal data and secrets. A redacted value becomes `[email]`, the next other one `[email 2]`, in all texts of the row
    alike."""

    redact: list[PiiType] = Field(default=["secret", "email", "iban", "card", "ip", "phone"], max_length=6)
    """Replaced by a placeholder."""
    drop: list[PiiType] = Field(default=[], max_length=6)
    """Rows that hold one are dropped; goes before `redact`. `secret`: API keys, tokens, private keys. `iban`, `card`: with
    valid check digits."""
    regions: list[Region] = Field(default=["US"], max_length=32)
    """Countries (ISO 3166) whose national phone numbers count, if grouped as there or after a word such as "phone".
    International ones (+49 …) always count."""
    reserved: bool = False
    """Also private addresses and hotlines, which are nobody's. What is set aside for examples (example.com, 555-01xx,
    203.0.113.x) always counts, except in rows about programming, whose code would be wrong without it; with `reserved`
    there too."""


class ClassifierSpec(SpecModel):
    """A transformers sequence classifier: folder or URI with safetensors weights."""

    model: Uri
    """The classifier."""
    label: str | None = Field(default=None, min_length=1, max_length=200)
    """Label whose probability is the score. Unset, for models with one output: its value as it is."""
    reads: Part = "chat"
    """The whole chat, the prompt (user turns), or the answers (of a preference the better one). Rows whose answer is labelled
    bad (KTO) are judged by `prompt` alone, else they stay."""
    max_tokens: Annotated[int, Field(ge=8, le=8192), WHOLE] = 512
    """Tokens that the model reads of it, if it has positions for as many: the first, and of the answer too where both do not
    fit (512: BERT's)."""


class SafetySpec(ClassifierSpec):
    """Drop rows that a classifier holds for unsafe."""

    max_score: float = 0.5
    """Rows that score more are dropped (0.5: the likelier of two labels)."""


class QualitySpec(ClassifierSpec):
    """Drop rows that a classifier holds for poor; the score is noted in the row."""

    min_score: float
    """Rows that score less are dropped. Models differ: FineWeb-Edu's keeps from 3 (of 5) on."""


class JudgeSpec(SpecModel):
    """A model behind an OpenAI-compatible endpoint, for `rating` and `textbook.annotate`. Every verdict is paid once, also by
    later runs."""

    endpoint: EndpointUrl
    """Base URL; `/chat/completions` is appended to it."""
    model: Annotated[str, Field(min_length=1, max_length=200)]
    """Model name at the endpoint."""
    key_secret: ObjectName | None = None
    """Name of the Secret whose `apiKey` is the endpoint's key. A local run reads PLUMBLINE_JUDGE_KEY instead."""
    max_tokens: PositiveInt = 1024
    """Longest verdict in tokens: reasons first, then the rating."""
    token_budget: PositiveInt | None = None
    """No call is made that could lift all calls' tokens above this; rows that are then not judged are dropped and counted."""
    calls: CallsSpec = CallsSpec()
    """How calls are made."""


class RatingSpec(SpecModel):
    """Drop rows that the judge rates low, of 0 to 5 (AlpaGasus, arXiv 2307.08701); the rating is noted in the row. Answers
    labelled bad (KTO) stay unrated."""

    min_score: Annotated[float, Field(ge=0, le=5)] = 4.5
    """Rows rated lower are dropped (AlpaGasus: 4.5 kept 9,229 of Alpaca's 52,002). Code suffers: mix by category."""
    rubric: Rubric | None = None
    """Completes "Rate …". Default: how accurate, helpful and complete the answer is."""


class AnnotateSpec(SpecModel):
    """Examples for the textbook classifier are rows of this stage, rated by the judge."""

    rows: Annotated[int, Field(ge=100, le=1_000_000), WHOLE] = 1000
    """How many, drawn with the seed."""
    good_from: Annotated[float, Field(ge=0, le=5)] = 4.0
    """Rows rated so or higher are positive examples."""
    rubric: Rubric | None = None
    """Completes "Rate …". Default: how much a student would gain from the text."""


class TextbookSpec(SpecModel):
    """Drop rows of little educational value (Phi-1, arXiv 2306.11644): a classifier (TF-IDF and logistic regression) trained
    in the stage."""

    model_config = validated_by(
        ("has(self.positive) == has(self.negative)", "positive and negative go together"),
        ("has(self.positive) != has(self.annotate)", "give either positive and negative, or annotate"),
    )

    positive: Uri | None = None
    """Examples of what to keep, in any format that sources may have."""
    negative: Uri | None = None
    """Examples of what to drop."""
    annotate: AnnotateSpec | None = None
    """Or let a judge rate some of the rows."""
    min_score: Share = 0.5
    """Rows less probably positive are dropped."""
    min_accuracy: Annotated[float, Field(ge=0.5, le=1)] = 0.8
    """The stage fails if the classifier tells fewer of the examples kept aside (a fifth) rightly, each class counting one
    half."""
    seed: NonNegativeInt = 0
    """Which examples are kept aside, and which rows a judge rates."""

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions, by field path below the block."""
        if (self.positive is None) != (self.negative is None):
            return [("negative" if self.negative is None else "positive", "positive and negative go together")]
        if (self.positive is None) == (self.annotate is None):
            return [("", "give either positive and negative, or annotate")]
        return []


class FiltersSpec(SpecModel):
    """Filters of rows, each off until it is given; `{}` is one with its defaults. Every drop is counted by reason."""

    model_config = validated_by(
        (
            "has(self.judge) == (has(self.rating) || (has(self.textbook) && has(self.textbook.annotate)))",
            "judge goes with rating or textbook.annotate",
        )
    )

    length: LengthSpec | None = None
    """Bounds on lengths."""
    symbols: SymbolsSpec | None = None
    """Damaged texts."""
    refusals: RefusalsSpec | None = None
    """Answers that refuse."""
    repetition: RepetitionSpec | None = None
    """Answers that repeat themselves."""
    language: LanguageSpec | None = None
    """Languages."""
    pii: PiiSpec | None = None
    """Personal data and secrets."""
    safety: SafetySpec | None = None
    """A safety classifier."""
    quality: QualitySpec | None = None
    """A quality classifier."""
    textbook: TextbookSpec | None = None
    """Educational value."""
    judge: JudgeSpec | None = None
    """Who rates."""
    rating: RatingSpec | None = None
    """Ratings by the judge; the last filter, since every call may cost."""

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions, by field path below the block."""
        blocks = {"length": self.length, "textbook": self.textbook}
        found = [
            (f"{name}.{where}".rstrip("."), what)
            for name, block in blocks.items()
            if block is not None
            for where, what in block.problems()
        ]
        asks = self.rating is not None or (self.textbook is not None and self.textbook.annotate is not None)
        if asks != (self.judge is not None):
            found.append(("judge", "judge goes with rating or textbook.annotate: who rates, and what for"))
        return found
