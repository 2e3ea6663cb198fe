"""Tokens per character on Chinese after `extendTokenizer`: `python benchmarks/tokenizer.py --records FILE...`.

The built-in model's tokenizer, which has no Chinese at all, gets more and more tokens, learned on 95 % of the records and
measured on the rest. Beside it, with as many tokens and the same texts: a byte-level BPE tokenizer trained from nothing (what
could be had without an old vocabulary to keep), and the same words as `added_tokens`, the easy way that is often taken.
CPU seconds and peak memory are of a process for each. Writes `benchmarks/results/tokenizer.json` and `.md`. Exit code 1 if a text
does not decode to itself, an encoding is not the old one with pieces drawn together, or ours needs over a tenth more tokens than one
trained from nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from side_by_side import json_lines, write
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from plumbline.external import tiny_folder
from plumbline.models.corpus import gather
from plumbline.models.extend import extend
from plumbline.models.fertility import fertility

COVERAGE, LENGTH, MARGIN = 0.9995, 16, 1.1
DEFINITION = json.loads((tiny_folder() / "tokenizer.json").read_text())
KNOWN = 522


def texts(files: list[Path]) -> tuple[list[str], list[str]]:
    """Lines of the records' fields to learn from and to measure on."""
    lines = []
    for file in files:
        for record in json_lines(file):
            lines += [
                ("zh", part) for key in ("instruction", "input", "output") for part in (record.get(key) or "").splitlines()
            ]
    learn, measure = gather([(source, line) for source, line in lines if line], 0.05, 20_000_000)
    return learn["zh"], measure["zh"]


def ours(learn: list[str], measure: list[str], count: int) -> dict[str, Any]:
    began = time.process_time()
    made = extend(DEFINITION, learn, count, COVERAGE, LENGTH)
    seconds = time.process_time() - began
    old, new = Tokenizer.from_str(json.dumps(DEFINITION)), Tokenizer.from_str(json.dumps(made.definition))
    found = fertility(old, new, made.first, measure).report()
    right = True
    for text in measure:
        before, after = (tokenizer.encode(text, add_special_tokens=False).ids for tokenizer in (old, new))
        expanded = [part for i in after for part in (made.parts[i - KNOWN] if i >= KNOWN else (i,))]
        right = right and expanded == before and new.decode(after) == old.decode(before)
    rate = found["tokensPerCharacter"]
    return {"rate": rate["after"], "before": rate["before"], "seconds": seconds, "right": right, "used": found["used"], "added": len(made.parts)}  # fmt: skip


def from_nothing(learn: list[str], measure: list[str], count: int) -> dict[str, Any]:
    began = time.process_time()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        learn, trainers.BpeTrainer(vocab_size=KNOWN + count, initial_alphabet=alphabet, show_progress=False)
    )
    return {"rate": _rate(tokenizer, measure), "seconds": time.process_time() - began, "right": True}


def as_added_tokens(learn: list[str], measure: list[str], count: int) -> dict[str, Any]:
    began = time.process_time()
    made = extend(DEFINITION, learn, count, COVERAGE, LENGTH)
    new = Tokenizer.from_str(json.dumps(made.definition))
    words = [word for word in (new.decode([made.first + i]).strip() for i in range(len(made.parts))) if "\ufffd" not in word]
    old = Tokenizer.from_str(json.dumps(DEFINITION))
    plain = [old.decode(old.encode(text).ids) for text in measure]
    old.add_tokens([AddedToken(word, normalized=False) for word in words])
    seconds = time.process_time() - began
    right = all(old.decode(old.encode(text).ids) == expected for text, expected in zip(measure, plain, strict=True))
    return {"rate": _rate(old, measure), "seconds": seconds, "right": right}


def _rate(tokenizer: Tokenizer, measure: list[str]) -> float:
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(measure, add_special_tokens=False))
    return tokens / sum(map(len, measure))


WAYS: dict[str, Callable[..., dict[str, Any]]] = {
    "extended": ours,
    "trained from nothing": from_nothing,
    "added_tokens": as_added_tokens,
}


def _apart(way: str, files: list[Path], count: int, answer: Any) -> None:
    learn, measure = texts(files)
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = WAYS[way](learn, measure, count)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started) / 1024
    characters = {"learn": sum(map(len, learn)), "measure": sum(map(len, measure))}
    answer.put({"way": way, "tokens": count, "peakMiB": round(peak), "characters": characters, **found})


def measured(way: str, files: list[Path], count: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_apart, args=(way, files, count, answer))
    process.start()
    found = answer.get()
    process.join()
    return dict(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True, nargs="+", help="JSONL (.gz) in Alpaca's form")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 4000, 10_000, 20_000])
    options = parser.parse_args()
    rows = [measured(way, options.records, count) for count in options.tokens for way in WAYS]
    characters = rows[0]["characters"]
    record = {"rows": rows, "cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    lines = [
        f"# Tokens a character on {characters['measure']:,} characters of Chinese, learned on {characters['learn']:,}",
        "",
    ]
    lines += [f"Before: {rows[0]['before']:.3f}.", ""]
    lines += [
        "| new tokens | way | tokens a character | texts decode | CPU seconds | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['tokens']:,} | {row['way']} | {row['rate']:.3f} | {'as before' if row['right'] else 'otherwise'} | "
        f"{row['seconds']:.1f} | {row['peakMiB']:,} |"
        for row in rows
    ]
    print("\n".join(lines))
    write("tokenizer", record, "\n".join(lines) + "\n")
    rates = {(row["way"], row["tokens"]): row["rate"] for row in rows}
    close = all(rates["extended", n] <= MARGIN * rates["trained from nothing", n] for n in options.tokens)
    return 0 if close and all(row["right"] for row in rows if row["way"] == "extended") else 1


if __name__ == "__main__":
    raise SystemExit(main())
