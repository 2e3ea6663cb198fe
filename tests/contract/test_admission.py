"""The API server and the local reader accept and refuse the same files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cases
import pytest
import yaml
from kubernetes.client import ApiException

from plumbline.api.run import AlignmentRun
from plumbline.errors import InvalidRun
from plumbline.graph import build_graph, fingerprints
from plumbline.run_file import _StrictLoader, load_run
from support.runs import Runs

pytestmark = pytest.mark.apiserver
SAMPLES = sorted((Path(__file__).resolve().parents[2] / "manifests" / "samples").glob("*.yaml"))


def parsed(text: str, name: str | None = None) -> dict[str, Any]:
    value: dict[str, Any] = yaml.load(text, _StrictLoader)
    if name is not None:
        value["metadata"]["name"] = name
    return value


def read(text: str, folder: Path) -> AlignmentRun:
    path = folder / "run.yaml"
    path.write_text(text)
    return load_run(path)


def message(error: pytest.ExceptionInfo[ApiException]) -> str:
    return str(json.loads(error.value.body)["message"])


@pytest.mark.parametrize(
    "text",
    [*cases.GOOD.values(), *(path.read_text() for path in SAMPLES)],
    ids=[*cases.GOOD, *(path.stem for path in SAMPLES)],
)
def test_good_files_are_accepted_by_both_and_mean_the_same(text: str, runs: Runs, tmp_path: Path) -> None:
    run = read(text, tmp_path)
    stored = runs.create(parsed(text), dry_run=True)
    assert stored["spec"] == run.spec.model_dump(mode="json", by_alias=True, exclude_none=True)

    again = AlignmentRun.model_validate(stored, by_name=False, by_alias=True)
    assert again.spec == run.spec
    uris = [run.spec.model.base, *(uri for stage in run.spec.stages for uri in stage.spec.external_uris().values())]
    identities = dict.fromkeys(uris, "same")
    of_file = fingerprints(build_graph(run.spec), run.spec, identities)
    assert fingerprints(build_graph(again.spec), again.spec, identities) == of_file


@pytest.mark.parametrize("text", cases.BAD.values(), ids=cases.BAD)
def test_bad_files_are_refused_by_both(text: str, runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(InvalidRun):
        read(text, tmp_path)
    with pytest.raises(ApiException) as error:
        runs.create(parsed(text), dry_run=True)
    assert error.value.status in (400, 422), message(error)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("two kinds", "a stage holds exactly one kind of curate, synthesize,"),
        ("name base", "'base' is reserved for spec.model.base; take another name"),
        ("wrong input type", "stage 'sft': inputs.model of "),
        ("wrong input type", "(extendTokenizer, sft, preference or rlhf), or 'base'"),
        ("forward reference", "stage 'sft': inputs.dataset of sft or rlhf must name an earlier stage that makes a Dataset"),
        ("no data to tune on", "stage 'sft': sft or rlhf needs an earlier stage that makes a Dataset"),
        ("role of another kind", "kind sft has only these inputs: model, dataset"),
        ("serve without evaluate", "stage 'live': serve needs an earlier evaluate stage with gates"),
        ("serve what was not evaluated", "stage 'live': serve must serve the model that its report evaluated"),
        ("benchmark without its data", "every benchmark but skills and lmEvaluationHarness needs the uri of its data"),
        ("gate on no task", "gates[].task must name a task of the same stage"),
        ("duplicate name", "Duplicate value"),
        ("unknown field", "epochz"),
    ],
)
def test_the_api_server_says_what_it_would_accept(case: str, words: str, runs: Runs) -> None:
    with pytest.raises(ApiException) as error:
        runs.create(parsed(cases.BAD[case]), dry_run=True)
    assert words in message(error)


def test_where_artifacts_lie_and_who_manages_the_run_cannot_change(runs: Runs) -> None:
    stored = runs.create(parsed(cases.GOOD["serve gated"], "unchanging"))
    for field, value in {
        "workspace": {"uri": "/tmp/elsewhere"},
        "managedBy": "kueue.x-k8s.io/multikueue",
    }.items():
        changed = copy.deepcopy(stored)
        changed["spec"][field] = value
        with pytest.raises(ApiException) as error:
            runs.replace(changed)
        assert error.value.status == 422
        assert f"{field} cannot be changed once the run exists" in message(error)


def test_stages_can_be_edited_and_the_generation_tells(runs: Runs) -> None:
    stored = runs.create(parsed(cases.GOOD["serve gated"], "edited"))
    stored["spec"]["stages"][1]["sft"]["epochs"] = 1
    assert runs.replace(stored)["metadata"]["generation"] == stored["metadata"]["generation"] + 1


def test_status_is_a_subresource_of_its_own(runs: Runs) -> None:
    run = parsed(cases.GOOD["curate"], "observed")
    created = runs.create(run | {"status": {"phase": "Succeeded"}})
    assert "status" not in created

    status = {
        "observedGeneration": 1,
        "phase": "Running",
        "currentStage": "data",
        "conditions": [
            {
                "type": "Progressing",
                "status": "True",
                "reason": "StageRunning",
                "message": "Stage data runs.",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
        "stages": [
            {"name": "data", "kind": "curate", "phase": "Running", "metrics": {"rows": "10"}, "progress": {"step": 1}}
        ],
    }
    patched = runs.patch_status("observed", status)
    assert patched["status"]["phase"] == "Running"
    assert patched["metadata"]["generation"] == created["metadata"]["generation"]
    assert runs.read("observed")["spec"] == created["spec"]


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "Resting"},
        {"conditions": [{"type": "Ready", "status": "Perhaps", "reason": "R", "message": "", "lastTransitionTime": "x"}]},
        {"stages": [{"name": "a", "kind": "sft", "phase": "Running"}, {"name": "a", "kind": "sft", "phase": "Running"}]},
        {"unknown": 1},
    ],
)
def test_a_wrong_status_is_refused(status: dict[str, Any], runs: Runs, request: pytest.FixtureRequest) -> None:
    name = f"wrong-{abs(hash(request.node.name))}"
    runs.create(parsed(cases.GOOD["curate"], name))
    with pytest.raises(ApiException) as error:
        runs.patch_status(name, status)
    assert error.value.status in (400, 422)


def test_server_side_apply_keeps_the_order_of_the_stages(runs: Runs) -> None:
    def order(text: str) -> list[str]:
        return [stage["name"] for stage in runs.apply(parsed(text, "applied"))["spec"]["stages"]]

    assert order(cases.stages(cases.DATA, cases.SFT)) == ["data", "sft"]
    more = "- {name: more, sft: {epochs: 1}}\n"
    assert order(cases.stages(cases.PAIRS, cases.DATA, more, cases.SFT)) == ["pairs", "data", "more", "sft"]
    assert order(cases.stages(cases.DATA, cases.SFT, more)) == ["data", "sft", "more"]
