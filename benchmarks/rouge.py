"""Self-Instruct's rule (ROUGE-L F to every earlier instruction at most 0.7) beside brute force: `python benchmarks/rouge.py --records FILE`.

Instructions with seeded edits between them are admitted one after the other. Compared with: the pool compared one by one, as Self-Instruct
does, with `rouge_score` (installed into a temporary folder; timed on some instructions against the full pool, and scaled) and
with RapidFuzz's bit-parallel LCS in a Python loop (likewise); and RapidFuzz over the whole pool in C, in full, which
also gives the decisions to compare with. One thread each, CPU seconds. Writes `benchmarks/results/rouge.json` and `.md`. Exit code 1 if
a decision differs or pruning is not 20 times faster than brute force, the one in C.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq
from side_by_side import json_lines, write

from plumbline.data.rouge import RougePool, tokens_of

SPEED_UP = 20.0
EDITED_SHARE = 0.2
PROBES = 20
"""Instructions that are timed against the full pool where brute force would take hours."""
ROUGE_SCORE = """
import json, sys, time
from rouge_score import rouge_scorer
pool, probes = json.load(sys.stdin)
scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
began = time.process_time()
above = [max(scorer.score(probe, other)["rougeL"].fmeasure for other in pool) > 0.7 for probe in probes]
print(json.dumps([time.process_time() - began, above]))
"""


def instructions(records: Path, count: int) -> list[str]:
    """Real instructions; a fifth are earlier ones with a share of words left out or replaced."""
    real = [record["instruction"] for record in json_lines(records)]
    draw = random.Random(7)
    texts: list[str] = []
    for text in real[:count]:
        if texts and draw.random() < EDITED_SHARE:
            share = draw.random() / 2
            text = " ".join(
                draw.choice(("", "new")) if draw.random() < share else word for word in draw.choice(texts).split()
            )
        texts.append(text)
    return texts


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def pruned(texts: list[str]) -> list[bool]:
    pool = RougePool(0.7)
    return [pool.admit(text) is None for text in texts]


def brute_force(texts: list[str]) -> list[bool]:
    """LCS with the whole pool, in C; F > 7/10 in whole numbers."""
    numbers: dict[str, int] = {}
    pool: list[str] = []  # a character a token: the quickest form for RapidFuzz
    lengths: list[int] = []
    decisions = []
    for text in texts:
        sequence = "".join(chr(numbers.setdefault(token, len(numbers))) for token in tokens_of(text))
        common = (
            process.cdist([sequence], pool, scorer=LCSseq.similarity, dtype=np.int32, workers=1)[0] if pool else np.zeros(0)
        )
        alone = not (20 * common > 7 * (len(sequence) + np.array(lengths))).any()
        decisions.append(alone)
        if alone:
            pool.append(sequence)
            lengths.append(len(sequence))
    return decisions


def one_by_one(pool: list[str], probes: list[str]) -> list[bool]:
    """Every text of the pool for each probe, in Python."""
    sequences, wanted = ([tokens_of(text) for text in texts] for texts in (pool, probes))
    return [
        max(20 * LCSseq.similarity(one, other) - 7 * (len(one) + len(other)) for other in sequences) > 0 for one in wanted
    ]


def by_rouge_score(pool: list[str], probes: list[str]) -> tuple[float, list[bool]]:
    with tempfile.TemporaryDirectory(prefix="plumbline-benchmark-") as folder:
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--target",
            folder,
            "rouge-score==0.1.2",
            "six",
            "numpy",
        ]
        subprocess.run(install, check=True, capture_output=True)
        done = subprocess.run(
            [sys.executable, "-c", ROUGE_SCORE], input=json.dumps([pool, probes]), capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": folder},
        )  # fmt: skip
    seconds, above = json.loads(done.stdout)
    return seconds, above


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True, help="JSONL (.gz) with instruction; Alpaca's")
    parser.add_argument("--count", type=int, default=20_000)
    options = parser.parse_args()
    texts = instructions(options.records, options.count)
    ours, decisions = min((timed(lambda: pruned(texts)) for _ in range(3)), key=lambda run: run[0])
    in_c, expected = timed(lambda: brute_force(texts))
    probes = texts[:: len(texts) // PROBES][:PROBES]
    pool = [text for text, alone in zip(texts, decisions, strict=True) if alone and text not in probes]
    # A pool that grows from nothing is half full on average; instructions that are refused early save brute force little.
    scale = len(texts) / len(probes) / 2
    looped, loop_above = timed(lambda: one_by_one(pool, probes))
    scored, score_above = by_rouge_score(pool, probes)
    seconds = {"plumbline": ours, "RapidFuzz over the pool in C": in_c}
    seconds |= {"RapidFuzz one by one (scaled)": looped * scale, "rouge_score one by one (scaled)": scored * scale}
    same, loop_same = decisions == expected, loop_above == score_above
    record = {
        "instructions": len(texts), "admitted": sum(decisions), "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "times": {name: round(value / ours, 1) for name, value in seconds.items()}, "sameDecisions": same, "sameAsRougeScore": loop_same,
        "cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(),
    }  # fmt: skip
    lines = [f"# ROUGE-L above 0.7 among {len(texts):,} instructions, {sum(decisions):,} admitted", ""]
    lines += ["| method | CPU seconds | times ours |", "|---|---|---|"]
    lines += [f"| {name} | {value:.2f} | {value / ours:.1f} |" for name, value in seconds.items()]
    lines += [
        "",
        f"Same decisions as brute force: {'yes' if same else 'NO'}; as `rouge_score` on {len(probes)} probes: {'yes' if loop_same else 'NO'}.",
        "",
    ]
    text = "\n".join(lines)
    write("rouge", record, text)
    print(text)
    return 0 if same and loop_same and in_c >= SPEED_UP * ours else 1


if __name__ == "__main__":
    sys.exit(main())
