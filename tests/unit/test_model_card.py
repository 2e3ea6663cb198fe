"""The model card of an evaluated model, and the report's charts of skills, groups and win rates."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from huggingface_hub import ModelCard

from plumbline.api.stages.evaluate import GateSpec, TaskSpec
from plumbline.evaluation.benchmarks.benchmark import Item, Score, user
from plumbline.evaluation.charts import bars_chart, radar_chart, win_matrix
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.model_card import card
from plumbline.evaluation.report import Setting, report_json
from plumbline.evaluation.results import Sample, conclude
from plumbline.evaluation.statistics import Estimate

EVIL = "a|b `c` <script>alert(1)</script> *d* [e](http://f)\n# g"


def written(run: str = "run-1", right: int = 15) -> dict[str, Any]:
    """A report on two tasks, as report.json holds it."""
    tasks = [
        TaskSpec(name="sums", benchmark="gsm8k", uri="x.jsonl"),
        TaskSpec(name="code", benchmark="humaneval", uri="y.jsonl"),
    ]
    samples = [
        Sample(
            task.name,
            Item(f"{task.name}-{i}", user(f"{i}?"), "1"),
            {name: Reply("1", "stop") for name in ("new", "base")},
            {
                name: Score(float(i < n), "1" if i else None, {"strict": float(i < n - 1)})
                for name, n in (("new", right), ("base", 9))
            },
        )
        for task in tasks
        for i in range(20)
    ]
    gates = [GateSpec(task="sums", threshold=0.5)]
    results = conclude(samples, candidate="new", baselines=["base"], gates=gates, confidence=0.95)
    setting = Setting(run, "check", {"new": "f-new", "base": "f-base"}, tasks, 0.0)
    found: dict[str, Any] = json.loads(json.dumps(report_json(setting, results, [])))
    return found


def manifest(kind: str, type: str, fingerprint: str, metrics: dict[str, Any], stage: str = "") -> dict[str, Any]:
    return {"stage": stage or f"my-{kind}", "kind": kind, "type": type, "fingerprint": fingerprint, "metrics": metrics, "details": {"rows": 7}}  # fmt: skip


def data_card(**fields: Any) -> dict[str, Any]:
    source = {"name": "s", "uri": "s3://key:secret@bucket/a.jsonl?sig=abc", "records": 10, "rows": 7, "dropped": {}}
    hub = {"name": "h", "uri": "hf://datasets/org/name@main/part", "records": 2, "rows": 2, "dropped": {}}
    empty: dict[str, Any] = {"licences": {}, "languages": {}, "categories": {}, "dropped": {}}
    return {"form": "messages", "records": 12, "rows": 9, "sources": [source, hub], **empty, **fields}


def test_the_head_is_what_a_hub_reads() -> None:
    report = written()
    facts: dict[str, Any] = {
        "base": "hf://org/base@abc",
        "revision": "abc",
        "licence": "apache-2.0",
        "manifests": [
            manifest("curate", "Dataset", "d1", {}),
            manifest("sft", "Model", "f-new", {"loss": 0.25, "bad": float("nan")}),
        ],
        "cards": {"d1": data_card()},
    }
    text = card(report, **facts)
    head = ModelCard(text).data
    assert (head.base_model, head.license, head.library_name) == ("org/base", "apache-2.0", "transformers")
    assert head.datasets == ["org/name"]
    scores = {score["task"]: score for score in report["scores"] if score["model"] == "new"}
    found = {(one.dataset_name, one.metric_name): one for one in head.eval_results}
    assert set(found) == {
        (task, name) for task, metric in (("sums", "accuracy"), ("code", "pass@1")) for name in (metric, "strict")
    }
    for task, metric in (("sums", "accuracy"), ("code", "pass@1")):
        one = found[task, metric]
        assert (one.metric_type, one.metric_value) == (metric, pytest.approx(scores[task]["score"]))
        assert one.metric_args == {**{name: scores[task][name] for name in ("low", "high", "n")}, "confidence": 0.95}
        assert found[task, "strict"].metric_value == pytest.approx(scores[task]["variants"]["strict"]["value"])
    assert (found["sums", "strict"].dataset_type, found["code", "strict"].dataset_type) == ("gsm8k", "humaneval")
    assert text == card(report, **facts)
    report["tasks"][1] |= {"benchmark": "lmEvaluationHarness", "harnessTask": "mbpp", "harnessMetric": "acc_norm"}
    of_harness = {(one.dataset_type, one.metric_name) for one in ModelCard(card(report, **facts)).data.eval_results}
    assert ("mbpp", "acc_norm") in of_harness
    assert "mbpp (lm-evaluation-harness)" in card(report, **facts)
    unknown = ModelCard(card(report, base="builtin://tiny")).data
    assert (unknown.base_model, unknown.license, unknown.datasets) == (None, None, None)


def test_the_body_tells_data_training_figures_and_verdict() -> None:
    report = written()
    family = [
        manifest("curate", "Dataset", "d1", {}),
        manifest("synthesize", "Dataset", "d2", {}),
        manifest("sft", "Model", "m1", {"loss": 0.25}),
    ]
    found = data_card(licences={"cc-by-nc-4.0": 5}, dropped={"too short": 2, "repeated": 1}, languages={"en": 9})
    text = card(report, base="/models/b", manifests=family, cards={"d1": found})
    assert "9 of 12 records were kept (messages)" in text
    assert "3 were dropped, most often: too short 2, repeated 1." in text
    assert "Licences, by rows: cc-by-nc-4.0 5." in text
    assert "### my-synthesize (synthesize)\n\n7 rows; its data card is lost." in text
    assert "secret" not in text
    assert "sig=" not in text
    assert "`s3://bucket/a.jsonl`" in text
    assert "| my-sft | sft | Model | `m1` | loss 0.25 |" in text
    score = next(one for one in report["scores"] if (one["task"], one["model"]) == ("sums", "new"))
    assert (
        f"| sums | gsm8k | new | accuracy | 0.750 ({score['low']:.3f} to {score['high']:.3f}) | 20 | strict 0.700 |" in text
    )
    assert "| sums | base | +0.300 (" in text
    assert f"**{report['verdict']}**" in text
    limits = text[text.index("## Limits") :]
    assert "cc-by-nc-4.0" in limits
    assert "was not checked" in limits
    assert "were not measured" in limits
    assert "sums: of 20 items, 1 replies held no answer and count 0." in limits


def test_limits_and_verdict_follow_the_report() -> None:
    report = written()
    report["tasks"].append(TaskSpec(name="safe", benchmark="xsTest", uri="z").model_dump(mode="json", by_alias=True))
    report["tasks"].append(TaskSpec(name="talk", benchmark="vicuna80", uri="z").model_dump(mode="json", by_alias=True))
    score = next(one for one in report["scores"] if one["model"] == "new")
    report["scores"].append({**score, "task": "talk", "groups": {"category": {"a": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}, "b": {"value": 1, "low": 0.9, "high": 1, "n": 2}}}})  # fmt: skip
    report |= {"verdict": None, "verdictReason": None, "rules": [], "warnings": ["the judge is of the same family"]}
    text = card(report, base="/b")
    assert "has no gate" in text
    assert "A model has judged talk" in text
    assert "- the judge is of the same family" in text
    assert "were not measured" not in text
    assert "| talk | vicuna80 | new | win\\_rate |" in text or "| talk | vicuna80 | new | win_rate |" in text
    assert "### talk by category" in text
    assert "| b | 1.000 (0.900 to 1.000) | 2 |" in text
    assert "Data" not in re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_what_files_say_is_text() -> None:
    report = written(run=EVIL)
    found = data_card(licences={EVIL: 1}, dropped={EVIL: 3}, form=EVIL)
    found["sources"][0] |= {"name": EVIL, "uri": f"/data/{EVIL}"}
    text = card(
        report, base=EVIL, manifests=[manifest("curate", "Dataset", "d1", {EVIL: 1.0}, stage=EVIL)], cards={"d1": found}
    )
    body = text.split("---", 2)[2]
    outside = re.sub(r"`[^`\n]*`", "", body)  # within backticks nothing is read
    assert "<script" not in outside
    assert "<script" in body
    assert not re.search(r"(?<!\\)\[e(?<!\\)\]", outside)
    assert not re.search(r"^# g", body, re.MULTILINE)
    assert body.count("`") % 2 == 0
    for table in re.findall(r"(?:^\|.*\|\n)+", body + "\n", re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert ModelCard(text).data.eval_results


def estimate(value: float) -> Estimate:
    return Estimate(value, max(0.0, value - 0.1), min(1.0, value + 0.1), 9)


SERIES = {
    "new": {"readability": estimate(0.9), "logic $x$": estimate(0.4), "depth": estimate(0.5)},
    "base": {"readability": estimate(0.6), "depth": estimate(0.2), "<b>": estimate(1.0)},
}


def test_charts_of_skills_and_groups_hold_every_name_and_nothing_that_a_page_would_load() -> None:
    for chart in (
        radar_chart(SERIES),
        bars_chart(SERIES),
        radar_chart({"one": {"a": estimate(0.5)}}),
        bars_chart({"one": {"a": estimate(0.5)}}),
    ):
        assert chart.startswith("<svg")
        assert not re.search(r"<script|<image|<b>|<!DOCTYPE|url\(http", chart)
    for draw in (radar_chart, bars_chart):
        chart = draw(SERIES)
        for words in ("new", "base", "readability", "logic $x$", "depth", "&lt;b&gt;"):
            assert f">{words}<" in chart
        assert chart == draw(SERIES)
        assert set(re.findall(r' id="(\w+)"', draw(SERIES, "other"))) != set(re.findall(r' id="(\w+)"', chart))
    assert bars_chart(SERIES).count('id="patch_') > bars_chart({"new": SERIES["new"]}).count('id="patch_')


def test_a_matrix_of_win_rates_shows_its_numbers() -> None:
    rates = [[None, estimate(0.25), None], [estimate(0.75), None, estimate(0.9)], [None, estimate(0.1), None]]
    chart = win_matrix(["x", "y", "z$"], rates)
    assert re.findall(r">(0\.\d\d)<", chart) == ["0.25", "0.75", "0.90", "0.10"]
    assert "<image" not in chart  # the report's policy would not load it
    assert ">z$<" in chart
    assert chart == win_matrix(["x", "y", "z$"], rates)
