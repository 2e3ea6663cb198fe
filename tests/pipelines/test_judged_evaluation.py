"""The evaluate stage with a judge: real models behind real Serve, a judge over HTTP, killed on the way."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from test_evaluate import DATA, evaluate, make_model, plan, pytestmark  # noqa: F401

from plumbline.evaluation.journal import Journal
from plumbline.progress import Event, Reporter
from plumbline.stage import run_stage
from support.teacher import Body, Teacher, prompt_of

QUESTIONS = 12


def verdict(body: Body) -> str:
    """Prefers the answer with more letters e, and grades by them; of question 3 it says nothing."""
    text = prompt_of(body)
    mark = re.findall(r"^----- request (\w+)$", text, re.MULTILINE)[0]
    parts = re.split(rf"^----- (?:request|response \d|answer|end) {mark}$", text, flags=re.MULTILINE)
    if "question 3?" in parts[1]:
        return "I would rather not say."
    if len(parts) == 4:
        return f"Because.\nRating: {min(5, parts[2].count('e'))}"
    first, second = (part.count("e") for part in parts[2:4])
    return f"{'Tie' if first == second else 1 if first > second else 2}\nBecause."


def files(folder: Path) -> dict[str, str]:
    """Open questions of one turn and of two, and an exam with its examples."""
    bench = [{"question_id": i, "category": "writing", "turns": [f"Is this question {i}?", "And now?"]} for i in range(1, 4)]
    wins = [{"instruction": f"Tell me more about question {i}?"} for i in range(QUESTIONS)]
    (folder / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bench))
    (folder / "wins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wins))
    for part, count in (("dev", 5), ("test", 6)):
        (folder / part).mkdir()
        with (folder / part / f"anatomy_{part}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(
                [f"{part} question {i}", "one", "two", "three", "four", "ABCD"[i % 4]] for i in range(count)
            )
    return {name: str(folder / name) for name in ("bench.jsonl", "wins.jsonl", "dev", "test")}


@pytest.mark.ray
def test_judged_open_tasks_beside_a_likelihood_task(ray_session: str, tmp_path: Path) -> None:
    teacher, data = Teacher(verdict), files(tmp_path)
    check = {
        "name": "check",
        "evaluate": {
            "tasks": [
                {"name": "exam", "benchmark": "mmlu", "uri": data["test"], "examples": data["dev"]},
                {"name": "bench", "benchmark": "mtBench", "uri": data["bench.jsonl"], "maxTokens": 8},
                {"name": "wins", "benchmark": "alpacaEval", "uri": data["wins.jsonl"], "maxTokens": 12},
            ],
            "judge": {"endpoint": teacher.url, "model": "judge-7b"},
            "gates": [{"task": "wins", "baseline": "base", "contaminated": "accept"}],
            "concurrency": 8,
        },
    }
    stages = plan(tmp_path, [DATA, {"name": "sft", "sft": {}}, check])
    make_model(stages, "sft")

    class Killed(Exception):
        """Stands for a kill: nothing that is asked of the judge catches it."""

    said: list[str] = []

    def killer(event: Event) -> None:
        said.append(event.message or "")
        if "judging" in said and event.step:
            raise Killed

    with pytest.raises(Killed):
        run_stage(stages, "check", Reporter("check", killer))
    paid = len(teacher.bodies)
    assert paid >= 1
    [folder] = Path(stages.workspace.path("replies")).iterdir()
    with Journal(str(folder)) as journal:
        kept = len(journal.replies)
    # 6 exam items, 3 conversations of 2 turns and 12 questions, of two models: all are there, and some verdicts.
    assert kept > 2 * (6 + 6 + 12)

    events: list[Event] = []
    made = evaluate(stages, events)
    assert not any("deploying" in (event.message or "") for event in events)  # the models were asked before the kill
    assert max(teacher.asked.values()) <= 2  # a call that was under way at the kill is paid again, no other
    report = json.loads((made.local() / "report.json").read_text())
    scores = {(one["task"], one["model"]): one for one in report["scores"]}
    assert scores["exam", "sft"]["n"] == 6
    assert set(scores["exam", "sft"]["groups"]["subject"]) == {"anatomy"}
    assert (scores["bench", "base"]["n"], scores["bench", "base"]["unscored"]) == (2, 1)  # question 3 has no grade
    ours, theirs = scores["wins", "sft"], scores["wins", "base"]
    assert ours["n"] == theirs["n"] == QUESTIONS - 1
    assert ours["score"] + theirs["score"] == pytest.approx(1)

    # What the judge was told to prefer decides every pair.
    samples = [json.loads(line) for line in (made.local() / "samples.jsonl").open()]
    replies = {(row["task"], row["item"], row["model"]): row["reply"] for row in samples}
    judgments = [json.loads(line) for line in (made.local() / "judgments.jsonl").open()]
    pairs = [row for row in judgments if row["task"] == "wins"]
    assert len(pairs) == QUESTIONS
    for row in pairs:
        mine, other = (replies["wins", row["item"], name].count("e") for name in ("sft", "base"))
        wanted = 0.5 if mine == other else float(mine > other)
        assert row["outcome"] == (None if row["item"].endswith(":4") else wanted), row

    figures = {one["task"]: one for one in report["judge"]["tasks"]}
    assert figures["wins"]["figures"]["consistency"]["value"] == 1.0
    assert {test["name"] for test in figures["wins"]["selfTests"]} >= {
        "position",
        "length",
        "constantReply",
        "injectedVerdict",
    }
    assert figures["bench"]["selfTests"] == []  # no gate hangs on it
    assert made.details["verdict"] == "inconclusive"
    assert "of the replies" in made.details["verdictReason"] or "judge" in made.details["verdictReason"]
    conversations = [row for row in samples if row["task"] == "bench"]
    assert all(len(row["replies"]) == 2 and row["turns"] == ["And now?"] for row in conversations)
    card = (made.local() / "MODEL_CARD.md").read_text()
    assert "model-index" in card
    assert "AlpacaEval" in card or "wins" in card
    page = (made.local() / "report.html").read_text()
    asked = len(teacher.bodies)
    check["evaluate"]["gates"][0]["minEffect"] = 0.1  # another rule: nothing is asked or paid again
    again = evaluate(plan(tmp_path, [DATA, {"name": "sft", "sft": {}}, check]))
    assert again.fingerprint != made.fingerprint
    assert len(teacher.bodies) == asked
    assert "judge-7b" in page
    assert "Self-tests" in page
    assert "I would rather not say." in page  # the judge's own words, beside both answers
    assert "agreed: 1 to sft" in page or "agreed: 0 to sft" in page or "agreed: 0.5 to sft" in page
    assert report["cost"]["judge judge-7b"]["calls"] > 0
    teacher.close()


@pytest.mark.ray
def test_the_run_serves_its_own_judge_and_compares_with_stored_answers(ray_session: str, tmp_path: Path) -> None:
    data = files(tmp_path)
    stored = [{"instruction": f"Tell me more about question {i}?", "output": f"answer {i}"} for i in range(2)]
    (tmp_path / "stored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stored))
    task = {
        "name": "wins",
        "benchmark": "alpacaEval",
        "uri": data["wins.jsonl"],
        "opponents": str(tmp_path / "stored.jsonl"),
    }
    check = {
        "name": "check",
        "inputs": {"judge": "base"},
        "evaluate": {
            "tasks": [task | {"maxTokens": 8}],
            "judge": {"maxTokens": 8},
            "gates": [{"task": "wins", "threshold": 0.5}],
        },
    }
    made = evaluate(plan(tmp_path, [check]))
    report = json.loads((made.local() / "report.json").read_text())
    assert {one["model"] for one in report["scores"]} == {"base", "stored answers"}
    # The built-in model is no judge: nothing it says can be read, which is no tie.
    assert report["judge"]["tasks"][0]["unscored"]
    assert [one["n"] for one in report["scores"]] == [0, 0]
    assert made.details["verdict"] == "inconclusive"
    assert any("10 of 12 questions have no stored answer" in words for words in report["warnings"])
    assert any("judge base is related to the candidate" in words for words in report["warnings"])
