"""The alpaca sample on real files: the same stages, other data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.embedded import Runs

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "alpaca.yaml"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_alpaca_through_sft_and_benchmarks(runs: Runs, shared: Path) -> None:
    code, events, err = runs.run(
        SAMPLE,
        "--workspace", str(runs.folder / "workspace"),
        "--set", f"stages.data.curate.sources.0.uri={shared / 'alpaca' / 'alpaca_data_shared.jsonl.gz'}",
        "--set", f"stages.check.evaluate.tasks.0.uri={shared / 'gsm8k' / 'test_shared.jsonl.gz'}",
        "--set", f"stages.check.evaluate.tasks.1.uri={shared / 'mmlu' / 'test_shared'}",
        "--set", "stages.sft.sft.maxSteps=3",
        "--set", "stages.sft.sft.batchSize=8",
        "--set", "stages.check.evaluate.tasks.0.limit=8",
        "--set", "stages.check.evaluate.tasks.0.maxTokens=16",
        "--set", "stages.check.evaluate.tasks.1.limit=8",
    )  # fmt: skip
    assert code == 0, err
    card = json.loads(next((runs.folder / "workspace").glob("artifacts/curate/*/card.json")).read_text())
    assert (card["records"], card["rows"]) == (42000, 41977)
    report = next(event for event in events if event["event"] == "report")
    assert {(row["model"], row["task"], row["n"]) for row in report["rows"]} == {
        (model, task, 8) for model in ("base", "sft") for task in ("gsm8k", "mmlu")
    }
