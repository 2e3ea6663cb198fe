"""Tasks of lm-evaluation-harness through the evaluate stage, beside the harness's own way to the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_evaluate import DATA, evaluate, make_model, plan, pytestmark  # noqa: F401

from plumbline.external import tiny_folder
from plumbline.progress import Event
from support.harness import write_tasks

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `harness`")


def own_way(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The same tasks and examples by the harness itself: its `hf` model, greedy, plain text."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(tiny_folder()), device="cpu", dtype="float32", batch_size=4)
    found = lm_eval.simple_evaluate(
        model, tasks=["colours", "last", "sums"], task_manager=lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False),
        limit=None, bootstrap_iters=0, log_samples=True, fewshot_random_seed=1234,
    )  # fmt: skip
    samples: dict[str, list[dict[str, Any]]] = found["samples"]
    return samples


@pytest.mark.ray
def test_a_group_and_a_written_task_score_as_the_harness_scores_them(ray_session: str, tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks", whole_paths=True)
    common = {"benchmark": "lmEvaluationHarness", "includePath": str(folder)}
    tasks = [
        {"name": "own", "harnessTask": "own", "harnessMetric": "acc", **common},
        {"name": "sums", "harnessTask": "sums", "chatTemplate": False, "maxTokens": 16, **common},
        {
            "name": "chat",
            "harnessTask": "sums",
            "harnessMetric": "exact_match,flexible",
            "limit": 4,
            "maxTokens": 16,
            **common,
        },
    ]
    check: dict[str, Any] = {
        "name": "check",
        "evaluate": {
            "tasks": tasks,
            "gates": [
                {"task": "own", "metric": "task=colours", "baseline": "base", "contaminated": "accept"},
                {"task": "sums", "metric": "exact_match,flexible", "baseline": "base"},
            ],
            "concurrency": 8,
        },
    }
    stages = plan(tmp_path, [DATA, {"name": "sft", "sft": {}}, check])
    make_model(stages, "sft")
    made = evaluate(stages)

    rows = [json.loads(line) for line in (made.local() / "samples.jsonl").open()]
    ours = {(row["task"], row["item"]): row for row in rows if row["model"] == "base"}
    theirs = own_way(folder)
    for name, metric in (("colours", "acc"), ("last", "acc")):
        assert len(theirs[name]) == 12
        for row in theirs[name]:
            mine = ours["own", f"{name}:{row['doc_id']}"]
            assert mine["score"] == row[metric]
            assert mine["prompt"][0]["content"] == row["arguments"][0][0]
    assert {row["acc"] for row in theirs["colours"]} == {0.0, 1.0}  # so that equal scores tell something
    flexible = {row["doc_id"]: row for row in theirs["sums"] if row["filter"] == "flexible"}
    for number, row in flexible.items():
        mine = ours["sums", f"sums:{number}"]
        assert mine["reply"].strip() == row["resps"][0][0].strip()  # decoded alone, a first token has no space
        assert mine["variants"]["exact_match,flexible"] == row["exact_match"]
    chats = [row for (task, _), row in ours.items() if task == "chat"]
    assert len(chats) == 4
    assert [turn["role"] for turn in chats[0]["prompt"]] == ["user", "assistant", "user", "assistant", "user"]

    report = json.loads((made.local() / "report.json").read_text())
    assert any("lm-evaluation-harness" in words for words in report["warnings"])
    decided = {rule["task"]: rule for rule in report["rules"]}
    assert decided["own"]["n"] == 12
    assert decided["sums"]["n"] == 12

    # Every reply is kept: another metric as the score asks nothing.
    tasks[0]["harnessMetric"] = "acc"
    tasks[1]["harnessMetric"] = "exact_match,flexible"
    events: list[Event] = []
    again = evaluate(plan(tmp_path, [DATA, {"name": "sft", "sft": {}}, check]), events)
    assert again.fingerprint != made.fingerprint
    assert not any("deploying" in (event.message or "") for event in events)
