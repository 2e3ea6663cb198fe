"""What the benchmarks share: where results go, records, random models, measurements in processes of their own, ratios, and how claims are told."""

from __future__ import annotations

import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = {"small": (4, 256, 8, 4), "medium": (8, 512, 8, 4)}
"""Layers, hidden size, heads and key-value heads of models of 4 and 25 million parameters."""
VOCABULARY = 2048
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
Table = Sequence[dict[str, Any]]


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file (.gz)."""
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def random_llama(shape: str, **special_tokens: Any) -> Any:
    """A Llama-shaped model of a shape's size, the same in every process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, hidden, heads, kv = SHAPES[shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=hidden * 3, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=2048, tie_word_embeddings=False,
        **special_tokens,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def step_marks(trainer: Any) -> list[float]:
    """Processor seconds at the start of every step of a transformers `Trainer` and at the end of the last; filled as it trains."""
    from transformers import TrainerCallback

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.process_time())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.process_time())

    trainer.add_callback(Clock())
    return marks


def in_child(script: str, *arguments: str) -> dict[str, Any]:
    """What a benchmark prints as its last line, as JSON, in a process of its own.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        raise SystemExit(f"{Path(script).name} {' '.join(arguments)} failed ({done.returncode}):\n{said}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def ratio(ones: Sequence[float], others: Sequence[float]) -> tuple[float, str]:
    """Median of the ratios of the same turn, and their range in words."""
    ratios = sorted(one / other for one, other in zip(ones, others, strict=True))
    return statistics.median(ratios), f"{ratios[0]:.2f} to {ratios[-1]:.2f}"


def machine() -> dict[str, Any]:
    return {"processor": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}


def lines_of(columns: Sequence[str], table: Table) -> str:
    """A table of Markdown; rows have their values in the order of the columns."""
    rows = "".join("| " + " | ".join(str(value) for value in row.values()) + " |\n" for row in table)
    return "| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + f"|\n{rows}"


def write(name: str, record: dict[str, Any], page: str) -> None:
    """`results/NAME.json` and `.md`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")


def judge(
    name: str, head: str, columns: Sequence[str], table: Table, claims: Sequence[tuple[bool, str]], **facts: Any
) -> int:
    """Write a table and the claims upon it, and print the claims.

    Args:
        name: of the files.
        head: title and words above the table.
        columns, table: see `lines_of`.
        claims: whether one holds, and what it says.
        facts: what else the JSON file has, before the table.

    Returns:
        Exit code: 1 if a claim does not hold.
    """
    verdicts = "".join(f"- {'holds' if holds else 'DOES NOT HOLD'}: {claim}\n" for holds, claim in claims)
    record = {**facts, "table": table, "claims": [{"holds": holds, "claim": claim} for holds, claim in claims]}
    write(name, record, f"# {head}\n\n{lines_of(columns, table)}\n{verdicts}")
    print(verdicts)
    return 0 if all(holds for holds, _ in claims) else 1
