"""`extendTokenizer`: more tokens for a language that the base hardly knows."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from plumbline.api.base import WHOLE, ArtifactType, Input, StageSpec, Uri


class ExtendTokenizerSpec(StageSpec):
    """Add tokens to the tokenizer and rows to the embeddings (as Chinese LLaMA did: 20,000; Cui et al. 2023, arXiv 2304.08177).

    Old tokens keep ids and rows, and a text without new tokens its encoding. Train the rows by `embeddings` of an `sft` stage.
    """

    inputs: ClassVar = {
        "model": Input(type=ArtifactType.MODEL, default_to_base=True),
        "dataset": Input(type=ArtifactType.DATASET, unless="texts"),
    }
    output: ClassVar = ArtifactType.MODEL
    program: ClassVar = "plumbline.stages.extend_tokenizer"
    code_version: ClassVar = "2"

    texts: Annotated[list[Uri], Field(min_length=1, max_length=64)] | None = None
    """Files to learn tokens from, beside the dataset input: plain text (.txt), or records with a `text` field."""
    tokens: Annotated[int, Field(ge=1, le=500_000), WHOLE] = 20_000
    """How many tokens to add at most; fewer come where the texts repeat too little. A new row starts as the mean of the rows of
    the pieces that its token replaces."""
    character_coverage: Annotated[float, Field(ge=0, le=1)] = 0.9995
    """Single characters become tokens, the most frequent first, until they make up this share of the text (SentencePiece: 0.9995
    for Chinese and Japanese), or fewer where `tokens` are few and words save more; the rest are words and their parts."""
    max_token_length: Annotated[int, Field(ge=1, le=64), WHOLE] = 16
    """Longest new token in characters (SentencePiece: 16)."""
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Share of texts, told by their hash, on which tokens per character are measured and from which nothing is learned."""
    max_characters: Annotated[int, Field(ge=100_000, le=2**31 - 1), WHOLE] = 20_000_000
    """Most characters to learn from; of more, a share told by hash is taken. Bounds memory: 20 million take 1.6 GB."""

    def external_uris(self) -> dict[str, str]:
        return {f"texts[{i}]": uri for i, uri in enumerate(self.texts or [])}
