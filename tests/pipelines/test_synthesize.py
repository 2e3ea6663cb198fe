"""The synthesize stage with a real HTTP teacher, killed and repeated, and with the built-in model as its own teacher."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from pydantic import ValidationError

from plumbline.api.base import ArtifactType
from plumbline.api.run import AlignmentRun, RunSpec
from plumbline.artifacts import Artifact
from plumbline.data.dataset import DatasetWriter, load_rows
from plumbline.data.row import Row
from plumbline.data.rows import Outcome, dataset_schema, to_table
from plumbline.data.synthesis.endpoint import Endpoint
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.external import TINY, tiny_folder
from plumbline.graph import build_graph
from plumbline.plan import Plan, make_plan
from plumbline.progress import Event, Reporter
from plumbline.rollout.rewards.verifiable import numeric_match
from plumbline.stage import run_stage
from support.patience import wait_for
from support.teacher import Body, Teacher, prompt_of

PROMPTS = [f"Explain thing number {i} in a sentence." for i in range(40)]


def answer(body: Body) -> str:
    """A teacher whose answers follow from the request alone."""
    return f"{hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()} says: {prompt_of(body)[:40]}"


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    server = Teacher(answer)
    yield server
    server.close()


def plan(workspace: Path | str, synthesize: dict[str, Any]) -> Plan:
    data = {"name": "data", "curate": {"sources": [{"uri": "builtin://skills", "limit": 8}]}}
    run = {
        "apiVersion": "plumbline.dev/v1alpha1",
        "kind": "AlignmentRun",
        "metadata": {"name": "synthesize-test"},
        "spec": {
            "model": {"base": TINY},
            "workspace": {"uri": str(workspace)},
            "stages": [data, {"name": "more", "synthesize": synthesize}],
        },
    }
    return make_plan(AlignmentRun.model_validate(run, by_name=False, by_alias=True))


def by(teacher: Teacher, **fields: Any) -> dict[str, Any]:
    return {"teacher": {"endpoint": teacher.url, "model": "wise"}, "calls": {"concurrency": 4}, **fields}


def make_data(plan: Plan, chats: Sequence[tuple[str, str]]) -> Artifact:
    """The dataset that stage `data` would make."""
    kind, fingerprint = plan.graph["data"].kind, plan.fingerprints["data"]
    outcomes = [
        Outcome(
            "here",
            i,
            "messages",
            Row({"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]}),
        )
        for i, (prompt, text) in enumerate(chats)
    ]
    plan.workspace.acquire(fingerprint, "test")
    with (
        plan.workspace.create(
            kind=kind, fingerprint=fingerprint, stage="data", type=ArtifactType.DATASET, inputs={}, holder="test"
        ) as output,
        DatasetWriter(output.folder, dataset_schema("messages")) as writer,
    ):
        writer.write(to_table(outcomes, "messages"))
    found = plan.artifact("data")
    assert found is not None
    return found


def made(plan: Plan, events: list[Event] | None = None) -> Artifact:
    return run_stage(plan, "more", Reporter("more", (events if events is not None else []).append))


def card(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact.local() / "card.json").read_text())
    return found


def chats(prompts: Sequence[str] = PROMPTS) -> list[tuple[str, str]]:
    return [(prompt, "old") for prompt in prompts]


def test_a_dataset_with_provenance_and_a_card(teacher: Teacher, tmp_path: Path) -> None:
    def fault(request: web.Request, body: Body, times: int) -> web.Response | None:
        return web.json_response({"error": {"message": "unsafe"}}, status=400) if " 7 " in prompt_of(body) else None

    teacher.fault = fault
    stages = plan(tmp_path, by(teacher, distill={}, rows=30))
    source = make_data(stages, chats())
    events: list[Event] = []
    artifact = made(stages, events)

    rows = load_rows(artifact).to_pylist()
    assert len(rows) == 30
    prompts = {f"here#{i}": prompt for i, prompt in enumerate(PROMPTS)}
    for number, row in enumerate(rows):
        [parent] = row["parents"]
        user, reply = row["messages"]
        assert user == {"role": "user", "content": prompts[parent]}
        assert reply["content"].endswith(f"says: {prompts[parent][:40]}")
        assert (row["teacher"], row["operations"], row["record_id"]) == ("wise", ["distill"], f"more/{number}")
        assert (row["source"], row["format"]) == ("more", "distill")
    assert len({row["parents"][0] for row in rows}) == 30

    found = card(artifact)
    asked = len(teacher.bodies)
    assert found["dropped"] == ({"refused by the teacher": 1} if asked == 31 else {})
    assert found["calls"]["teacher calls"] == asked
    tokens = found["calls"]["teacher prompt tokens"] + found["calls"]["teacher answer tokens"]
    assert artifact.metrics["tokens"] == tokens > 0
    assert "<html" in (artifact.local() / "card.html").read_text()
    assert artifact.type is ArtifactType.DATASET
    lineage = artifact.manifest["lineage"]["inputs"]["dataset"]
    assert [one["fingerprint"] for one in lineage] == [source.fingerprint]
    assert (30, 30) in [(event.step, event.total) for event in events] or events[-1].message.startswith("30 of 30 rows made")


def table_bytes(artifact: Artifact) -> list[bytes]:
    return [path.read_bytes() for path in sorted((artifact.local() / "data").iterdir())]


METHODS: dict[str, dict[str, Any]] = {
    "distill": {"distill": {}, "rows": 25},
    "evolInstruct": {"evolInstruct": {"rounds": 2}, "rows": 20},
    "selfImprove": {"selfImprove": {"samples": 2, "judge": {}}, "rows": 10},
}


def judge_and_answer(body: Body) -> str:
    text = prompt_of(body)
    if text.startswith("Two instructions"):
        return "Different"
    return f"Rating: {sum(text.encode()) % 5 + 0.5}" if text.startswith("Rate how") else answer(body)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_killed_stage_pays_nothing_twice_and_makes_the_same_bytes(teacher: Teacher, tmp_path: Path, name: str) -> None:
    teacher.answer = judge_and_answer
    spec = by(teacher, **METHODS[name], tokenBudget=100_000)
    whole = plan(tmp_path / "whole", spec)
    make_data(whole, chats())
    expected = made(whole)
    calls = len(teacher.bodies)

    stages = plan(tmp_path / "killed", spec)
    make_data(stages, chats())
    file = tmp_path / "run.json"
    file.write_text(json.dumps(stages.to_json()))
    for kills in (1, 2):
        teacher.answered.clear()
        teacher.bodies.clear()
        teacher.delay = lambda count: 0.03
        ended = threading.Event()
        # However late it is killed, there is something left to do.
        teacher.held = lambda count, ended=ended: count > calls // 4 + 1 and not ended.is_set()
        process = subprocess.Popen([sys.executable, "-m", "plumbline.stage", str(file), "more"], stdout=subprocess.DEVNULL)
        wait_for(lambda process=process: len(teacher.bodies) > calls // 4 or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        ended.set()
        wait_for(lambda: teacher.in_flight == 0)
        kept = {line for path in replies_of(stages) for line in path.read_text().splitlines()}
        assert len(kept) >= kills * (calls // 4 - 4)  # all but what was in flight
    finished = sum(teacher.answered.values())

    kept_keys = [json.loads(line)["key"] for path in replies_of(stages) for line in path.read_text().splitlines()]
    assert len(kept_keys) == len(set(kept_keys)), "a finished call was paid twice"
    teacher.bodies.clear()
    teacher.delay = lambda count: 0.0
    artifact = made(stages)
    assert len(teacher.bodies) == calls - len(kept_keys)
    assert finished > 0
    assert table_bytes(artifact) == table_bytes(expected)
    assert card(artifact) == card(expected)
    assert artifact.metrics == expected.metrics


def replies_of(plan: Plan) -> list[Path]:
    return list(Path(plan.workspace.path("replies")).glob("*/*.jsonl"))


def test_more_rows_or_budget_pay_only_for_what_is_new(teacher: Teacher, tmp_path: Path) -> None:
    first = plan(tmp_path, by(teacher, distill={"maxTokens": 64}, rows=30, tokenBudget=600))
    make_data(first, chats())
    small = made(first)
    paid = len(teacher.bodies)
    assert 0 < small.metrics["rows"] < 30
    assert small.metrics["tokens"] <= 600
    assert set(card(small)["dropped"]) == {"token budget spent"}

    more = plan(tmp_path, by(teacher, distill={"maxTokens": 64}, rows=35))
    assert more.fingerprints["more"] != first.fingerprints["more"]
    artifact = made(more)
    assert artifact.metrics["rows"] == 35
    assert len(teacher.bodies) == 35
    assert paid == small.metrics["rows"]
    assert load_rows(artifact).slice(0, paid).equals(load_rows(small))


def test_how_calls_are_made_is_no_part_of_the_fingerprint(teacher: Teacher, tmp_path: Path) -> None:
    spec = by(teacher, distill={})
    other = spec | {"calls": {"concurrency": 1, "requestsPerMinute": 600}}
    assert plan(tmp_path, spec).fingerprints == plan(tmp_path, other).fingerprints


def test_a_dead_teacher_leaves_no_artifact_and_the_next_attempt_goes_on(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plumbline.stages.synthesize.Endpoint", partial(Endpoint, delays=(0.01,)))
    teacher.fault = lambda request, body, times: web.Response(status=503) if len(teacher.bodies) > 12 else None
    stages = plan(tmp_path, by(teacher, distill={}, rows=40))
    make_data(stages, chats())
    with pytest.raises(PlumblineError, match=r"spec\.stages\[1\]\.synthesize\.teacher: 10 calls in a row failed") as caught:
        made(stages)
    assert caught.value.exit_code == 1
    assert stages.artifact("more") is None
    kept = len([line for path in replies_of(stages) for line in path.read_text().splitlines()])
    assert 8 < kept <= 12
    teacher.fault = lambda request, body, times: None
    teacher.bodies.clear()
    assert made(stages).metrics["rows"] == 40
    assert len(teacher.bodies) == 40 - kept


def test_no_row_says_why(teacher: Teacher, tmp_path: Path) -> None:
    teacher.answer = lambda body: ""
    stages = plan(tmp_path, by(teacher, distill={}))
    make_data(stages, chats())
    with pytest.raises(InvalidInput, match=r"no row was made; 40 of 40 drafts were dropped as 'empty reply'"):
        made(stages)
    stages = plan(tmp_path, by(teacher, distill={}, tokenBudget=10))
    with pytest.raises(InvalidInput, match="token budget spent', such as: 10 tokens are left, the call could take 2,1"):
        made(stages)


def test_the_key_comes_from_the_environment(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = by(teacher, distill={}, rows=2)
    spec["teacher"]["keySecret"] = "openai"
    stages = plan(tmp_path, spec)
    make_data(stages, chats())
    monkeypatch.delenv("PLUMBLINE_TEACHER_KEY", raising=False)
    with pytest.raises(InvalidInput, match=r"teacher\.keySecret: the environment variable PLUMBLINE_TEACHER_KEY is not set"):
        made(stages)
    monkeypatch.setenv("PLUMBLINE_TEACHER_KEY", "sk-hidden\n")
    made(stages)
    assert {headers["Authorization"] for headers in teacher.headers} == {"Bearer sk-hidden"}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"sk-hidden" not in written


def test_a_judge_of_its_own(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Teacher(judge_and_answer)
    try:
        block = {"samples": 3, "judge": {"endpoint": judge.url, "model": "stern", "keySecret": "judge"}}
        stages = plan(tmp_path, by(teacher, selfImprove=block, produces="PreferenceDataset", rows=6))
        make_data(stages, chats())
        monkeypatch.setenv("PLUMBLINE_JUDGE_KEY", "j")
        artifact = made(stages)
    finally:
        judge.close()
    assert artifact.type is ArtifactType.PREFERENCE_DATASET
    assert {body["model"] for body in judge.bodies} == {"stern"}
    assert {headers["Authorization"] for headers in judge.headers} == {"Bearer j"}
    assert "Authorization" not in {name for headers in teacher.headers for name in headers}
    kept = load_rows(artifact).to_pylist()
    for row in kept:
        assert row["chosen"] != row["rejected"]
        assert row["score"] > 0
    assert artifact.metrics["meanScoreKept"] == pytest.approx(sum(row["score"] for row in kept) / len(kept))
    assert artifact.metrics["meanScoreKept"] > artifact.metrics["meanScoreDrawn"] > 0
    assert card(artifact)["scores"].items() <= artifact.metrics.items()
    assert card(artifact)["calls"]["judge calls"] == len(judge.bodies)


def test_a_dataset_is_needed_unless_topics_are_given(teacher: Teacher, tmp_path: Path) -> None:
    def wired(synthesize: dict[str, Any]) -> dict[str, tuple[str, ...]]:
        run = plan(tmp_path, synthesize).run
        alone = run.spec.model_copy(update={"stages": run.spec.stages[1:]})
        return build_graph(alone)["more"].inputs

    with pytest.raises(InvalidInput, match="'more' needs a Dataset and no earlier stage makes one"):
        wired(by(teacher, distill={}))
    assert wired(by(teacher, textbook={"topics": ["tides"]})) == {}
    assert wired({"textbook": {"topics": ["tides"]}}) == {"model": ("base",)}


def test_an_endpoint_teacher_waits_for_no_model_and_a_textbook_for_no_dataset(teacher: Teacher, tmp_path: Path) -> None:
    def wired(synthesize: dict[str, Any], inputs: dict[str, str] | None = None) -> dict[str, tuple[str, ...]]:
        spec = plan(tmp_path, synthesize).run.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        stages = [
            spec["stages"][0],
            {"name": "first", "sft": {}},
            spec["stages"][1] | ({"inputs": inputs} if inputs else {}),
        ]
        return build_graph(RunSpec.model_validate({**spec, "stages": stages}, by_name=False, by_alias=True))["more"].inputs

    topics = {"topics": ["tides"]}
    assert wired(by(teacher, distill={})) == {"dataset": ("data",)}
    assert wired(by(teacher, textbook=topics)) == {}
    assert wired(by(teacher, selfImprove={"judge": {}})) == {"dataset": ("data",)}
    assert wired({"distill": {}}) == {"model": ("first",), "dataset": ("data",)}
    assert wired({"textbook": topics}) == {"model": ("first",)}
    judge = {"endpoint": teacher.url, "model": "stern"}
    assert wired({"selfImprove": {"judge": judge}}) == {"model": ("first",), "dataset": ("data",)}
    assert wired(by(teacher, distill={}), {"model": "base"}) == {"model": ("base",), "dataset": ("data",)}  # named: taken


@pytest.mark.parametrize(
    "url",
    [
        "https://me:sk-1@a.example/v1",
        "https://a.example/v1?key=sk-1",
        "https://a.example/v1#x",
        "https:///v1",
        "http://a b/v1",
    ],
)
def test_no_key_hides_in_the_endpoint(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValidationError, match=r"endpoint"):
        plan(tmp_path, {"distill": {}, "teacher": {"endpoint": url, "model": "wise"}})


@pytest.mark.ray
@pytest.mark.skipif(not (tiny_folder() / "model.safetensors").exists(), reason="needs the built-in model")
def test_the_model_improves_on_itself(ray_session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = {"samples": 8, "rewards": [{"type": "numericMatch"}], "maxTokens": 48}
    best = {"selfImprove": block, "rows": 40, "calls": {"concurrency": 8}}
    expected = {f"{a} + {b} =": str(a + b) for a in range(1, 6) for b in range(1, 5)}

    stages = plan(tmp_path / "a", best)
    make_data(stages, list(expected.items()))
    artifact = made(stages)
    rows = load_rows(artifact).to_pylist()
    assert 0 < len(rows) < len(expected)  # it guesses; some of eight guesses are right
    for row in rows:
        prompt, reply = (turn["content"] for turn in row["messages"])
        assert numeric_match(reply, expected[prompt]) == 1.0
        assert (row["score"], row["teacher"]) == (1.0, "base")
    found = card(artifact)
    assert found["dropped"]["no answer is good enough"] + len(rows) == len(expected)
    assert found["calls"]["teacher calls"] == 8 * len(expected)

    monkeypatch.setattr("plumbline.serving.local.deployment", None)  # every answer is there already
    stages = plan(tmp_path / "a", best | {"produces": "PreferenceDataset"})
    pairs = load_rows(made(stages)).to_pylist()
    assert 0 < len(pairs) <= len(rows)
    for row in pairs:
        right = expected[row["prompt"][-1]["content"]]
        assert numeric_match(row["chosen"][0]["content"], right) == 1.0
        assert numeric_match(row["rejected"][0]["content"], right) == 0.0


def test_parquet_loads_as_it_is(teacher: Teacher, tmp_path: Path) -> None:
    stages = plan(tmp_path, by(teacher, explain={}, rows=5))
    make_data(stages, chats())
    [part] = (made(stages).local() / "data").iterdir()
    messages = pq.read_table(part)["messages"].to_pylist()
    assert [[turn["role"] for turn in chat] for chat in messages] == [["system", "user", "assistant"]] * 5
