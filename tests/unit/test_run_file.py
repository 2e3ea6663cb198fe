"""Reading run files: what is wrong is told with field path, value, line and what would be accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from plumbline.api.run import AlignmentRun
from plumbline.errors import InvalidInput, InvalidRun
from plumbline.run_file import load_run

TEXT = """\
apiVersion: plumbline.dev/v1alpha1
kind: AlignmentRun
metadata:
  name: first
spec:
  model:
    base: builtin://tiny
  workspace:
    uri: workspace
  stages:
    - name: data
      curate:
        sources:
          - uri: builtin://skills
            limit: 100
    - name: sft
      sft:
        epochs: 1
        optimizer:
          learningRate: 1e-4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def load(folder: Path, text: str = TEXT, *overrides: str) -> AlignmentRun:
    path = folder / "run.yaml"
    path.write_text(text)
    return load_run(path, list(overrides))


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    """The run's problems, each without the file name that all begin with."""
    with pytest.raises(InvalidRun) as error:
        load(folder, text, *overrides)
    lines = str(error.value).splitlines()
    head = f"{folder / 'run.yaml'}: "
    assert all(line.startswith(head) for line in lines)
    return [line.removeprefix(head) for line in lines]


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InvalidInput) as error:
        load(folder, text, *overrides)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def test_a_good_file(folder: Path) -> None:
    run = load(folder)
    assert run.metadata.name == "first"
    assert run.spec.stages[1].sft is not None
    assert run.spec.stages[1].sft.optimizer.learning_rate == 1e-4


BAD = {
    "unknown field": (
        ("epochs: 1", "epochz: 1"),
        "spec.stages[1].sft.epochz: unknown field; did you mean 'epochs'? (line 18)",
    ),
    "unknown field like no other": (
        ("uri: workspace", "uri: workspace\n    xyzzy: 1"),
        "spec.workspace.xyzzy: unknown field; known here: uri, persistentVolumeClaim, credentialsSecret (line 10)",
    ),
    "python spelling of a field": (
        ("learningRate", "learning_rate"),
        "spec.stages[1].sft.optimizer.learning_rate: unknown field; did you mean 'learningRate'? (line 20)",
    ),
    "wrong type": (
        ("limit: 100", "limit: many"),
        "spec.stages[0].curate.sources[0].limit: 'many' is not accepted; expected a valid integer (line 15)",
    ),
    "number as text": (
        ("limit: 100", "limit: '100'"),
        "spec.stages[0].curate.sources[0].limit: '100' is not accepted; expected a valid integer (line 15)",
    ),
    "word for a block": (
        ("optimizer:\n          learningRate: 1e-4", "optimizer: adam"),
        "spec.stages[1].sft.optimizer: 'adam' is not accepted; expected a mapping (line 19)",
    ),
    "number out of range": (
        ("limit: 100", "limit: 0"),
        "spec.stages[0].curate.sources[0].limit: 0 is not accepted; expected greater than or equal to 1 (line 15)",
    ),
    "infinite": (
        ("learningRate: 1e-4", "learningRate: .inf"),
        "spec.stages[1].sft.optimizer.learningRate: inf is not accepted; expected a finite number (line 20)",
    ),
    "unknown word": (
        ("epochs: 1", "trainOn: some"),
        "spec.stages[1].sft.trainOn: 'some' is not accepted; use one of 'all' or 'last' (line 18)",
    ),
    "bad name": (
        ("name: sft", "name: My SFT"),
        "spec.stages[1].name: 'My SFT' does not match ^[a-z]([-a-z0-9]*[a-z0-9])?$ (line 16)",
    ),
    "required": (
        ("    uri: workspace\n", "    persistentVolumeClaim: claim\n"),
        "spec.workspace.uri: required and not given (line 8)",
    ),
    "wrong version": (
        ("v1alpha1", "v2"),
        "apiVersion: 'plumbline.dev/v2' is not accepted; use one of 'plumbline.dev/v1alpha1' (line 1)",
    ),
    "two kinds": (
        ("      sft:\n", "      preference: {}\n      sft:\n"),
        "spec.stages[1]: a stage holds exactly one kind; 'sft' has sft and preference (line 16)",
    ),
    "no kind": (
        ("curate:\n        sources:\n          - uri: builtin://skills\n            limit: 100", "cluster: {}"),
        "spec.stages[0]: a stage holds exactly one kind; 'data' has none (line 11)",
    ),
    "cycle": (
        ("    - name: sft\n", "    - name: sft\n      inputs: {model: sft}\n"),
        "spec.stages[1].inputs.model: 'sft' reads itself, which is a cycle; accepted here: base (line 17)",
    ),
    "absent input": (
        ("    - name: sft\n", "    - name: pairs\n      preference: {}\n    - name: sft\n"),
        "spec.stages[1].inputs.dataset: 'pairs' needs a PreferenceDataset and no earlier stage makes one (line 16)",
    ),
}


@pytest.mark.parametrize(("change", "expected"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_told_with_its_line(change: tuple[str, str], expected: str, folder: Path) -> None:
    text = TEXT.replace(*change)
    assert text != TEXT
    assert expected in problems(folder, text)


def test_all_problems_are_told_at_once(folder: Path) -> None:
    text = TEXT.replace("epochs: 1", "epochz: 1").replace("limit: 100", "limit: 0").replace("name: first", "name: First")
    assert [line.partition(":")[0] for line in problems(folder, text)] == [
        "metadata.name",
        "spec.stages[0].curate.sources[0].limit",
        "spec.stages[1].sft.epochz",
    ]


def test_a_key_written_twice_is_refused(folder: Path) -> None:
    text = TEXT.replace("epochs: 1", "epochs: 1\n        epochs: 2")
    assert refusal(folder, text) == f"{folder / 'run.yaml'}, line 19: 'epochs' is written twice (first in line 18)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "is not YAML"),
        ("a: !!python/object/apply:os.system [true]", "is not YAML"),
        ("? [a]\n: b", "line 1: a key must be a plain word, not a list or mapping"),
        ("", "must hold one AlignmentRun; it holds 0 documents"),
        (f"{TEXT}---\n{TEXT}", "must hold one AlignmentRun; it holds 2 documents"),
        ("- a", "must hold one AlignmentRun, a mapping; it holds a list"),
        ("word", "must hold one AlignmentRun, a mapping; it holds a str"),
    ],
)
def test_files_that_hold_no_run(text: str, expected: str, folder: Path) -> None:
    message = refusal(folder, text)
    assert message.startswith(str(folder / "run.yaml"))
    assert expected in message


def test_an_empty_mapping_lacks_everything(folder: Path) -> None:
    assert problems(folder, "{}") == [
        f"{field}: required and not given" for field in ("apiVersion", "kind", "metadata", "spec")
    ]


def test_files_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.yaml cannot be read"):
        load_run(folder / "nowhere.yaml")
    (folder / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_run(folder / "run.yaml")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-5", 1e-5),
        ("1E-5", 1e-5),
        ("1.0e-5", 1e-5),
        (".5", 0.5),
        ("1", 1.0),
        ("0x10", 16.0),
    ],
)
def test_numbers_mean_what_kubectl_reads(written: str, meant: float, folder: Path) -> None:
    run = load(folder, TEXT.replace("1e-4", written))
    assert run.spec.stages[1].sft is not None
    assert run.spec.stages[1].sft.optimizer.learning_rate == meant


@pytest.mark.parametrize("word", ["2024-01-01", "12:30", "1.2.3"])
def test_dates_and_times_stay_words(word: str, folder: Path) -> None:
    run = load(folder, TEXT.replace("base: builtin://tiny", f"base: builtin://tiny\n    revision: {word}"))
    assert run.spec.model.revision == word


def test_anchors_and_merge_keys(folder: Path) -> None:
    text = TEXT.replace("      sft:\n", "      sft: &settings\n")
    text += "    - {name: again, sft: {<<: *settings, epochs: 2}}\n"
    first, again = (stage.sft for stage in load(folder, text).spec.stages[1:])
    assert first is not None
    assert again is not None
    assert (again.epochs, again.optimizer) == (2, first.optimizer)


def test_json_is_yaml(folder: Path) -> None:
    run = load(folder)
    assert load(folder, json.dumps(yaml.safe_load(TEXT.replace("1e-4", "1.0e-4")))) == run


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("stages.sft.sft.maxSteps=10", ("stages", 1, "sft", "maxSteps"), 10),
        ("stages.1.sft.maxSteps=10", ("stages", 1, "sft", "maxSteps"), 10),
        ("stages[1].sft.maxSteps=10", ("stages", 1, "sft", "maxSteps"), 10),
        ("spec.stages.sft.sft.maxSteps=10", ("stages", 1, "sft", "maxSteps"), 10),
        ("stages.sft.sft.optimizer.learningRate=1e-5", ("stages", 1, "sft", "optimizer", "learningRate"), 1e-5),
        ("stages.sft.sft.adapter.rank=4", ("stages", 1, "sft", "adapter", "rank"), 4),
        ("stages.data.curate.sources.0.uri=my=file.jsonl", ("stages", 0, "curate", "sources", 0, "uri"), "my=file.jsonl"),
        ("suspend=true", ("suspend",), True),
        ("workspace.uri=s3://bucket/prefix", ("workspace", "uri"), "s3://bucket/prefix"),
    ],
)
def test_overrides(override: str, field: tuple[str | int, ...], value: object, folder: Path) -> None:
    found: object = load(folder, TEXT, override).spec.model_dump(by_alias=True)
    for part in field:
        found = found[part]  # type: ignore[index]
    assert found == value


def test_an_override_of_the_metadata_and_of_a_whole_list(folder: Path) -> None:
    run = load(folder, TEXT, "metadata.name=second", "stages.data.curate.sources=[{uri: other.jsonl}]")
    assert run.metadata.name == "second"
    assert run.spec.stages[0].curate is not None
    assert [source.uri for source in run.spec.stages[0].curate.sources] == ["other.jsonl"]


def test_an_override_with_nothing_unsets(folder: Path) -> None:
    run = load(folder, TEXT, "stages.sft.sft.epochs=")
    assert run.spec.stages[1].sft is not None
    assert run.spec.stages[1].sft.epochs == 3.0


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.sft.sft.maxSteps", "write it as path=value, such as stages.sft.sft.maxSteps=10"),
        ("=10", "write it as path=value, such as stages.sft.sft.maxSteps=10"),
        ("..=10", "write it as path=value, such as stages.sft.sft.maxSteps=10"),
        ("stages.stf.sft.maxSteps=10", "'spec.stages.stf' is neither a number below 2 nor a name; names: data, sft"),
        ("stages.2.name=x", "'spec.stages.2' is neither a number below 2 nor a name; names: data, sft"),
        ("model.base.name=x", "'spec.model.base.name' is below a plain value ('builtin://tiny')"),
        ("suspend=[", "the value is not YAML"),
    ],
)
def test_bad_overrides(override: str, expected: str, folder: Path) -> None:
    message = refusal(folder, TEXT, override)
    assert message.startswith(f"--set {override}: ")
    assert expected in message


def test_a_wrong_value_from_an_override_is_not_blamed_on_a_line(folder: Path) -> None:
    assert problems(folder, TEXT, "stages.sft.sft.epochs=-1") == [
        "spec.stages[1].sft.epochs: -1 is not accepted; expected greater than 0 (--set stages.sft.sft.epochs=-1)"
    ]
    assert problems(folder, TEXT, "stages.sft.sft.steps=3") == [
        "spec.stages[1].sft.steps: unknown field; did you mean 'maxSteps'? (--set stages.sft.sft.steps=3)"
    ]
