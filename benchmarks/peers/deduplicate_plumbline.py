"""MinHash deduplication of a JSONL file by Plumbline's functions, in one process: IN.jsonl OUT.jsonl BANDS ROWS WORDS SIMILARITY."""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np

from plumbline.data.deduplication.clusters import drop_repeats, ranks
from plumbline.data.deduplication.minhash import MinHash, band_hashes, border_hashes
from plumbline.data.deduplication.near import near_duplicates
from plumbline.data.deduplication.shingles import Shingling

BATCH = 2000  # rows, as in a Ray Data block


def cpu_seconds() -> float:
    """Of this process and those that it started."""
    return sum(os.times()[:4])


def main(source: str, target: str, bands: int, rows: int, words: int, similarity: float) -> None:
    settings = MinHash(
        similarity, bands, rows, Shingling(words=words, short_words=words)
    )  # short texts as late as peers drop them
    band_hashes(["Build the tables before the clock starts, as a worker does once: café."], settings)
    began, cpu = time.perf_counter(), cpu_seconds()
    with open(source, encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    texts = [record["text"] for record in records]
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    hashes = np.concatenate([band_hashes(texts[i : i + BATCH], settings) for i in range(0, len(texts), BATCH)])
    border = border_hashes(texts, settings)
    hashed = cpu_seconds()
    near = near_duplicates(hashes, lengths, lambda wanted: [texts[i] for i in wanted], settings, border)
    dropped = set(drop_repeats(near.groups, ranks("first", lengths)).dropped.tolist())
    found = cpu_seconds()
    with open(target, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(record) + "\n" for i, record in enumerate(records) if i not in dropped)
    total = cpu_seconds() - cpu
    print(json.dumps({"wall": time.perf_counter() - began, "cpu": total, "find": found - hashed, "compared": near.compared}))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), float(sys.argv[6]))
