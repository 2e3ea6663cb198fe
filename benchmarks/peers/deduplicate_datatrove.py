"""MinHash deduplication of a JSONL file by datatrove, its four steps in one process: IN.jsonl OUT.jsonl BANDS ROWS WORDS TOKENIZER.

TOKENIZER `default` is datatrove's for English (spaCy); `split` gives it `str.split` instead, which costs next to nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


class Split:
    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def cpu_seconds() -> float:
    """Of this process and those that it started."""
    return sum(os.times()[:4])


def main(source: Path, target: Path, bands: int, rows: int, words: int, tokenizer: str) -> None:
    config = MinhashConfig(n_grams=words, num_buckets=bands, hashes_per_bucket=rows)
    work = target.parent / f"{target.stem}-work"

    def reader() -> JsonlReader:
        return JsonlReader(str(source.parent), glob_pattern=source.name)

    signature = MinhashDedupSignature(output_folder=f"{work}/signatures", config=config)
    signature.word_tokenizer.word_tokenize("Load it before the clock starts.")
    if tokenizer == "split":
        signature.word_tokenizer = Split()
    began, cpu = time.perf_counter(), cpu_seconds()
    steps = [
        ([reader(), signature], 1),
        ([MinhashDedupBuckets(f"{work}/signatures", f"{work}/buckets", config=config)], bands),
        ([MinhashDedupCluster(f"{work}/buckets", f"{work}/remove", config=config)], 1),
        (
            [
                reader(),
                MinhashDedupFilter(f"{work}/remove"),
                JsonlWriter(str(target.parent), output_filename=target.name, compression=None),
            ],
            1,
        ),
    ]
    for i, (pipeline, tasks) in enumerate(steps):
        LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=1, logging_dir=f"{work}/logs{i}").run()
    print(json.dumps({"wall": time.perf_counter() - began, "cpu": cpu_seconds() - cpu}))
    shutil.rmtree(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:6]), sys.argv[6])
