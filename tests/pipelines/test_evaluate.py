"""The evaluate stage: real models behind real Serve, asked over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plumbline.api.base import ArtifactType
from plumbline.api.run import AlignmentRun
from plumbline.api.stages.evaluate import EvaluateSpec, GateSpec
from plumbline.artifacts import Artifact
from plumbline.evaluation.contamination import Exposure
from plumbline.evaluation.gate import decide
from plumbline.evaluation.summary import summarise
from plumbline.evaluation.task_scores import TaskScores
from plumbline.external import TINY, tiny_folder
from plumbline.models.load import load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.plan import Plan, make_plan
from plumbline.progress import Event, Reporter
from plumbline.stage import run_stage

pytestmark = pytest.mark.skipif(
    not (tiny_folder() / "model.safetensors").exists(), reason="needs the built-in model: run plumbline.builtin.pretrain"
)

ITEMS = 24
DATA = {"name": "data", "curate": {"sources": [{"uri": "builtin://skills", "limit": 8}]}}
TASK = {"name": "skills", "benchmark": "skills", "limit": ITEMS, "maxTokens": 16}


def plan(tmp_path: Path, stages: list[dict[str, Any]]) -> Plan:
    run = {
        "apiVersion": "plumbline.dev/v1alpha1",
        "kind": "AlignmentRun",
        "metadata": {"name": "evaluate-test"},
        "spec": {"model": {"base": TINY}, "workspace": {"uri": str(tmp_path / "w")}, "stages": stages},
    }
    return make_plan(AlignmentRun.model_validate(run, by_name=False, by_alias=True))


def make_model(plan: Plan, stage: str) -> Artifact:
    """A Model artifact as the trainer writes it, with an adapter that changes every answer."""
    import torch
    from peft import LoraConfig, get_peft_model

    reference = ModelReference.of(plan, None)
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(load_base(reference), config)
    kind, fingerprint = plan.graph[stage].kind, plan.fingerprints[stage]
    plan.workspace.acquire(fingerprint, "test")
    with plan.workspace.create(
        kind=kind, fingerprint=fingerprint, stage=stage, type=ArtifactType.MODEL, inputs={}, holder="test"
    ) as writer:
        model.save_pretrained(writer.folder / "adapter")
        load_tokenizer(reference).save_pretrained(writer.folder / "tokenizer")
        (writer.folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    found = plan.artifact(stage)
    assert found is not None
    return found


def evaluate(plan: Plan, events: list[Event] | None = None) -> Artifact:
    return run_stage(plan, "check", Reporter("check", (events if events is not None else []).append))


@pytest.mark.ray
def test_candidate_against_base(ray_session: str, tmp_path: Path) -> None:
    gate = {"task": "skills", "baseline": "base"}
    check = {"name": "check", "evaluate": {"tasks": [TASK], "gates": [gate], "concurrency": 8}}
    stages = plan(tmp_path, [DATA, {"name": "sft", "sft": {}}, check])
    model = make_model(stages, "sft")
    events: list[Event] = []
    made = evaluate(stages, events)

    rows = [json.loads(line) for line in (made.local() / "samples.jsonl").open()]
    assert len(rows) == 2 * ITEMS
    replies: dict[str, list[str]] = {}
    values: dict[str, list[float]] = {}
    for row in rows:
        replies.setdefault(row["model"], []).append(row["reply"])
        values.setdefault(row["model"], []).append(row["score"])
    assert replies["sft"] != replies["base"]  # two models were asked, not one twice
    assert {row["fingerprint"] for row in rows if row["model"] == "sft"} == {model.fingerprint}

    skills = TaskScores([row["item"] for row in rows[::2]], {"score": values}, exposure=Exposure(disjoint=True))
    expected = decide([GateSpec.model_validate(gate)], {"skills": skills}, "sft", 0.95)
    assert expected is not None
    assert made.details["verdict"] == made.metrics["verdict"] == expected.status
    assert made.details["verdictReason"] == expected.reason
    assert made.details["candidate"] == "sft"
    assert made.metrics["skills/base"] == pytest.approx(sum(values["base"]) / ITEMS)
    assert made.details["scores"]["skills"]["sft"]["n"] == ITEMS

    page = (made.local() / "report.html").read_text()
    assert model.fingerprint in page
    assert page.count("<svg") == 2  # scores, and the loss of the sft stage
    assert len(summarise(made).rows) == 2
    assert (events[-1].message, made.type) == ("comparing", ArtifactType.REPORT)
    assert (ITEMS * 2, ITEMS * 2) in [(event.step, event.total) for event in events]
    assert not Path(stages.workspace.path("checkpoints", made.fingerprint)).exists()
    assert evaluate(stages).manifest == made.manifest  # cached


@pytest.mark.ray
def test_the_base_alone_is_asked_once_and_does_not_beat_itself(ray_session: str, tmp_path: Path) -> None:
    check = {"name": "check", "evaluate": {"tasks": [TASK], "gates": [{"task": "skills", "baseline": "base"}]}}
    made = evaluate(plan(tmp_path, [check]))
    assert made.details["verdict"] == "fail"
    assert "the same model" in made.details["verdictReason"]
    assert len((made.local() / "samples.jsonl").read_text().splitlines()) == ITEMS


@pytest.mark.ray
def test_no_gates_no_verdict_and_a_second_attempt_asks_nothing_again(ray_session: str, tmp_path: Path) -> None:
    stages = plan(tmp_path, [{"name": "check", "evaluate": {"tasks": [TASK]}}])
    replies = Path(stages.workspace.path("replies"))

    class Killed(BaseException):
        """Stands for a kill: nothing catches it."""

    def killer(event: Event) -> None:
        if event.step == ITEMS:
            raise Killed

    with pytest.raises(Killed):
        run_stage(stages, "check", Reporter("check", killer))
    [part] = replies.glob("*/*.jsonl")
    lines = part.read_text().splitlines(keepends=True)
    answers = [json.loads(line) | {"text": f"kept {i}"} for i, line in enumerate(lines[:-4])]
    part.write_text("".join(json.dumps(answer) + "\n" for answer in answers) + lines[-4][:30])

    made = evaluate(stages)
    replies = [json.loads(line)["reply"] for line in (made.local() / "samples.jsonl").open()]
    assert len(replies) == ITEMS
    assert sum(reply.startswith("kept ") for reply in replies) == ITEMS - 4
    assert (made.details["verdict"], made.metrics["verdict"]) == (None, "none")


def test_seeds_differ_between_items_and_follow_the_task(tmp_path: Path) -> None:
    from plumbline.evaluation.benchmarks.skills import load
    from plumbline.evaluation.conversations import item_seed

    spec = EvaluateSpec.model_validate({"tasks": [TASK, TASK | {"name": "again", "seed": 1}]})
    first, second = spec.tasks
    items = load(first)
    seeds = [item_seed(first, item) for item in items]
    assert len(set(seeds)) == ITEMS
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seeds == [item_seed(first, item) for item in items]
    assert seeds[0] != item_seed(second, items[0])
