"""Preference datasets about the built-in skills, as finished artifacts; and jobs on them that die and go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from plumbline.artifacts import Artifact, file_digest
from plumbline.builtin import skills
from plumbline.data.dataset import DatasetWriter
from plumbline.training.loop import ReportStep
from plumbline.training.world import World

ALONE = World(0, 1, torch.device("cpu"))


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
    return written(folder, rows(form, count))


def written(folder: Path, content: list[dict[str, Any]]) -> Artifact:
    """These rows as a finished artifact."""
    table = pa.Table.from_pylist(content)
    with DatasetWriter(
        folder, table.schema.insert(0, pa.field("source", pa.string())).insert(1, pa.field("format", pa.string()))
    ) as writer:
        blank = pa.array([""] * len(table))
        writer.write(table.add_column(0, "source", blank).add_column(1, "format", blank))
    files = {
        str(path.relative_to(folder)): {"sha256": file_digest(path), "bytes": path.stat().st_size}
        for path in folder.rglob("*.parquet")
    }
    return Artifact(str(folder), {"files": files, "stage": "data", "kind": "curate", "details": {"rows": len(content)}})


Worker = Callable[[Any, World, ReportStep], None]


def killed_and_resumed(work: Worker, straight: Any, killed: Any, at: int = 5) -> dict[str, torch.Tensor]:
    """Run one job undisturbed, and its twin through a death after step `at`; the parameters, which must end bit-equal."""

    class Killed(BaseException):
        pass

    def die(step: int, total: int, metrics: dict[str, float]) -> None:
        if step == at:
            raise Killed

    work(straight, ALONE, lambda *_: None)
    with pytest.raises(Killed):
        work(killed, ALONE, die)
    work(killed, ALONE, lambda *_: None)
    ends = [one.store.latest() for one in (straight, killed)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].parameters.keys() == ends[1].parameters.keys()
    assert all(torch.equal(ends[0].parameters[name], ends[1].parameters[name]) for name in ends[0].parameters)
    parameters: dict[str, torch.Tensor] = ends[0].parameters
    return parameters
