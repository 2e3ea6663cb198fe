"""The report: numbers, one self-contained page, lineage with curves, and the summary for the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from plumbline.api.base import ArtifactType
from plumbline.api.stages.evaluate import GateSpec, TaskSpec
from plumbline.artifacts import Artifact, Workspace
from plumbline.errors import PlumblineError
from plumbline.evaluation import report
from plumbline.evaluation.benchmarks.benchmark import Item, Score, user
from plumbline.evaluation.contamination import Exposure
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.lineage import MAX_POINTS, ancestors
from plumbline.evaluation.results import Results, Sample, conclude
from plumbline.evaluation.summary import summarise

EVIL = '<script>alert("x")</script><img src=http://evil.example/x.png>$x_{'


def artifact(
    workspace: Workspace,
    kind: str,
    fingerprint: str,
    inputs: dict[str, list[Artifact]],
    files: dict[str, str],
    type: ArtifactType = ArtifactType.MODEL,
) -> Artifact:
    workspace.acquire(fingerprint, "test")
    with workspace.create(
        kind=kind, fingerprint=fingerprint, stage=f"stage-{kind}", type=type, inputs=inputs, holder="test"
    ) as writer:
        for name, text in files.items():
            (writer.folder / name).write_text(text)
    found = workspace.find(kind, fingerprint)
    assert found is not None
    return found


def metrics(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {"metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}


def family(workspace: Workspace) -> Artifact:
    data = artifact(workspace, "curate", "d1", {}, {"x.parquet": "x"}, ArtifactType.DATASET)
    rows = [{"step": i, "learning_rate": 1e-4, "loss": 2 / i, "stage": "sft", "bad": float("nan")} for i in (1, 2, 3)]
    sft = artifact(workspace, "sft", "m1", {"dataset": [data]}, metrics(rows))
    rows = [{"step": i, "entropy": 1.0, "reward": i / 2000, "policy_loss": 0.1} for i in range(2000)]
    return artifact(workspace, "rlhf", "m2", {"model": [sft], "dataset": [data]}, metrics(rows))


def test_ancestors_come_oldest_first_each_once(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path / "w"))
    found = ancestors(family(workspace), workspace)
    assert [(a.stage, a.kind, a.type, a.fingerprint) for a in found] == [
        ("stage-curate", "curate", "Dataset", "d1"),
        ("stage-sft", "sft", "Model", "m1"),
        ("stage-rlhf", "rlhf", "Model", "m2"),
    ]
    assert found[0].curves == {}
    assert list(found[1].curves) == ["loss", "learning_rate"]
    assert found[1].curves["loss"] == [(1, 2), (2, 1), (3, 2 / 3)]
    assert list(found[2].curves) == ["reward", "policy_loss", "entropy"]
    assert len(found[2].curves["reward"]) == MAX_POINTS
    assert found[2].curves["reward"][-1] == (1999, 1999 / 2000)


def test_ancestors_of_a_moved_workspace_with_a_lost_dataset(tmp_path: Path) -> None:
    family(Workspace(str(tmp_path / "old")))
    (tmp_path / "old" / "artifacts" / "curate" / "d1" / "manifest.json").unlink()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = Workspace(str(tmp_path / "new"))
    model = moved.find("rlhf", "m2")
    assert model is not None
    found = ancestors(model, moved)
    assert [(a.stage, a.fingerprint) for a in found] == [(None, "d1"), ("stage-sft", "m1"), ("stage-rlhf", "m2")]


def test_broken_metrics_are_named_with_their_line(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    model = artifact(workspace, "sft", "m1", {}, {"metrics.jsonl": '{"step": 1}\n{"loss": 2}\n'})
    with pytest.raises(PlumblineError, match=r"metrics\.jsonl:2: "):
        ancestors(model, workspace)


TASKS = [
    TaskSpec.model_validate({"name": "skills", "benchmark": "skills"}),
    TaskSpec.model_validate({"name": "maths", "benchmark": "gsm8k", "uri": "x.jsonl"}),
]
SETTING = report.Setting("my-run", "check", {"align": "m2", "base": "commit:1"}, TASKS, 0.0)


def evaluation(gates: Sequence[dict[str, Any]]) -> tuple[Results, list[Sample]]:
    def sample(task: str, i: int, right: bool, reply: str = "reply") -> Sample:
        replies = {"align": Reply(reply, "stop"), "base": Reply("", "length")}
        variants = {"strict": 0.0} if task == "maths" else {}
        scores = {"align": Score(float(right), reply, variants), "base": Score(0.0, None, variants)}
        return Sample(task, Item(f"id{i}", user(f"prompt {i} of {task}"), "reference"), replies, scores)

    samples = [sample("skills", i, i != 59) for i in range(60)] + [sample("maths", i, i == 0, EVIL) for i in range(3)]
    specs = [GateSpec.model_validate(gate) for gate in gates]
    exposures = {"skills": Exposure(disjoint=True), "maths": Exposure()}
    return (
        conclude(samples, candidate="align", baselines=["base"], gates=specs, confidence=0.95, exposures=exposures),
        samples,
    )


class Page(HTMLParser):
    """Collects tags, attributes and text; knows whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_self_contained_and_escaped(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    results, samples = evaluation([{"task": "skills", "baseline": "base", "minEffect": 0.1}])
    text = report.report_html(SETTING, results, samples, ancestors(family(workspace), workspace))
    page = Page(text)
    assert page.open == []
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    fetching = [
        (name, value) for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "action")
    ]
    assert all((value or "").startswith("#") for _, value in fetching)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"@import|url\((?!#)", text)
    assert EVIL in page.text
    assert page.tags.count("svg") == 3  # scores, sft, rlhf
    assert "pass: skills: align - base = 0.983" in page.text
    assert "stage-curate" in page.text


def test_the_sample_browser_shows_wrong_ones_first_and_not_all() -> None:
    results, samples = evaluation([])
    text = Page(report.report_html(SETTING, results, samples, [])).text
    assert "skills (40 of 60, wrong ones first)" in text
    order = [int(i) for i in re.findall(r"prompt (\d+) of skills", text)]
    assert order == [59, *range(39)]


def test_numbers_of_the_report() -> None:
    results, samples = evaluation([{"task": "maths", "threshold": 0.5}])
    values = report.report_json(SETTING, results, [])
    json.dumps(values, allow_nan=False)
    scores = {(s["task"], s["model"]): s for s in values["scores"]}
    assert list(scores) == [("skills", "base"), ("skills", "align"), ("maths", "base"), ("maths", "align")]
    assert scores["skills", "align"]["score"] == pytest.approx(59 / 60)
    assert scores["skills", "align"]["unparseable"] == 0  # one is wrong, but it is an answer
    assert (scores["skills", "base"]["unparseable"], scores["skills", "base"]["cut"]) == (60, 60)
    assert scores["maths", "align"]["variants"]["strict"]["value"] == 0
    [skills, _] = values["comparisons"]
    assert skills["difference"]["value"] == pytest.approx(59 / 60)
    assert skills["winRate"]["value"] == pytest.approx((59 + 0.5) / 60)
    assert skills["pValue"] < 1e-9
    assert 0 < skills["detectableDifference"] < 0.2
    assert values["verdict"] == "inconclusive"
    assert values["rules"][0]["itemsNeeded"] > 3
    rows = list(report.sample_rows(SETTING, samples))
    assert len(rows) == 126
    assert rows[-1]["fingerprint"] == "commit:1"


@pytest.mark.parametrize(
    ("gates", "status", "verdict"),
    [
        ([], None, "no verdict on align: stage 'check' has no gates"),
        (
            [{"task": "skills", "threshold": 0.5}],
            "pass",
            r"pass: skills: align = 0\.983 \[.*\] on 60 items, all of it above 0\.5",
        ),
        ([{"task": "skills", "threshold": 0.9999}], "fail", "fail: skills"),
    ],
)
def test_summary_of_a_written_report(tmp_path: Path, gates: list[dict[str, Any]], status: str | None, verdict: str) -> None:
    workspace = Workspace(str(tmp_path))
    results, samples = evaluation(gates)
    samples[0] = Sample(
        "skills", samples[0].item, {**samples[0].replies, "align": Reply("\ud800", "stop")}, samples[0].scores
    )
    workspace.acquire("r1", "test")
    with workspace.create(
        kind="evaluate", fingerprint="r1", stage="check", type=ArtifactType.REPORT, inputs={}, holder="test"
    ) as writer:
        report.write(writer.folder, SETTING, results, samples, [])
    found = workspace.find("evaluate", "r1")
    assert found is not None
    assert set(found.manifest["files"]) == {"report.html", "report.json", "samples.jsonl"}
    summary = summarise(found)
    assert (summary.status, summary.confidence) == (status, 0.95)
    assert re.match(verdict, summary.verdict)
    assert [(row.task, row.model, row.n) for row in summary.rows][:2] == [("skills", "base", 60), ("skills", "align", 60)]
    assert summary.rows[1].low < summary.rows[1].score < summary.rows[1].high


def test_groups_matrix_and_rules_are_shown_and_counted() -> None:
    """Four models on two groups with clusters, a judge that could not read one reply, and rules of every kind."""
    names = ["base", "sft", "<other>", "align"]

    def sample(i: int) -> Sample:
        scores = {
            name: Score(float((i + place) % 4 < place), "x", {"strict": 0.0} if i % 2 else {})
            for place, name in enumerate(names)
            if (i, name) != (7, "align")
        }
        item = Item(f"id{i}", user("?"), "", groups={"subject": "<b>" if i % 3 else "law"}, cluster=f"c{i // 2}")
        return Sample("skills", item, {name: Reply("reply", "stop") for name in names}, scores)

    samples = [sample(i) for i in range(120)]
    gates = [
        {"task": "skills", "baseline": "base", "minEffect": 0.1},
        {"task": "skills", "metric": "strict", "comparison": "below", "threshold": 0.2, "confidence": 0.9},
        {"task": "skills", "metric": "macro", "threshold": 0.5},
    ]

    def conclusion(of: Sequence[Sample]) -> Results:
        return conclude(
            of,
            candidate="align",
            baselines=["base", "sft"],
            gates=[GateSpec.model_validate(gate) for gate in gates],
            confidence=0.95,
            exposures={"skills": Exposure(disjoint=True)},
            remarks=["the judge is <related>"],
        )

    results = conclusion(samples)
    assert conclusion(samples[::-1]) == results
    values = report.report_json(SETTING, results, [])
    json.dumps(values, allow_nan=False)
    scores = {score["model"]: score for score in values["scores"]}
    assert list(scores) == ["base", "sft", "<other>", "align"]
    assert (scores["align"]["n"], scores["align"]["unscored"], scores["align"]["clusters"]) == (119, 1, 60)
    assert (scores["base"]["n"], scores["base"]["unscored"]) == (120, 0)
    assert scores["align"]["variants"]["strict"]["n"] == 59
    groups = scores["align"]["groups"]["subject"]
    assert list(groups) == ["<b>", "law"]
    assert groups["<b>"]["n"] + groups["law"]["n"] == 119
    macro = scores["align"]["macro"]["subject"]
    assert macro["value"] == pytest.approx((groups["<b>"]["value"] + groups["law"]["value"]) / 2)
    assert macro["low"] < macro["value"] < macro["high"]
    [matrix] = values["winRates"]
    assert matrix["models"] == ["base", "sft", "<other>", "align"]
    assert matrix["rates"][3][0] + matrix["rates"][0][3] == pytest.approx(1)
    assert matrix["rates"][0][0] is None
    assert [(rule["metric"], rule["comparison"], rule["limit"]) for rule in values["rules"]] == [
        ("score", "above", 0.1),
        ("strict", "below", 0.2),
        ("macro", "above", 0.5),
    ]
    assert [(rule["confidence"], rule["n"], rule["basis"]) for rule in values["rules"]] == [
        (0.95, 119, "clean"),
        (0.9, 59, "clean"),
        (0.95, 119, "clean"),
    ]
    assert all(rule["detectable"] > 0 for rule in values["rules"])
    assert values["rules"][0]["itemsForEffect"] > 0
    assert values["warnings"] == ["the judge is <related>"]
    setting = report.Setting("my-run", "check", {"align": "m2", "base": "b", "sft": "s"}, TASKS[:1], 0.0)
    page = Page(report.report_html(setting, results, samples, []))
    assert page.open == []
    assert page.tags.count("svg") == 3  # scores, win rates, subjects
    for words in ("Win rates on skills", "skills by subject", "must be", "below 0.2", "above +0.1", "unscored", "<other>"):
        assert words in page.text
    assert "several rules make it stricter, and need no correction" in page.text
    rows = [row for row in report.sample_rows(setting, samples) if row["item"] == "id7"]
    assert [(row["model"], row["score"]) for row in rows][-1] == ("align", None)


def test_skills_of_flask_are_a_radar() -> None:
    skills = {"Factuality": 0.5, "Readability": 1.0, "Completeness": 0.25}
    samples = [
        Sample("open", Item(f"q{i}", user("?"), ""), {"align": Reply("x", "stop")}, {"align": Score(0.5, "x", skills)})
        for i in range(4)
    ]
    results = conclude(samples, candidate="align", baselines=[], gates=[], confidence=0.95)
    task = TaskSpec.model_validate({"name": "open", "benchmark": "flask", "uri": "x"})
    page = Page(report.report_html(report.Setting("r", "c", {"align": "m"}, [task], 0.0), results, samples, []))
    assert page.tags.count("svg") == 2
    assert "Readability" in page.text


def test_keys_in_addresses_of_tasks_are_not_shown() -> None:
    signed = "https://host/x.json?X-Amz-Signature=secret"
    task = TaskSpec(name="skills", benchmark="gsm8k", uri="zip://a.jsonl::s3://me:secret@host/x.zip", examples=signed)
    results = conclude([], candidate="m", baselines=[], gates=[], confidence=0.95)
    values = report.report_json(report.Setting("r", "c", {"m": "f"}, [task], 0.0), results, [])
    assert "secret" not in json.dumps(values)
    [told] = values["tasks"]
    assert (told["uri"], told["examples"]) == ("zip://a.jsonl::s3://host/x.zip", "https://host/x.json")
    assert TaskSpec.model_validate(told, by_name=False, by_alias=True).benchmark == "gsm8k"  # as the model's card reads it
