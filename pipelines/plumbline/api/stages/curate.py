"""`curate`: sources of any known format become one clean, deduplicated dataset with a data card."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from plumbline.api.base import ArtifactType, Input, NonNegativeInt, PositiveInt, SpecModel, StageSpec, Uri

SKILLS_COUNT = 1000
"""Tasks of `builtin://skills` where `limit` is not given."""


class SourceSpec(SpecModel):
    """One place that records come from."""

    uri: Uri
    """File, glob or folder, local or any fsspec URI; or `builtin://skills`, the built-in generator. JSON, JSONL (also .gz) and Parquet."""
    format: Literal["auto", "alpaca", "dolly", "sharegpt", "messages", "pairs"] = "auto"
    """Record format. `auto` recognises it by the fields of the first record. `pairs` is prompt/chosen/rejected."""
    name: str | None = Field(default=None, max_length=100)
    """Name in the data card and in each row's provenance. Default: the last part of the URI."""
    limit: PositiveInt | None = None
    """Take only the first records. For `builtin://skills`: how many tasks to make (default 1000)."""
    split: Literal["train", "heldout"] = "train"
    """For `builtin://skills`: which part. The two parts share no task."""
    bad_records: Literal["fail", "skip"] = "fail"
    """What a broken line does: `fail` stops with its file and line; `skip` drops it and counts it in the data card.
    A file that was cut off (gzip, JSON array, Parquet) always stops: how much is missing cannot be told."""


class CurateSpec(StageSpec):
    """Curate instruction or preference data with Ray Data."""

    output: ClassVar = None
    inputs: ClassVar = {"dataset": Input(type=ArtifactType.DATASET, required=False, nearest=False)}
    program: ClassVar = "plumbline.stages.curate"
    unfingerprinted: ClassVar = frozenset({"parallelism"})

    sources: list[SourceSpec] = Field(min_length=1, max_length=64)
    """Where records come from, in order; the order decides which of two duplicates stays (the first)."""
    produces: Literal["Dataset", "PreferenceDataset"] = "Dataset"
    """`Dataset`: chats for supervised tuning. `PreferenceDataset`: prompt/chosen/rejected pairs."""
    deduplicate: Literal["exact", "none"] = "exact"
    """`exact` drops a row whose normalised text (case and white space folded) occurred before."""
    max_characters: PositiveInt = 100_000
    """A row with more characters in all is dropped and counted."""
    seed: NonNegativeInt = 0
    """Seed of generated sources."""
    parallelism: PositiveInt = 2
    """How many read tasks run at once. Does not change the result."""

    def external_uris(self) -> dict[str, str]:
        return {f"sources[{i}].uri": source.uri for i, source in enumerate(self.sources)}
