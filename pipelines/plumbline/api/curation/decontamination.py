"""`decontaminate` of `curate`: rows that hold questions of benchmarks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plumbline.api.base import WHOLE, Name, SpecModel, Uri, list_map, validated_by


class BenchmarkFilesSpec(SpecModel):
    """Questions that rows must not hold, though this run does not evaluate them."""

    model_config = validated_by(("has(self.benchmark) != has(self.fields)", "give either benchmark or fields"))

    name: Name
    """Name in the data card and in reasons."""
    uri: Uri
    """Data file, glob or folder; with `fields` also `hf://datasets/ORG/NAME[@REVISION][/PATH]`."""
    split: str = Field(default="test", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Of a data set of the hub: which split."""
    benchmark: Literal["gsm8k", "mmlu", "humaneval", "ifeval", "promptAnswer"] | None = None
    """Which benchmark's files they are."""
    fields: list[Annotated[str, Field(min_length=1, max_length=100)]] | None = Field(
        default=None, min_length=1, max_length=16
    )
    """Of files of any other benchmark (JSON, JSONL, CSV with a header, Parquet): the fields that make up a question."""
    code: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(default=[], max_length=4)
    """The fields that make up a question's reference program, such as HumanEval's `prompt` and `canonical_solution`."""


class DecontaminateSpec(SpecModel):
    """Rows that hold a question of a benchmark: at least `cover` of its words lie in runs of `ngram` words that are in one
    row too. Shorter questions must be a turn, or whole sentences of one. What more than ten questions share counts for nothing.

    `contamination.json` of the artifact tells which questions occurred, so that evaluation can score the others apart.
    `builtin://skills` is left out: its `train` and `heldout` parts share no task. The report says where other rows went in.
    """

    enabled: bool = True
    """Compare with every benchmark that the run evaluates; which ones are part of the fingerprint."""
    against: list[BenchmarkFilesSpec] = Field(default=[], max_length=32, json_schema_extra=list_map("name"))
    """Further questions, of benchmarks that are evaluated elsewhere."""
    action: Literal["drop", "report"] = "drop"
    """`drop` removes such rows; `report` only tells of them."""
    cover: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a question that makes a row contaminated (Tülu 3: one half)."""
    ngram: Annotated[int, Field(ge=3, le=50), WHOLE] = 8
    """Words of a run (Tülu 3 and Llama 3: 8)."""
    characters: Annotated[int, Field(ge=5, le=100), WHOLE] = 13
    """Characters of a run where a question is written without spaces, as in Chinese (GPT-3 took 13, of words)."""
    code_tokens: Annotated[int, Field(ge=10, le=200), WHOLE] = 24
    """Tokens of a run of program text, whatever the names of variables, without comments (24: about three lines). Of a
    program at least 0.8 must be covered, since half of one may be an idiom; a shorter one is compared as a whole."""
    turns: Literal["user", "all"] = "user"
    """Look into the `user` turns, or into `all`, answers too. Plain text and programs are looked for everywhere."""

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions, by field path below the block."""
        found = []
        if self.against and not self.enabled:
            found.append(("against", "nothing is compared with enabled: false; set it to true, or leave this out"))
        names = [one.name for one in self.against]
        for i, one in enumerate(self.against):
            if (one.benchmark is None) == (one.fields is None):
                found.append((f"against[{i}]", "give either benchmark or fields"))
            if one.benchmark and one.uri.startswith("hf://"):
                found.append(
                    (
                        f"against[{i}].uri",
                        f"'{one.uri}' goes with fields; a benchmark's own files are read from a path or any other URI",
                    )
                )
            if one.code and one.fields is None:
                found.append((f"against[{i}].code", "goes with fields; a benchmark knows its programs itself"))
            if one.name in names[:i]:
                found.append((f"against[{i}].name", f"'{one.name}' names an earlier one too; names are unique"))
        return found

    def external_uris(self) -> dict[str, str]:
        """Inputs from outside the run, by field path below the block."""
        return {f"against[{i}].uri": one.uri for i, one in enumerate(self.against)}
