"""Scores with and without the questions that training data held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plumbline.api.base import ArtifactType
from plumbline.api.stages.evaluate import GateSpec, TaskSpec
from plumbline.artifacts import Artifact, Workspace
from plumbline.evaluation import report
from plumbline.evaluation.benchmarks.benchmark import Item, Score, user
from plumbline.evaluation.contamination import Exposure, cleanliness, exposures
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.results import Results, Sample, conclude

MATHS = TaskSpec.model_validate({"name": "maths", "benchmark": "gsm8k", "uri": "x.jsonl"})
SKILLS = TaskSpec.model_validate({"name": "skills", "benchmark": "skills"})
IDENTITIES = {"x.jsonl": "i1"}


class Lab:
    """A workspace to which artifacts are added."""

    def __init__(self, folder: Path) -> None:
        self.workspace = Workspace(str(folder))
        self.made = 0

    def add(
        self,
        type: ArtifactType,
        inputs: dict[str, list[Artifact]] | None = None,
        touched: dict[str, int] | None = None,
        kind: str | None = None,
        sources: list[dict[str, Any]] | None = None,
        **entry: Any,
    ) -> Artifact:
        """An artifact; with `touched`, question → rows left, it has a report on GSM8K."""
        self.made += 1
        fingerprint, kind = f"f{self.made}", kind or ("curate" if "Dataset" in type else "sft")
        self.workspace.acquire(fingerprint, "test")
        with self.workspace.create(
            kind=kind, fingerprint=fingerprint, stage=f"stage{self.made}", type=type, inputs=inputs or {}, holder="test"
        ) as writer:
            (writer.folder / "x").write_text("x")
            writer.sources.extend(sources or [])
            if touched is not None:
                items = {item: {"cover": 1.0, "rows": 2, "rowsLeft": left} for item, left in touched.items()}
                values = {"benchmark": "gsm8k", "identity": "i1", "touchedItems": items} | entry
                (writer.folder / "contamination.json").write_text(json.dumps({"benchmarks": [values]}))
        found = self.workspace.find(kind, fingerprint)
        assert found is not None
        return found

    def exposures(self, *models: Artifact) -> dict[str, Exposure]:
        return exposures([MATHS, SKILLS], IDENTITIES, models, self.workspace)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_every_dataset_of_the_lineage_counts(lab: Lab) -> None:
    first = lab.add(ArtifactType.DATASET, touched={"a": 0, "b": 0})
    second = lab.add(ArtifactType.DATASET, {"dataset": [first]}, touched={"b": 1})
    pairs = lab.add(ArtifactType.PREFERENCE_DATASET, touched={"c": 2})
    sft = lab.add(ArtifactType.MODEL, {"dataset": [second]})
    other = lab.add(ArtifactType.MODEL, {"model": [sft], "dataset": [pairs]})
    found = lab.exposures(sft, other)
    assert found["maths"] == Exposure((), frozenset("abc"), frozenset("bc"))
    assert found["maths"].status == "checked"
    assert found["skills"].status == "disjoint"
    assert lab.exposures(sft)["maths"].touched == frozenset("ab")
    assert lab.exposures()["maths"] == Exposure()


def test_what_nobody_compared_is_told(lab: Lab) -> None:
    unchecked = lab.add(ArtifactType.DATASET)
    stale = lab.add(ArtifactType.DATASET, touched={"a": 1}, identity="older")
    other = lab.add(ArtifactType.DATASET, touched={"a": 1}, benchmark="mmlu")
    checked = lab.add(ArtifactType.DATASET, {"dataset": [unchecked]}, touched={"a": 1})
    for dataset in (unchecked, stale, other):
        found = lab.exposures(lab.add(ArtifactType.MODEL, {"dataset": [dataset, checked]}))["maths"]
        assert found.unchecked == (dataset.manifest["stage"],)
        assert (found.status, found.touched) == ("not checked", frozenset("a"))
    # The one that went into a checked dataset was compared there.
    model = lab.add(ArtifactType.MODEL, {"dataset": [checked]})
    assert lab.exposures(model)["maths"].status == "checked"
    (Path(checked.uri) / "manifest.json").unlink()
    assert lab.exposures(model)["maths"].unchecked == (f"{checked.fingerprint} (lost)",)


def test_generated_questions_are_in_no_data_of_the_other_part_only(lab: Lab) -> None:
    generated = {"uri": "builtin://skills", "identity": "skills:1", "rows": 9}
    train = lab.add(ArtifactType.DATASET, sources=[generated | {"split": "train"}])
    again = lab.add(ArtifactType.DATASET, {"dataset": [train]})
    assert lab.exposures(lab.add(ArtifactType.MODEL, {"dataset": [again]}))["skills"] == Exposure(disjoint=True)
    heldout = lab.add(ArtifactType.DATASET, sources=[generated | {"split": "heldout"}])
    unknown = lab.add(ArtifactType.DATASET, sources=[generated])
    of_file = lab.add(ArtifactType.DATASET, sources=[generated | {"split": "train"}, {"uri": "a.jsonl", "rows": 1}])
    written = lab.add(ArtifactType.DATASET, {"dataset": [train]}, kind="synthesize")
    for dataset in (heldout, unknown, of_file, written):
        found = lab.exposures(
            lab.add(ArtifactType.MODEL, {"dataset": [lab.add(ArtifactType.DATASET, {"dataset": [dataset]})]})
        )
        assert (found["skills"].status, found["skills"].unchecked) == ("not checked", (dataset.manifest["stage"],))


def test_nobody_compares_tasks_of_the_harness(lab: Lab) -> None:
    task = TaskSpec.model_validate({"name": "h", "benchmark": "lmEvaluationHarness", "harnessTask": "hellaswag"})
    generated = lab.add(ArtifactType.DATASET, sources=[{"uri": "builtin://skills", "split": "train"}])
    model = lab.add(ArtifactType.MODEL, {"dataset": [generated]})
    found = exposures([task], {}, [model], lab.workspace)["h"]
    assert (found.status, found.unchecked) == ("not checked", ("stage1",))


def test_the_difference_is_that_of_the_scores_and_its_interval_covers_it() -> None:
    items = [f"q{i}" for i in range(200)]
    exposure = Exposure((), frozenset({*items[:50], "of another seed"}), frozenset(items[:10]))
    scores = {"tuned": [1.0] * 45 + [0.0] * 5 + [1.0] * 75 + [0.0] * 75, "base": [0.5] * 200, "half": [0.25, 0.75] * 100}
    found = cleanliness("maths", exposure, items, scores, 0.95)
    assert (len(found.exposure.touched), len(found.exposure.left), found.items) == (50, 10, 200)
    tuned, base, half = found.scores
    assert tuned.clean is not None
    assert tuned.difference is not None
    assert base.difference is not None
    assert half.difference is not None
    assert (tuned.all.value, tuned.clean.value, tuned.clean.n) == (0.6, 0.5, 150)
    assert tuned.difference.value == pytest.approx(0.1)
    assert 0.06 < tuned.difference.low < 0.1 < tuned.difference.high < 0.14
    assert (base.difference.value, base.difference.low, base.difference.high) == (0, 0, 0)
    assert half.difference.low < 0 < half.difference.high
    assert found.warning("tuned") == (
        "maths: 50 of 200 questions occurred in training sources, 10 are left in the data; "
        "tuned scores 0.600 on all and 0.500 on the others"
    )
    clean = cleanliness("maths", Exposure(), items, scores, 0.95)
    assert clean.scores[0].clean == clean.scores[0].all
    assert (clean.scores[0].difference, clean.warning("tuned")) == (None, None)
    dirty = cleanliness("maths", Exposure((), frozenset(items)), items, scores, 0.95)
    assert (dirty.scores[0].clean, dirty.scores[0].difference) == (None, None)
    assert dirty.warning("tuned") == "maths: 200 of 200 questions occurred in training sources, in rows that were dropped"
    json.dumps([one.to_json() for one in (found, clean, dirty)], allow_nan=False)


def evaluation(exposure: Exposure | None) -> tuple[Results, list[Sample]]:
    def sample(i: int) -> Sample:
        scores = {"align": Score(float(i < 40), "r"), "base": Score(float(i % 2), "r")}
        replies = {"align": Reply("r", "stop"), "base": Reply("r", "stop")}
        return Sample("maths", Item(f"q{i}", user("?"), "r"), replies, scores)

    samples = [sample(i) for i in range(60)]
    gates = [GateSpec.model_validate({"task": "maths", "threshold": 0.5})]
    known = {"maths": exposure} if exposure else None
    return (
        conclude(samples, candidate="align", baselines=["base"], gates=gates, confidence=0.95, exposures=known),
        samples,
    )


def test_the_gate_decides_on_what_is_proven_clean() -> None:
    touched = frozenset(f"q{i}" for i in range(20))
    for exposure, status, items, basis in (
        (Exposure(disjoint=True), "pass", 60, "clean"),
        (Exposure((), touched), "inconclusive", 40, "clean subset"),  # 20 of 40
        (Exposure(("data",), touched), "inconclusive", 60, "not proven"),
        (None, "inconclusive", 60, "not proven"),
    ):
        verdict = evaluation(exposure)[0].verdict
        assert verdict is not None
        [rule] = verdict.rules
        assert rule.estimate is not None
        assert (verdict.status, rule.estimate.n, rule.basis) == (status, items, basis)


def test_the_report_shows_all_clean_and_difference() -> None:
    exposure = Exposure(("<data>",), frozenset(f"q{i}" for i in range(20)), frozenset())
    results, samples = evaluation(exposure)
    plain, _ = evaluation(None)
    assert (plain.warnings, plain.to_json()["contamination"]) == ([], [])
    setting = report.Setting("run", "check", {"align": "m", "base": "b"}, [MATHS], 0.0)
    values = report.report_json(setting, results, [])
    [task] = values["contamination"]
    assert (task["status"], task["unchecked"], len(task["touched"])) == ("not checked", ["<data>"], 20)
    base, align = task["scores"]
    assert (align["model"], align["all"]["value"], align["clean"]["value"]) == ("align", 40 / 60, 0.5)
    assert align["difference"]["value"] == pytest.approx(1 / 6)
    assert align["difference"]["low"] < 1 / 6 < align["difference"]["high"]
    assert base["difference"]["value"] == pytest.approx(0)
    page = report.report_html(setting, results, samples, [])
    assert "not checked: &lt;data&gt;" in page
    assert '<td class="number">0.667</td><td class="number">0.500</td><td class="number">+0.167</td>' in page
    assert "<li>warning: maths: nobody compared it with the data of &lt;data&gt;; 20 of 60 questions" in page
    assert "not proven clean: nobody compared it with the data of &lt;data&gt;" in page
    assert "Contamination" not in report.report_html(setting, plain, samples, [])


def test_replies_without_a_score_count_nowhere() -> None:
    scores = {"tuned": [1.0, None, 0.0, 1.0], "base": [None] * 4}
    found = cleanliness("maths", Exposure((), frozenset("ab")), list("abcd"), scores, 0.95)
    [tuned] = found.scores
    assert tuned.clean is not None
    assert (tuned.all.n, tuned.clean.n, tuned.clean.value) == (3, 2, 0.5)
    assert found.warning("base") == "maths: 2 of 4 questions occurred in training sources, in rows that were dropped"
