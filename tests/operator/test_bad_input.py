"""What is missing, wrong, foreign, deleted or edited by hand: said, survived, nothing lost, nothing overwritten that is not ours."""

from __future__ import annotations

import copy
import threading
import time
from pathlib import Path

import pytest

from plumbline.api.labels import RUN_UID, STAGE
from support.fake_kuberay import behaviours as b
from support.installation import Installation
from support.project import CHECK, CLAIM, DATA, LIVE, SFT, Project, changed, pipeline
from support.rest import CLAIMS, CONFIG_MAPS, DEFINITIONS, JOBS, RAY_JOBS, RAY_SERVICES, ROLES, RUNS, Object

pytestmark = pytest.mark.apiserver


def test_a_run_that_slipped_past_the_crd(project: Project) -> None:
    definition = project.on.get(DEFINITIONS, "", "alignmentruns.plumbline.dev")
    assert definition is not None
    lax = copy.deepcopy(definition)
    schema = lax["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema.pop("x-kubernetes-validations", None)
    wrong = pipeline(DATA, changed(SFT, maxSteps=0))
    try:
        _store(project, lax)
        project.wait(lambda: _accepted(project, wrong))
    finally:
        _store(project, definition)
    validated = project.wait_condition("Validated", "InvalidSpec", status="False")
    assert "spec.stages[1].sft.maxSteps" in validated["message"]
    assert project.status()["phase"] == "Failed"
    assert not project.on.list(JOBS, project.name)
    assert not project.on.list(RAY_JOBS, project.name)
    project.patch({"spec": {"stages": [DATA]}})
    project.wait_condition("Complete")


def _store(project: Project, definition: Object) -> None:
    project.on.patch(DEFINITIONS, "", "alignmentruns.plumbline.dev", {"spec": definition["spec"]})


def _accepted(project: Project, spec: Object) -> bool:
    from support.rest import Refused

    try:
        project.apply(spec)
    except Refused:
        return False
    return True


def test_a_path_without_a_claim(project: Project) -> None:
    project.apply(pipeline(DATA, workspace={"uri": "runs"}))
    validated = project.wait_condition("Validated", "InvalidSpec", status="False")
    assert "spec.workspace.persistentVolumeClaim" in validated["message"]


def test_a_missing_claim(project: Project) -> None:
    project.apply(pipeline(DATA, workspace={"uri": "runs", "persistentVolumeClaim": "later"}))
    plan = project.wait(lambda: "later" in (one := project.status().get("plan") or {}).get("message", "") and one)
    assert plan["reason"] == "ResourceMissing"
    assert "PersistentVolumeClaim 'later' does not exist" in project.condition("Progressing")["message"]
    assert project.fake.attempts(project.name, "plan") == []
    project.make_claim("later")
    project.wait_condition("Complete")


def test_a_claim_that_vanishes_between_stages(project: Project) -> None:
    go = threading.Event()
    project.fake.script(project.name, "data", b.succeed(until=go))
    project.apply(pipeline(DATA, SFT))
    project.wait_stage("data", "Running")
    project.on.delete(CLAIMS, project.name, CLAIM)
    go.set()
    # The operator remembers for minutes that the claim was there; the scheduler says it then.
    stage = project.wait(lambda: CLAIM in (one := project.stage("sft")).get("message", "") and one)
    assert stage["reason"] in ("Unschedulable", "ResourceMissing")
    project.make_claim()
    project.wait_condition("Complete")


def test_a_missing_secret(project: Project) -> None:
    model = {"base": "builtin://tiny", "tokenSecret": "hub"}
    workspace = {"uri": "runs", "persistentVolumeClaim": CLAIM, "credentialsSecret": "bucket"}
    project.apply(pipeline(DATA, model=model, workspace=workspace))
    plan = project.wait(lambda: 'secret "bucket" not found' in (one := _plan(project)).get("message", "") and one)
    assert plan["reason"] == "ContainerConfig"
    for name in ("bucket", "hub"):
        meta = {"name": name, "namespace": project.name}
        project.on.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"token": "x"}})
    project.wait_condition("Complete")


def _plan(project: Project) -> Object:
    found: Object = project.status().get("plan") or {}
    return found


@pytest.mark.parametrize(("kind", "name"), [("ConfigMap", "run-state"), ("RayJob", "run-data-1"), ("Role", "run-stage")])
def test_a_child_that_someone_else_owns(project: Project, kind: str, name: str) -> None:
    theirs: Object = {
        "ConfigMap": {"apiVersion": "v1", "data": {"theirs": "yes"}},
        "Role": {"apiVersion": "rbac.authorization.k8s.io/v1", "rules": []},
        "RayJob": {"apiVersion": "ray.io/v1", "spec": {"entrypoint": "theirs", "suspend": True}},
    }[kind] | {"kind": kind, "metadata": {"name": name, "namespace": project.name}}
    where = {"ConfigMap": CONFIG_MAPS, "Role": ROLES, "RayJob": RAY_JOBS}[kind]
    before = project.on.apply(theirs)
    project.apply(pipeline(DATA))
    told = project.wait(lambda: any(one[1] == "NameTaken" and name in one[2] for one in project.events()))
    assert told
    found = project.on.get(where, project.name, name)
    assert found is not None
    assert found["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"], "it was not touched"
    project.on.delete(where, project.name, name)
    project.wait_condition("Complete")


def test_a_rayjob_deleted_by_hand_comes_back(project: Project) -> None:
    project.fake.linger(project.name, 1.0)
    project.fake.script(project.name, "data", b.succeed(until=threading.Event()))
    project.apply(pipeline(DATA))
    project.wait_stage("data", "Running")
    project.on.delete(RAY_JOBS, project.name, "run-data-1")
    project.fake.wait(project.name, "data", "Deleted")
    project.wait_condition("Complete")
    # The same attempt, made again: the fake sees that as a second object under the same number.
    again = f"{project.name}: attempt 1 at data was made twice"
    assert project.fake.attempts(project.name, "data") in ([1, 1], [1, 2])
    project.fake.violations[:] = [one for one in project.fake.violations if one != again]


def test_a_rayjob_suspended_by_hand(project: Project) -> None:
    project.fake.script(project.name, "data", b.succeed(until=(go := threading.Event())))
    project.apply(pipeline(DATA))
    project.wait_stage("data", "Running")
    project.on.patch(RAY_JOBS, project.name, "run-data-1", {"spec": {"suspend": True}})
    project.wait_stage("data", "Waiting", "SuspendedByOthers")
    project.on.patch(RAY_JOBS, project.name, "run-data-1", {"spec": {"suspend": False}})
    go.set()
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1]


def test_a_rayjob_whose_labels_were_removed(project: Project) -> None:
    go = threading.Event()
    project.fake.script(project.name, "data", b.succeed(until=go))
    project.apply(pipeline(DATA))
    project.wait_stage("data", "Running")
    project.on.patch(RAY_JOBS, project.name, "run-data-1", {"metadata": {"labels": {RUN_UID: None, STAGE: None}}})
    # No watch tells of it any more. The attempt's result does, or the end of its Pods.
    project.saw_stage("data", lambda one: one.get("reason") == "EarlierAttemptEnding")
    go.set()
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "data") == [1]


def test_rubbish_in_the_config_map(project: Project) -> None:
    go = threading.Event()
    project.fake.script(project.name, "data", b.succeed(until=go))
    project.apply(pipeline(DATA, SFT))
    project.wait_stage("data", "Running")
    rubbish = {
        "stage-data.json": "{",
        "stage-sft.json": '{"attempt": -1}',
        "plan-99.json": "[]",
        "notes": "mine",
        "stage-x.json": "[" * 5000,
    }
    project.on.patch(CONFIG_MAPS, project.name, "run-state", {"data": rubbish})
    time.sleep(0.5)
    go.set()
    project.wait_condition("Complete")
    assert project.state()["notes"] == "mine"


def test_a_config_map_deleted_by_hand(project: Project) -> None:
    go = threading.Event()
    project.fake.script(project.name, "data", b.succeed(until=go))
    project.apply(pipeline(DATA, SFT, CHECK))
    project.wait_stage("data", "Running")
    project.on.delete(CONFIG_MAPS, project.name, "run-state")
    go.set()
    project.wait_condition("Complete")
    assert project.fake.attempts(project.name, "sft") == [1]


def test_a_status_deleted_by_hand(project: Project) -> None:
    """The status is the memory of attempts; without it the RayJobs that are there are found again."""
    go = threading.Event()
    project.fake.script(project.name, "data", b.succeed(until=go))
    project.apply(pipeline(DATA, SFT))
    project.wait_stage("data", "Running")
    project.on.patch(RUNS, project.name, "run", {"status": None}, "status")
    project.wait(lambda: project.stage("data"))
    go.set()
    project.wait_condition("Complete")


def test_an_endpoint_deleted_by_hand_comes_back(project: Project) -> None:
    project.apply(pipeline(changed(LIVE, ungated=True)))
    project.wait_condition("Complete")
    project.on.delete(RAY_SERVICES, project.name, "run-live")
    project.fake.wait(project.name, "live", "Deleted")
    project.wait(lambda: project.on.get(RAY_SERVICES, project.name, "run-live") is not None)
    project.wait(lambda: project.condition("Ready").get("status") == "True")


def test_kuberay_comes_later(tmp_path: Path) -> None:
    with Installation(tmp_path, kuberay=False) as installed, installed.project() as project:
        project.apply(pipeline(DATA, changed(LIVE, ungated=True)))
        stage = project.saw_stage("data", lambda one: one.get("reason") == "KubeRayMissing")
        assert "KubeRay" in stage["message"]
        installed.install_kuberay()
        project.wait_condition("Complete")
        assert project.fake.attempts(project.name, "data") == [1]
