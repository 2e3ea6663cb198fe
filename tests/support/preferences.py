"""Preference datasets about the built-in skills, as finished artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from plumbline.artifacts import Artifact, file_digest
from plumbline.builtin import skills
from plumbline.data.dataset import DatasetWriter


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def rows(form: str, count: int) -> list[dict[str, Any]]:
    """Right answers are better than wrong ones, and half an answer is in between."""
    made: list[dict[str, Any]] = []
    for i, task in enumerate(skills.tasks(count, split="train", seed=1)):
        prompt, wrong = [{"role": "user", "content": task.prompt}], task.answer[::-1] + "?"
        good = i % 2 == 0
        made.append(
            {
                "pairs": {"prompt": prompt, "chosen": say(task.answer), "rejected": say(wrong)},
                "rankings": {
                    "prompt": prompt,
                    "completions": [say(wrong), say(task.answer), say(task.answer + "?")],
                    "scores": [0.0, 2.0, 1.0],
                },
                "labels": {"prompt": prompt, "completion": say(task.answer if good else wrong), "label": good},
                "judgments": {
                    "prompt": prompt,
                    "completion": say(task.answer if good else wrong),
                    "label": good,
                    "judgment": "Right." if good else f"Wrong, it is {task.answer}.",
                },
            }[form]
        )
    return made


def dataset(folder: Path, form: str, count: int = 24) -> Artifact:
    table = pa.Table.from_pylist(rows(form, count))
    with DatasetWriter(
        folder, table.schema.insert(0, pa.field("source", pa.string())).insert(1, pa.field("format", pa.string()))
    ) as writer:
        blank = pa.array([""] * len(table))
        writer.write(table.add_column(0, "source", blank).add_column(1, "format", blank))
    files = {
        str(path.relative_to(folder)): {"sha256": file_digest(path), "bytes": path.stat().st_size}
        for path in folder.rglob("*.parquet")
    }
    return Artifact(str(folder), {"files": files, "stage": "data", "kind": "curate", "details": {"rows": count}})
