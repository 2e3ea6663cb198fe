"""`deduplicate` of `curate`: of rows that repeat each other one stays."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plumbline.api.base import WHOLE, SpecModel, Uri, validated_by
from plumbline.api.curation.selection import EmbeddingSpec

Similarity = Annotated[float, Field(ge=0.3, le=1)]


class MinHashSpec(SpecModel):
    """Near-duplicates by words: MinHash-LSH finds candidates, exact Jaccard similarity decides."""

    model_config = validated_by(("has(self.bands) == has(self.rows)", "bands and rows go together: give both or neither"))

    similarity: Similarity = 0.8
    """Jaccard similarity of two rows' sets of shingles from which on they are near-duplicates (0.8: the Nemotron recipe)."""
    recall: Annotated[float, Field(ge=0.5, le=0.999)] = 0.99
    """Share of the pairs at exactly `similarity` that bands must find; of more similar pairs more are found. High, because pairs found in vain cost
    only a comparison."""
    bands: Annotated[int, Field(ge=1, le=64), WHOLE] | None = None
    """Band hashes of a row; two rows are compared when one is equal, which has probability 1 - (1 - s^rows)^bands. Default: from `similarity`
    and `recall` within 128 hashes in all; 16 bands of 6 rows for 0.8 and 0.99."""
    rows: Annotated[int, Field(ge=1, le=16), WHOLE] | None = None
    """Minima in a band."""
    ngram: Annotated[int, Field(ge=1, le=32), WHOLE] = 5
    """Words in a shingle (5: as datatrove and data-juicer). In scripts written without spaces each character is a word."""
    short_words: Annotated[int, Field(ge=1, le=1000), WHOLE] = 20
    """Two rows of which one has fewer words are compared by shingles of characters: one changed word touches `ngram` shingles, so that
    shingles of words see nothing but equality in short texts. At least `ngram`."""
    short_ngram: Annotated[int, Field(ge=1, le=32), WHOLE] = 5
    """Characters in such a shingle; a row with fewer characters is compared as a whole."""

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions, by field path below the block."""
        found = []
        if (self.bands is None) != (self.rows is None):
            found.append(("bands", "bands and rows go together: give both or neither"))
        if self.short_words < self.ngram:
            found.append(
                ("shortWords", f"{self.short_words} is below ngram ({self.ngram}): a shorter row has no shingle; raise it")
            )
        return found


class SemanticSpec(EmbeddingSpec):
    """Near-duplicates by meaning (SemDeDup): embeddings, k-means, cosine within each cluster."""

    similarity: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Cosine from which on two rows mean the same (0.99: Curator's eps 0.01). It depends on the model: look at the examples in the data card."""
    clusters: Annotated[int, Field(ge=1, le=100_000), WHOLE] | None = None
    """Clusters of k-means; pairs in different ones are not seen. Default: one for 1,000 rows, so that work grows linearly."""


class DeduplicateSpec(SpecModel):
    """Of rows that repeat each other, within and across sources, one stays."""

    exact: bool = True
    """Drop rows whose key is the same text up to case and white space."""
    key: Literal["instruction", "prompt", "answer", "chat"] = "chat"
    """What rows are compared by: the bare `instruction` (the first user turn where a record keeps no input apart), the whole `prompt` (all user
    turns), the `answer`, or the whole `chat`."""
    keep: Literal["first", "longest", "best"] = "first"
    """Which row stays: the `first` in order of sources; the `longest`; the `best` by the record's score (then the longest)."""
    minhash: MinHashSpec | None = None
    """Also drop near-duplicates by words."""
    semantic: SemanticSpec | None = None
    """Also drop near-duplicates by meaning."""
    against: list[Uri] = Field(default=[], max_length=16)
    """Sources whose rows are removed from the dataset, and are not in it: "remove from this what is in B". By every method above."""

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions, by field path below the block."""
        return [] if self.minhash is None else [(f"minhash.{where}", what) for where, what in self.minhash.problems()]
