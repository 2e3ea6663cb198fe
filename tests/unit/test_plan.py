"""Planning: external inputs are found and told apart, whole artifacts are cached."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from plumbline import external
from plumbline.api.base import ArtifactType
from plumbline.api.run import AlignmentRun
from plumbline.api.stages.curate import CurateSpec
from plumbline.errors import InvalidRun
from plumbline.plan import Plan, make_plan


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the built-in model: only its content identity matters here."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(external, "tiny_folder", lambda: folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> AlignmentRun:
    """Two branches over two files: `a` → sft, `b` → other."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"{name}": 1}}\n')
    value = {
        "apiVersion": "plumbline.dev/v1alpha1",
        "kind": "AlignmentRun",
        "metadata": {"name": "plan"},
        "spec": {
            "model": {"base": "builtin://tiny"},
            "workspace": {"uri": str(tmp_path / "workspace")},
            "stages": [
                {"name": "a", "curate": {"sources": [{"uri": str(tmp_path / "a.jsonl")}]}},
                {"name": "sft", "sft": {}},
                {"name": "b", "curate": {"sources": [{"uri": str(tmp_path / "*b.jsonl")}, {"uri": "builtin://skills"}]}},
                {"name": "other", "inputs": {"model": "base"}, "sft": {}},
            ],
        },
    }
    return AlignmentRun.model_validate(value, by_name=False, by_alias=True)


def edited(run: AlignmentRun, **uris: str) -> AlignmentRun:
    """The run with other source URIs, by stage."""
    value = run.model_dump(mode="json", by_alias=True, exclude_none=True)
    for stage in value["spec"]["stages"]:
        if stage["name"] in uris:
            stage["curate"]["sources"][0]["uri"] = uris[stage["name"]]
    return AlignmentRun.model_validate(value, by_name=False, by_alias=True)


def problems(run: AlignmentRun) -> dict[str, str]:
    with pytest.raises(InvalidRun) as error:
        make_plan(run)
    return {problem.path: problem.message for problem in error.value.problems}


def test_planning_twice_gives_the_same_and_writes_nothing(run: AlignmentRun, tmp_path: Path) -> None:
    assert make_plan(run) == make_plan(run)
    assert not (tmp_path / "workspace").exists()


def test_every_missing_file_is_named_with_its_field(run: AlignmentRun, tmp_path: Path) -> None:
    gone, none = str(tmp_path / "gone.jsonl"), str(tmp_path / "none*.jsonl")
    assert problems(edited(run, a=gone, b=none)) == {
        "spec.stages[0].curate.sources[0].uri": f"no file matches '{gone}'; give an existing file, folder or glob",
        "spec.stages[2].curate.sources[0].uri": f"no file matches '{none}'; give an existing file, folder or glob",
    }


def test_an_empty_folder_holds_no_file(run: AlignmentRun, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no file matches" in problems(edited(run, a=str(tmp_path / "empty")))["spec.stages[0].curate.sources[0].uri"]


def test_unknown_places_are_named_with_their_field(run: AlignmentRun) -> None:
    assert problems(edited(run, a="builtin://skils", b="nosuch://bucket/file")) == {
        "spec.stages[0].curate.sources[0].uri": (
            "'builtin://skils' is not built in; there are builtin://tiny (a model) and builtin://skills (data)"
        ),
        "spec.stages[2].curate.sources[0].uri": "'nosuch://bucket/file' cannot be opened: Protocol not known: nosuch",
    }


def changed(before: Plan, after: Plan) -> set[str]:
    return {name for name, value in after.fingerprints.items() if value != before.fingerprints[name]}


def test_touching_a_source_changes_its_dependents_only(run: AlignmentRun, tmp_path: Path) -> None:
    before = make_plan(run)
    (tmp_path / "b.jsonl").write_text('{"b": 1}\n{"b": 2}\n')
    assert changed(before, make_plan(run)) == {"b", "other"}


def test_a_new_file_behind_a_glob_changes_its_dependents_only(run: AlignmentRun, tmp_path: Path) -> None:
    before = make_plan(run)
    (tmp_path / "0b.jsonl").write_text("{}\n")
    assert changed(before, make_plan(run)) == {"b", "other"}


def test_another_base_model_changes_all_that_build_on_it(run: AlignmentRun, tiny: Path) -> None:
    before = make_plan(run)
    (tiny / "model.safetensors").write_bytes(b"other weights")
    assert changed(before, make_plan(run)) == {"sft", "other"}


def test_a_whole_artifact_is_found_and_a_broken_off_one_is_not(run: AlignmentRun) -> None:
    plan = make_plan(run)
    assert plan.artifact("a") is None
    fingerprint = plan.fingerprints["a"]
    known = {"kind": "curate", "fingerprint": fingerprint, "stage": "a", "type": ArtifactType.DATASET, "inputs": {}}
    plan.workspace.acquire(fingerprint, "test")
    with contextlib.suppress(ZeroDivisionError), plan.workspace.create(**known, holder="test") as writer:  # type: ignore[arg-type]
        (writer.folder / "rows").write_text("half")
        raise ZeroDivisionError
    assert plan.artifact("a") is None
    with plan.workspace.create(**known, holder="test") as writer:  # type: ignore[arg-type]
        (writer.folder / "rows").write_text("all")
    found = plan.artifact("a")
    assert found is not None
    assert found.type == ArtifactType.DATASET
    assert make_plan(run).artifact("a") == found
    assert plan.artifact("b") is None


def test_a_plan_survives_the_way_through_its_file(run: AlignmentRun, tmp_path: Path) -> None:
    plan = make_plan(run, workspace=str(tmp_path / "elsewhere"))
    path = tmp_path / "RUN.json"
    path.write_text(json.dumps(plan.to_json()))
    assert Plan.load(path) == plan
    assert plan.workspace_uri == str(tmp_path / "elsewhere")


def test_the_benchmarks_of_the_whole_run_are_told_apart_for_stages_that_keep_clear_of_them(
    run: AlignmentRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with `until`: a dataset is the same whether its evaluation is planned or not."""
    questions = tmp_path / "gsm8k.jsonl"
    questions.write_text("{}\n")
    value = run.model_dump(mode="json", by_alias=True, exclude_none=True)
    task = {"name": "maths", "benchmark": "gsm8k", "uri": str(questions)}
    value["spec"]["stages"].append({"name": "check", "evaluate": {"tasks": [task]}})
    evaluating = AlignmentRun.model_validate(value, by_name=False, by_alias=True)
    monkeypatch.setattr(CurateSpec, "avoids_benchmarks", lambda self: True)
    whole, part = make_plan(evaluating), make_plan(evaluating, until="a")
    assert whole.fingerprints["a"] == part.fingerprints["a"] != make_plan(run).fingerprints["a"]
    assert part.identities[str(questions)] == whole.identities[str(questions)]
    questions.unlink()
    with pytest.raises(InvalidRun, match="no file matches"):
        make_plan(evaluating, until="a")
    monkeypatch.setattr(CurateSpec, "avoids_benchmarks", lambda self: False)
    assert str(questions) not in make_plan(evaluating, until="a").identities
