"""`extendTokenizer`: more tokens for a language that the base hardly knows."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from plumbline.api.base import ArtifactType, Input, PositiveInt, StageSpec, Uri


class ExtendTokenizerSpec(StageSpec):
    """Add tokens to the tokenizer and rows to the embeddings (as Chinese LLaMA did: 20,000)."""

    inputs: ClassVar = {
        "model": Input(type=ArtifactType.MODEL, default_to_base=True),
        "dataset": Input(type=ArtifactType.DATASET, required=False),
    }
    output: ClassVar = ArtifactType.MODEL

    texts: list[Uri] = Field(default=[], max_length=64)
    """Plain-text files to learn tokens from, beside the dataset input."""
    tokens: PositiveInt = 20_000
    """How many tokens to add; new rows start as the mean of the old pieces."""

    def external_uris(self) -> dict[str, str]:
        return {f"texts[{i}]": uri for i, uri in enumerate(self.texts)}
