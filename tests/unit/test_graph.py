"""Wiring, its refusals, and fingerprints."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from plumbline.api.base import ArtifactType
from plumbline.api.run import RunSpec
from plumbline.api.stages.sft import SftSpec
from plumbline.errors import InvalidRun
from plumbline.graph import Graph, benchmark_files, build_graph, fingerprints

Stages = list[dict[str, Any]]

SKILLS = {"sources": [{"uri": "builtin://skills"}]}
DATA = {"name": "data", "curate": SKILLS}
PAIRS = {"name": "pairs", "curate": {**SKILLS, "produces": "PreferenceDataset"}}
SFT: dict[str, Any] = {"name": "sft", "sft": {}}
CHECK = {
    "name": "check",
    "evaluate": {"tasks": [{"name": "skills", "benchmark": "skills"}], "gates": [{"task": "skills", "threshold": 0.5}]},
}
SERVE: dict[str, Any] = {"name": "live", "serve": {}}


def run_spec(*stages: dict[str, Any], **fields: Any) -> RunSpec:
    value = {"model": {"base": "builtin://tiny"}, "workspace": {"uri": "w"}, "stages": copy.deepcopy(list(stages)), **fields}
    return RunSpec.model_validate(value, by_name=False, by_alias=True)


def graph(*stages: dict[str, Any]) -> Graph:
    return build_graph(run_spec(*stages))


def refusals(*stages: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidRun) as error:
        graph(*stages)
    return {problem.path: problem.message for problem in error.value.problems}


def test_inputs_come_from_the_nearest_earlier_stage_of_the_right_type() -> None:
    found = graph(
        DATA, SFT, {**DATA, "name": "more"}, PAIRS, {"name": "dpo", "preference": {}}, {"name": "sft2", "sft": {}}, CHECK
    )
    assert found["data"].inputs == {}
    assert found["sft"].inputs == {"model": ("base",), "dataset": ("data",)}
    assert found["dpo"].inputs == {"model": ("sft",), "dataset": ("pairs",)}
    assert found["sft2"].inputs == {"model": ("dpo",), "dataset": ("more",)}
    assert found["check"].inputs == {"model": ("sft2",), "baselines": ("base",)}


def test_explicit_inputs_win() -> None:
    check = {**CHECK, "inputs": {"model": "b", "baselines": ["base", "a"]}}
    branches = [{"name": "a", "sft": {}}, {"name": "b", "inputs": {"model": "base"}, "sft": {}}]
    found = graph(DATA, *branches, check, {**SERVE, "inputs": {"model": "b", "report": "check"}})
    assert found["b"].inputs["model"] == ("base",)
    assert found["check"].inputs == {"model": ("b",), "baselines": ("base", "a")}
    assert found["check"].parents == ["b", "a"]
    assert found["live"].inputs == {"model": ("b",), "report": ("check",)}


def test_what_a_stage_needs() -> None:
    found = graph(DATA, SFT, PAIRS, CHECK, SERVE)
    assert found.up_to("check") == {"data", "sft", "check"}
    assert found["pairs"].output == ArtifactType.PREFERENCE_DATASET
    with pytest.raises(KeyError):
        found["nowhere"]


def named(role: str, value: Any, kind: str = "sft") -> dict[str, Any]:
    return {"name": "reader", "inputs": {role: value}, kind: {}}


REFUSALS: list[tuple[str, Stages, str, str]] = [
    (
        "two kinds",
        [DATA, {"name": "s", "sft": {}, "rlhf": {}}],
        "spec.stages[1]",
        "a stage holds exactly one kind; 's' has sft and rlhf",
    ),
    ("no kind", [{"name": "s"}], "spec.stages[0]", "a stage holds exactly one kind; 's' has none"),
    ("duplicate", [DATA, DATA], "spec.stages[1].name", "'data' names stage 0 too; names are unique"),
    (
        "base as a name",
        [{**DATA, "name": "base"}],
        "spec.stages[0].name",
        "'base' is reserved for spec.model.base; take another name",
    ),
    (
        "unknown stage",
        [DATA, named("dataset", "dtaa")],
        "spec.stages[1].inputs.dataset",
        "no stage is called 'dtaa'; accepted here: data",
    ),
    (
        "later stage",
        [DATA, named("model", "late"), {"name": "late", "inputs": {"model": "base"}, "sft": {}}],
        "spec.stages[1].inputs.model",
        "'late' comes later and a stage reads only earlier ones; accepted here: base",
    ),
    (
        "cycle",
        [DATA, named("model", "b"), {"name": "b", "inputs": {"model": "reader"}, "sft": {}}],
        "spec.stages[1].inputs.model",
        "'b' comes later and reads 'reader' itself: a cycle; accepted here: base",
    ),
    (
        "itself",
        [DATA, named("model", "reader")],
        "spec.stages[1].inputs.model",
        "'reader' reads itself, which is a cycle; accepted here: base",
    ),
    (
        "wrong type",
        [DATA, PAIRS, named("dataset", "pairs")],
        "spec.stages[2].inputs.dataset",
        "'pairs' makes a PreferenceDataset, this input takes a Dataset; accepted here: data",
    ),
    (
        "base as data",
        [PAIRS, named("dataset", "base")],
        "spec.stages[1].inputs.dataset",
        "no stage is called 'base'; no earlier stage fits",
    ),
    (
        "no such role",
        [DATA, {"name": "s", "inputs": {"report": "data"}, "sft": {}}],
        "spec.stages[1].inputs.report",
        "kind sft has no such input; it has: model, dataset",
    ),
    (
        "no data",
        [PAIRS, SFT],
        "spec.stages[1].inputs.dataset",
        "'sft' needs a Dataset and no earlier stage makes one",
    ),
    (
        "no gate",
        [DATA, SFT, SERVE],
        "spec.stages[2].serve",
        "'live' needs an earlier evaluate stage with gates; add one, or say `ungated: true`",
    ),
    (
        "another model",
        [DATA, CHECK, SFT, SERVE],
        "spec.stages[3].inputs.report",
        "'check' evaluated 'base', but 'live' would serve 'sft'; name the same model in both",
    ),
    (
        "unknown baseline",
        [{"name": "c", "evaluate": {**CHECK["evaluate"], "gates": [{"task": "skills", "baseline": "old"}]}}],  # type: ignore[dict-item]
        "spec.stages[0].evaluate.gates[0].baseline",
        "'old' is no baseline of 'c'; its inputs.baselines: 'base'",
    ),
    (
        "what the kind itself finds",
        [{"name": "c", "evaluate": {"tasks": [{"name": "m", "benchmark": "mmlu"}]}}],
        "spec.stages[0].evaluate.tasks[0].uri",
        "benchmark mmlu needs the uri of its data",
    ),
]


@pytest.mark.parametrize(("stages", "path", "message"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
def test_refusals_name_the_field_the_value_and_what_is_accepted(stages: Stages, path: str, message: str) -> None:
    assert refusals(*stages)[path] == message


def test_all_problems_are_told_at_once() -> None:
    found = refusals({"name": "base", "sft": {}}, SERVE, {"name": "empty"})
    assert set(found) == {"spec.stages[0].name", "spec.stages[0].inputs.dataset", "spec.stages[1].serve", "spec.stages[2]"}


def test_an_ungated_serve_needs_no_report() -> None:
    assert graph({"name": "live", "serve": {"ungated": True}})["live"].inputs == {"model": ("base",)}


IDENTITIES = {"builtin://tiny": "t1", "builtin://skills": "s1"}
PIPELINE = [DATA, SFT, CHECK]


def prints(stages: Stages, identities: dict[str, str] | None = None, **fields: Any) -> list[str]:
    spec = run_spec(*stages, **fields)
    return list(fingerprints(build_graph(spec), spec, identities or IDENTITIES).values())


def changed(other: list[str]) -> list[bool]:
    return [a != b for a, b in zip(prints(PIPELINE), other, strict=True)]


def test_fingerprints_are_stable_and_differ_by_stage() -> None:
    first = prints(PIPELINE)
    assert first == prints(PIPELINE)
    assert len(set(first)) == 3
    assert all(len(value) == 20 and set(value) <= set("0123456789abcdef") for value in first)


@pytest.mark.parametrize(
    ("stages", "fields"),
    [
        ([{**DATA, "name": "other"}, SFT, CHECK], {}),
        ([DATA, {**SFT, "cluster": {"workers": [{"gpus": 8}]}}, CHECK], {}),
        ([DATA, {**SFT, "inputs": {"dataset": "data", "model": "base"}}, CHECK], {}),
        ([DATA, {"name": "sft", "sft": {"parallelism": {"workers": 4}, "checkpoint": {"everySteps": 1}}}, CHECK], {}),
        ([DATA, {"name": "sft", "sft": {"epochs": 3, "trainOn": "all"}}, CHECK], {}),
        ([{"name": "data", "curate": {**SKILLS, "parallelism": 7}}, SFT, CHECK], {}),
        (PIPELINE, {"queueName": "q", "suspend": True, "backoffLimit": 9, "workspace": {"uri": "elsewhere"}}),
    ],
    ids=["names", "cluster", "wiring spelled out", "parallelism", "defaults spelled out", "read tasks", "run fields"],
)
def test_what_does_not_change_the_result_does_not_change_fingerprints(stages: Stages, fields: dict[str, Any]) -> None:
    assert changed(prints(stages, **fields)) == [False, False, False]


def test_an_evaluation_depends_on_the_names_that_its_gates_and_report_speak_of() -> None:
    assert changed(prints([DATA, {"name": "tuned", "sft": {}}, CHECK])) == [False, False, True]


def test_a_change_reaches_the_stage_and_its_dependents_only() -> None:
    assert changed(prints([DATA, {"name": "sft", "sft": {"epochs": 2.0}}, CHECK])) == [False, True, True]
    assert changed(prints([DATA, SFT, {**CHECK, "evaluate": {**CHECK["evaluate"], "temperature": 1}}])) == [
        False,
        False,
        True,
    ]  # type: ignore[dict-item]
    two = [{"name": "data", "curate": {**SKILLS, "seed": 1}}, SFT, CHECK]
    assert changed(prints(two)) == [True, True, True]
    more = [DATA, {"name": "more", "curate": {**SKILLS, "seed": 1}}, {**SFT, "inputs": {"dataset": "more"}}, CHECK]
    assert prints(more)[0] == prints(PIPELINE)[0]
    assert prints(more)[2] != prints(PIPELINE)[1]


def test_external_content_changes_its_readers() -> None:
    assert changed(prints(PIPELINE, IDENTITIES | {"builtin://tiny": "t2"})) == [False, True, True]
    assert changed(prints(PIPELINE, IDENTITIES | {"builtin://skills": "s2"})) == [True, True, True]
    assert changed(prints(PIPELINE, model={"base": "builtin://tiny", "dtype": "float32"})) == [False, True, True]


def test_the_kinds_code_version_changes_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    before = prints(PIPELINE)
    monkeypatch.setattr(SftSpec, "code_version", "next")
    assert [a != b for a, b in zip(before, prints(PIPELINE), strict=True)] == [False, True, True]


def test_benchmarks_enter_the_fingerprints_of_stages_that_keep_clear_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluating(name: str = "maths", benchmark: str = "gsm8k", uri: str = "a.jsonl", **fields: Any) -> Stages:
        task = {"name": name, "benchmark": benchmark, "uri": uri, **fields}
        return [DATA, SFT, {"name": "check", "evaluate": {"tasks": [task]}}]

    files = IDENTITIES | {"a.jsonl": "a1", "b.jsonl": "b1"}
    monkeypatch.setattr(type(graph(DATA)["data"].spec), "avoids_benchmarks", lambda self: False)
    assert prints(evaluating(), files)[:2] == prints(PIPELINE)[:2]
    monkeypatch.setattr(type(graph(DATA)["data"].spec), "avoids_benchmarks", lambda self: True)
    first = prints(evaluating(), files)
    assert prints(evaluating("renamed", limit=3, seed=9, maxTokens=5), files)[:2] == first[:2]
    for other in (
        prints(evaluating(), files | {"a.jsonl": "a2"}),
        prints(evaluating(uri="b.jsonl"), files),
        prints(evaluating(benchmark="promptAnswer"), files),
        prints(PIPELINE),
    ):
        assert [a != b for a, b in zip(first[:2], other[:2], strict=True)] == [True, True]
    assert benchmark_files(run_spec(*evaluating())) == {"spec.stages[2].evaluate.tasks[0].uri": ("gsm8k", "a.jsonl")}
    assert benchmark_files(run_spec(*PIPELINE)) == {}
