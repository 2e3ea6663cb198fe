"""`curate`: sources of any known format become one clean, deduplicated dataset with a data card."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from plumbline.api.base import (
    ArtifactType,
    Input,
    NonNegativeInt,
    PositiveInt,
    SpecModel,
    StageSpec,
    Uri,
    validated_by,
)
from plumbline.api.curation.decontamination import DecontaminateSpec
from plumbline.api.curation.deduplication import DeduplicateSpec
from plumbline.api.curation.filters import FiltersSpec
from plumbline.api.curation.mixing import MixSpec
from plumbline.api.curation.normalisation import NormaliseSpec
from plumbline.api.curation.selection import SelectSpec
from plumbline.api.synthesis.teacher import JUDGE_KEY

SKILLS_COUNT = 1000
"""Tasks of `builtin://skills` where `limit` is not given."""


class SourceSpec(SpecModel):
    """One place that records come from."""

    uri: Uri
    """File, glob or folder, local or any fsspec URI; `hf://datasets/ORG/NAME[@REVISION][/PATH]`; or `builtin://skills`,
    the built-in generator. JSON, JSONL, CSV, Parquet and text, plain, .gz or .zst. Beside data, a README, LICENSE or other
    file that tells about them is left out."""
    format: Literal[
        "auto",
        "hh",
        "pairs",
        "rankings",
        "pandalm",
        "kto",
        "judgments",
        "sharegpt",
        "messages",
        "oasst",
        "superNaturalInstructions",
        "selfInstruct",
        "alpaca",
        "dolly",
        "completion",
        "text",
    ] = "auto"
    """Record format. `auto` recognises it by the fields of the first 20 records. `pairs`: prompt/chosen/rejected;
    `rankings`: UltraFeedback and ranked lists; `pandalm`: two answers with annotators' votes; `kto`: answers with a label;
    `judgments`: with a critique too; `completion`: prompt/completion."""
    name: str | None = Field(default=None, max_length=100)
    """Name in the data card and in each row's provenance. Default: the last part of the URI."""
    licence: str | None = Field(default=None, min_length=1, max_length=100)
    """Recorded in each row that states none itself, such as CC-BY-NC-4.0. None is assumed."""
    limit: PositiveInt | None = None
    """Take only the first records, read by one task. For `builtin://skills`: how many tasks to make (default 1000)."""
    split: str = Field(default="train", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Of a data set of the hub: which split. Of `builtin://skills`: `train` or `heldout`, which share no task."""
    bad_records: Literal["fail", "skip"] = "fail"
    """What a broken line does: `fail` stops with its file and line; `skip` drops it and counts it in the data card.
    A file that was cut off (gzip, JSON array, Parquet) always stops: how much is missing cannot be told."""
    text_unit: Literal["line", "paragraph", "document"] = "line"
    """What a row of a .txt file is: a line (as the `datasets` library has it), a block between blank lines, or the file."""
    per_task: PositiveInt = 100
    """Super-NaturalInstructions: at most so many instances of a task, evenly spaced (Tk-Instruct's number)."""
    paths: Literal["best", "all"] = "best"
    """OpenAssistant: chats along the best-ranked answers only, or along every path of a tree."""


class CurateSpec(StageSpec):
    """Curate instruction or preference data with Ray Data."""

    model_config = validated_by(
        (
            "!has(self.form) || (self.form in ['messages', 'text']) == (self.produces == 'Dataset')",
            "a Dataset holds messages or text, a PreferenceDataset pairs, rankings, labels or judgments",
        ),
    )

    output: ClassVar = None
    inputs: ClassVar = {"dataset": Input(type=ArtifactType.DATASET, required=False, nearest=False)}
    program: ClassVar = "plumbline.stages.curate"
    code_version: ClassVar = "3"
    unfingerprinted: ClassVar = frozenset({"parallelism"})

    sources: list[SourceSpec] = Field(min_length=1, max_length=64)
    """Where records come from, in order; the order decides which of two duplicates stays (the first)."""
    produces: Literal["Dataset", "PreferenceDataset"] = "Dataset"
    """`Dataset`: for supervised tuning. `PreferenceDataset`: for reward models and preference objectives."""
    form: Literal["messages", "text", "pairs", "rankings", "labels", "judgments"] | None = None
    """What rows hold: chats or plain text; prompt/chosen/rejected, prompt/completions/scores, prompt/completion/label, or the latter
    with a judgment. Default: `messages` or `pairs`."""
    normalise: NormaliseSpec = NormaliseSpec()
    """Repairs."""
    max_characters: PositiveInt = 100_000
    """A row with more characters in all is dropped and counted."""
    filters: FiltersSpec = FiltersSpec()
    """Which rows stay."""
    deduplicate: DeduplicateSpec = DeduplicateSpec()
    """Of rows that repeat each other one stays."""
    decontaminate: DecontaminateSpec = DecontaminateSpec()
    """Rows that hold questions of benchmarks."""
    select: SelectSpec | None = None
    """Keep a budget of rows."""
    mix: MixSpec | None = None
    """Shares and order."""
    seed: NonNegativeInt = 0
    """Seed of generated sources and of every random choice."""
    parallelism: PositiveInt = 2
    """How many read tasks run at once. Does not change the result."""

    @property
    def rows_hold(self) -> Literal["messages", "text", "pairs", "rankings", "labels", "judgments"]:
        """The form of rows, with its default."""
        return self.form or ("messages" if self.produces == "Dataset" else "pairs")

    def external_uris(self) -> dict[str, str]:
        found = {f"sources[{i}].uri": source.uri for i, source in enumerate(self.sources)}
        found |= {f"deduplicate.against[{i}]": uri for i, uri in enumerate(self.deduplicate.against)}
        found |= {f"decontaminate.{where}": uri for where, uri in self.decontaminate.external_uris().items()}
        textbook = self.filters.textbook
        examples = {"positive": textbook.positive, "negative": textbook.negative} if textbook else {}
        return found | {f"filters.textbook.{name}": uri for name, uri in examples.items() if uri}

    def external_models(self) -> dict[str, str]:
        select = self.select
        blocks: dict[str, SpecModel | None] = {
            "filters.safety": self.filters.safety,
            "filters.quality": self.filters.quality,
            "deduplicate.semantic": self.deduplicate.semantic,
        }
        if select is not None:
            blocks |= {f"select.{select.method}": select.block}
            blocks |= {f"select.deita.{name}": getattr(select.deita, name, None) for name in ("quality", "complexity")}
        models = {f"{where}.model": getattr(block, "model", None) for where, block in blocks.items()}
        return {where: uri for where, uri in models.items() if uri}

    def avoids_benchmarks(self) -> bool:
        return self.decontaminate.enabled

    def secrets(self) -> dict[str, tuple[str, str]]:
        names = sorted(self._key_secrets())
        return {JUDGE_KEY: (names[0], "apiKey")} if names else {}

    def _key_secrets(self) -> set[str]:
        tagger = self.select.tags.tagger if self.select is not None and self.select.tags is not None else None
        return {judge.key_secret for judge in (self.filters.judge, tagger) if judge is not None and judge.key_secret}

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if self.form is not None and (self.form in ("messages", "text")) != (self.produces == "Dataset"):
            accepted = "messages or text" if self.produces == "Dataset" else "pairs, rankings, labels or judgments"
            found.append(("form", f"'{self.form}' is not accepted with produces: {self.produces}; give {accepted}"))
        blocks: dict[str, NormaliseSpec | FiltersSpec | DeduplicateSpec | DecontaminateSpec] = {
            "normalise": self.normalise,
            "filters": self.filters,
            "deduplicate": self.deduplicate,
            "decontaminate": self.decontaminate,
        }
        for name, block in blocks.items():
            found += [(f"{name}.{where}" if where else name, words) for where, words in block.problems()]
        if self.select is not None:
            chosen = self.select.problems(self.rows_hold)
            found += [(f"select.{where}" if where else "select", words) for where, words in chosen]
        if self.mix is not None:
            found += [(f"mix.{where}", words) for where, words in self.mix.problems(self.select)]
        if len(self._key_secrets()) > 1:
            words = (
                f"another Secret than filters.judge.keySecret; a stage has one: {' or '.join(sorted(self._key_secrets()))}"
            )
            found.append(("select.tags.tagger.keySecret", words))
        return found
