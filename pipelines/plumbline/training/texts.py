"""Plain text → sequences to train on. They lie on disk: every machine tokenises a dataset once, see `plumbline.data.mapped`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.artifacts import Artifact
from plumbline.data.dataset import content_key, part_names
from plumbline.data.mapped import Rows, mapped
from plumbline.training.encode import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS, DOCUMENTS = 1_000_000, 4096  # so many are tokenised at a time
SCHEMA = pa.schema([("ids", pa.list_(pa.int32())), ("document", pa.int64())])


def text_sequences(dataset: Artifact, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Rows:
    """All sequences of a dataset of texts, in order: `ids`, and the number of the `document` that they are of.

    Raises:
        ArtifactCorrupt: a file is missing or differs from the manifest.
    """
    known = f"{tokenizer.backend_tokenizer.to_str()} {tokenizer.eos_token_id} {max_length}"
    key = content_key(dataset, "text", hashlib.sha256(known.encode()).hexdigest())

    def batches() -> Iterator[pa.RecordBatch]:
        for numbers, texts in _groups(_documents(dataset)):
            encoded = encode_texts(tokenizer, texts, max_length)
            pairs = [(ids, number) for number, parts in zip(numbers, encoded, strict=True) for ids in parts]
            yield pa.RecordBatch.from_arrays(
                [pa.array([ids for ids, _ in pairs], SCHEMA.field("ids").type), pa.array([n for _, n in pairs], pa.int64())],
                schema=SCHEMA,
            )

    return mapped(key, lambda: pa.RecordBatchReader.from_batches(SCHEMA, batches()))


def measure(sequences: Rows, documents: int) -> dict[str, int]:
    """What became of a dataset's documents: `documents`, `split` ones among them and `leftOut` ones, which have nothing to learn;
    `sequences`, and `targets`, the tokens to learn."""
    _, parts = np.unique(sequences.table["document"].to_numpy(), return_counts=True)
    lengths = sum(len(chunk.flatten()) for chunk in sequences.table["ids"].chunks)
    return {
        "documents": documents,
        "split": int((parts > 1).sum()),
        "leftOut": documents - len(parts),
        "sequences": len(sequences),
        "targets": lengths - len(sequences),
    }


def _documents(dataset: Artifact) -> Iterator[str]:
    folder = dataset.local()
    for name in part_names(dataset):
        for batch in pq.ParquetFile(folder / name).iter_batches(batch_size=256, columns=["text"]):
            yield from batch["text"].to_pylist()


def _groups(documents: Iterator[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Documents and their numbers, some at a time."""
    numbers: list[int] = []
    texts: list[str] = []
    size = 0
    for number, text in enumerate(documents):
        numbers.append(number)
        texts.append(text)
        size += len(text)
        if size >= CHARACTERS or len(texts) == DOCUMENTS:
            yield numbers, texts
            numbers, texts, size = [], [], 0
    if texts:
        yield numbers, texts
