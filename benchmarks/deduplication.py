"""MinHash deduplication beside datatrove and data-juicer: `python benchmarks/deduplication.py --records FILE [--rows 1000000]`.

Instruction records are repeated with seeded edits: to every original come `near` copies (Jaccard similarity of word 5-grams at
least 0.85) and `far` ones (at most 0.6), so the truth is known whatever the tokenizer: edits replace whole words. Every tool reads the
same JSONL, uses windows of 5 words in 14 bands of 8 rows, and writes the rows that stay; one process each on one core, runs interleaved.
data-juicer is its default operator; the C++ one for Ray is not built in its wheel. Peers go into virtual environments in a temporary folder (`--peers` names one to keep). Writes `benchmarks/results/deduplication.json` and
`.md`. Exit code 1 if a claim does not hold.
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
import venv
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import json_lines, write

ROOT = Path(__file__).resolve().parents[1]
BANDS, ROWS, WORDS, SIMILARITY = 14, 8, 5, 0.8
COPIES = 23
"""Of each original: 42,000 become about a million rows."""
NEAR_SHARE = 0.6
NEEDS = {
    "datatrove": ["datatrove==0.10.1", "orjson", "regex", "spacy", "tokenizers", "xxhash<4"],
    "data_juicer": ["py-data-juicer==1.6.1", "aiohttp"],
}
TOOLS: dict[str, tuple[str, tuple[int, int], list[str]]] = {
    "plumbline": ("plumbline", (BANDS, ROWS), [str(SIMILARITY)]),
    "plumbline, its default bands": ("plumbline", (16, 6), [str(SIMILARITY)]),
    "datatrove": ("datatrove", (BANDS, ROWS), ["default"]),
    "datatrove, str.split": ("datatrove", (BANDS, ROWS), ["split"]),
    "data-juicer": ("data_juicer", (BANDS, ROWS), []),
}
"""Program, bands and rows, other arguments."""
SPEED_UP = 4.0


def edited(words: list[str], near: bool, number: int, draw: random.Random) -> list[str]:
    """A copy with plain words replaced by its own new word: e of them change at most 5e of m - 4 windows, so J ≥ (m - 4 - 5e) / (m - 4 + 5e)."""
    if near:  # 5e ≤ 0.081 windows
        plain = [i for i, word in enumerate(words) if word.isalpha()]
        real = sum(any(map(str.isalnum, word)) for word in words)  # a lone `|` is a word to some tools only
        most = max(0, int(0.081 * (real - WORDS + 1) / WORDS))
        spots = draw.sample(plain, min(len(plain), draw.randint(0, most)))
    else:  # from one of the 5th to 9th on every 6th to 14th: more than 0.277 of the windows change
        spots = list(range(draw.randint(4, min(8, len(words) - WORDS)), len(words), draw.randint(6, 14)))
    new = "new" + str(number).translate(str.maketrans("0123456789", "abcdefghij"))
    copy = list(words)
    for spot in spots:
        copy[spot] = new
    return copy if draw.random() < 0.5 else [word.upper() for word in copy]


def write_corpus(records: Path, rows: int, target: Path) -> dict[int, bool]:
    """Originals, then shuffled copies, as JSONL with `id` and `text`.

    Returns:
        Of each copy's id, whether it is near to its original.
    """
    loaded = json_lines(records)
    texts = {"\n".join(filter(None, (r["instruction"], r.get("input"), r["output"]))) for r in loaded}
    words = [text.split() for text in sorted(texts) if len(text.split()) >= 2 * WORDS]
    draw = random.Random(20)
    words = draw.sample(words, min(len(words), rows // (COPIES + 1)))
    truth: dict[int, bool] = {}
    with target.open("w", encoding="utf-8") as out:
        for number in range(rows):
            text = words[number % len(words)]
            if number >= len(words):
                truth[number] = draw.random() < NEAR_SHARE
                text = edited(text, truth[number], number, draw)
            out.write(json.dumps({"id": str(number), "text": " ".join(text)}) + "\n")
    return truth


def python_of(tool: str, folder: Path) -> tuple[str, str]:
    """An interpreter with the tool, and why there is none."""
    if tool == "plumbline":
        return sys.executable, ""
    home = folder / tool
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *NEEDS[tool]], capture_output=True, text=True, check=False
    )
    return str(python), done.stderr.strip()[-500:] if done.returncode else ""


def measure(name: str, python: str, corpus: Path, truth: dict[int, bool], core: int) -> dict[str, Any]:
    """One run of one tool on one core."""
    tool, (bands, rows), options = TOOLS[name]
    target = corpus.with_name(f"kept-{tool}.jsonl")
    script = ROOT / "benchmarks" / "peers" / f"deduplicate_{tool}.py"
    command = [python, str(script), str(corpus), str(target), str(bands), str(rows), str(WORDS), *options]
    quiet = {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    environment = (
        os.environ | quiet | ({"PYTHONPATH": str(ROOT / "pipelines")} if tool == "plumbline" else {"PYTHONPATH": ""})
    )
    pinned = partial(os.sched_setaffinity, 0, {core})
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, preexec_fn=pinned)
    if process.returncode:
        return {"tool": name, "error": process.stderr.strip()[-800:]}
    times = json.loads(process.stdout.strip().splitlines()[-1])
    with target.open(encoding="utf-8") as lines:
        kept = {int(json.loads(line)["id"]) for line in lines}
    target.unlink()
    near = [number for number, is_near in truth.items() if is_near]
    dropped_near = sum(number not in kept for number in near)
    dropped_far = sum(number not in kept for number, is_near in truth.items() if not is_near)
    size = len(truth) + min(truth)
    return {
        "tool": name,
        "rows": size,
        **{key: round(value, 2) for key, value in times.items()},
        "rowsPerSecond": round(size / times["cpu"]),
        "megabytesPerSecond": round(corpus.stat().st_size / 1e6 / times["cpu"], 2),
        "recall": round(dropped_near / len(near), 4),
        "precision": round(dropped_near / max(1, dropped_near + dropped_far), 4),
        "originalsDropped": sum(number not in kept for number in range(min(truth))),
    }


def best(runs: list[dict[str, Any]], name: str, rows: int) -> dict[str, Any] | None:
    """The fastest run of a tool at a size: what the machine's other work disturbed least."""
    fitting = [run for run in runs if run["tool"] == name and run.get("rows") == rows]
    return max(fitting, key=lambda run: run["rowsPerSecond"], default=None)


def claims(runs: list[dict[str, Any]], peer_rows: list[int]) -> list[tuple[str, bool]]:
    """What is promised, and whether it holds: against each peer at the largest size that both ran.

    Recall is that of our default bands: exact verification makes more bands free of false drops, while peers gain some
    recall by chaining rows that nothing verifies.
    """
    found = []
    size = max(peer_rows)
    same, own = best(runs, "plumbline", size), best(runs, "plumbline, its default bands", size)
    for name in TOOLS:
        theirs = best(runs, name, size)
        if name.startswith("plumbline") or not (same and own and theirs):
            continue
        for bands, ours in (("the same bands", same), ("its default bands", own)):
            faster = ours["rowsPerSecond"] / theirs["rowsPerSecond"]
            found.append(
                (f"{faster:.1f} times the throughput of {name} with {bands} (at least {SPEED_UP:g})", faster >= SPEED_UP)
            )
            what = f"precision {ours['precision']} with {bands} against {theirs['precision']} of {name}"
            found.append((what, ours["precision"] >= theirs["precision"]))
        what = f"recall {own['recall']} with its default bands ({same['recall']} with the same) against {theirs['recall']} of {name}"
        found.append((what, own["recall"] >= theirs["recall"]))
    return found


def table(runs: list[dict[str, Any]]) -> str:
    head = ["tool", "rows", "cpu", "rowsPerSecond", "megabytesPerSecond", "recall", "precision", "originalsDropped"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for run in runs:
        lines.append(
            "| "
            + (f"{run['tool']} | {run['error']}" if "error" in run else " | ".join(str(run[key]) for key in head))
            + " |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True, help="JSONL (.gz) with instruction, input, output; Alpaca's")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="sizes for Plumbline")
    parser.add_argument("--peer-rows", type=int, nargs="+", default=[100_000], help="sizes for all tools")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    parser.add_argument("--peers", type=Path, help="folder with, or for, the virtual environments of the peers")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="plumbline-benchmark-") as scratch:
        pythons: dict[str, str] = {}
        for tool in dict.fromkeys(tool for tool, *_ in TOOLS.values()):
            pythons[tool], trouble = python_of(tool, arguments.peers or Path(scratch))
            if trouble:
                runs.append({"tool": tool, "error": f"cannot be installed: {trouble}"})
                del pythons[tool]
        for rows in sorted({*arguments.rows, *arguments.peer_rows}):
            folder = Path(scratch) / str(rows)
            folder.mkdir()
            corpus = folder / "corpus.jsonl"
            truth = write_corpus(arguments.records, rows, corpus)
            names = [name for name in TOOLS if name.startswith("plumbline") or rows in arguments.peer_rows]
            for _ in range(arguments.repeats):
                for name in names:
                    if TOOLS[name][0] in pythons:
                        runs.append(measure(name, pythons[TOOLS[name][0]], corpus, truth, arguments.core))
                        print(runs[-1], flush=True)
            corpus.unlink()
    checked = claims(runs, arguments.peer_rows)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }
    result = {"machine": machine, "runs": runs, "claims": [{"claim": what, "holds": holds} for what, holds in checked]}
    lines = [f"- {'holds' if holds else 'FAILS'}: {what}" for what, holds in checked]
    text = "\n".join(["# MinHash deduplication, one core", "", str(machine), "", table(runs), "", *lines, ""])
    write("deduplication", result, text)
    print(text)
    return 0 if all(holds for _, holds in checked) else 1


if __name__ == "__main__":
    sys.exit(main())
