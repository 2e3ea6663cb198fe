"""MinHash deduplication of a JSONL file by data-juicer's `document_minhash_deduplicator`: IN.jsonl OUT.jsonl BANDS ROWS WORDS."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time

from data_juicer.core.data import NestedDataset
from data_juicer.ops.deduplicator.document_minhash_deduplicator import DocumentMinhashDeduplicator
from datasets import Dataset


def cpu_seconds() -> float:
    """Of this process and those that it started."""
    return sum(os.times()[:4])


def main(source: str, target: str, bands: int, rows: int, words: int) -> None:
    operator = DocumentMinhashDeduplicator(
        window_size=words, num_permutations=bands * rows, num_bands=bands, num_rows_per_band=rows, num_proc=1
    )
    began, cpu = time.perf_counter(), cpu_seconds()
    with tempfile.TemporaryDirectory() as cache:
        dataset = NestedDataset(Dataset.from_json(source, cache_dir=cache))
        operator.run(dataset).to_json(target)
    print(json.dumps({"wall": time.perf_counter() - began, "cpu": cpu_seconds() - cpu}))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]))
