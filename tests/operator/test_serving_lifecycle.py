"""An endpoint behind its gate: updated without downtime, taken back when the new version does not get healthy."""

from __future__ import annotations

import threading

import pytest

from plumbline.api.labels import FINGERPRINT, ROLLBACK
from plumbline.api.report import Rollback, rollback_key
from support.fake_kuberay.behaviours import succeed
from support.fake_kuberay.ray_services import (
    ServiceBehaviour,
    deploy_failed,
    healthy,
    initializing_timeout,
    never_healthy,
)
from support.project import CHECK, DATA, LIVE, SFT, Project, changed, pipeline
from support.rest import RAY_SERVICES, Object

pytestmark = pytest.mark.apiserver


def _service(project: Project) -> Object:
    return project.on.get(RAY_SERVICES, project.name, "run-live") or {}


def _cluster(project: Project) -> str | None:
    """The Ray cluster that gets the traffic."""
    return ((_service(project).get("status") or {}).get("activeServiceStatus") or {}).get("rayClusterName")


def _fingerprint(project: Project) -> str:
    return str(_service(project)["metadata"]["annotations"][FINGERPRINT])


def test_an_update_has_no_downtime(project: Project) -> None:
    go = threading.Event()
    project.fake.script_service(project.name, "live", healthy(), healthy(until=go))
    project.apply(pipeline())
    project.wait_condition("Complete")
    first, fingerprint, uid = _cluster(project), _fingerprint(project), _service(project)["metadata"]["uid"]
    project.apply(pipeline(DATA, changed(SFT, maxSteps=11), CHECK, LIVE))
    project.wait(lambda: _service(project)["status"].get("pendingServiceStatus"))
    assert _cluster(project) == first, "the first version serves on"
    assert project.condition("Ready")["status"] == "True"
    assert project.condition("Complete")["status"] == "False"
    go.set()
    project.wait_condition("Complete")
    assert _cluster(project) != first
    assert _fingerprint(project) != fingerprint
    assert _service(project)["metadata"]["uid"] == uid


UNHEALTHY: list[ServiceBehaviour] = [never_healthy(), deploy_failed("RuntimeError: no such model")]


@pytest.mark.parametrize("behaviour", UNHEALTHY, ids=["never healthy", "cannot be built"])
def test_a_version_that_is_not_healthy_is_taken_back(project: Project, behaviour: ServiceBehaviour) -> None:
    project.fake.script_service(project.name, "live", healthy(), behaviour)
    project.apply(pipeline())
    project.wait_condition("Complete")
    first, fingerprint = _cluster(project), _fingerprint(project)
    project.apply(pipeline(DATA, changed(SFT, maxSteps=11), CHECK, LIVE))
    failed = project.wait_condition("Failed", "StageFailed")
    assert "goes on serving" in failed["message"]
    assert project.stage("live")["reason"] == "RolledBack"
    project.fake.wait(project.name, "live", "Dropped")
    project.wait(lambda: not _service(project)["status"].get("pendingServiceStatus"))
    assert (_cluster(project), _fingerprint(project)) == (first, fingerprint)
    project.wait(lambda: project.condition("Ready")["status"] == "True")
    assert project.status()["endpoint"], "the version before still answers"
    project.apply(pipeline(DATA, changed(SFT, maxSteps=12), CHECK, LIVE))
    project.wait_condition("Complete")
    assert _fingerprint(project) != fingerprint


def test_the_gate_of_the_new_version_decides(project: Project) -> None:
    project.fake.script(project.name, "check", succeed(), succeed(verdict="Failed"))
    project.apply(pipeline())
    project.wait_condition("Complete")
    fingerprint = _fingerprint(project)
    project.apply(pipeline(DATA, changed(SFT, maxSteps=11), CHECK, LIVE))
    project.wait_condition("Failed", "GateFailed")
    assert _fingerprint(project) == fingerprint, "what passed serves on"
    assert project.condition("Ready")["status"] == "True"


@pytest.mark.parametrize("behaviour", [*UNHEALTHY, initializing_timeout()], ids=["never", "cannot", "timeout"])
def test_a_first_version_is_tried_again(project: Project, behaviour: ServiceBehaviour) -> None:
    project.fake.script_service(project.name, "live", behaviour)
    project.apply(pipeline(changed(LIVE, ungated=True)))
    project.wait(lambda: project.stage("live").get("failures") == 1)
    project.wait_condition("Complete")
    assert project.stage("live")["attempt"] == 2


def test_an_endpoint_that_falls_ill_is_said(project: Project) -> None:
    ill = threading.Event()
    project.fake.script_service(project.name, "live", healthy(ill=ill))
    project.apply(pipeline(changed(LIVE, ungated=True)))
    project.wait_condition("Complete")
    ill.set()
    project.wait(lambda: project.condition("Ready")["status"] == "False")
    stage = project.wait(lambda: (one := project.stage("live")).get("message") and one)
    assert "failed its health check" in stage["message"]


def test_a_rollback_by_annotation_is_handed_on_to_the_programs_that_serve(project: Project) -> None:
    project.apply(pipeline(changed(LIVE, ungated=True)))
    project.wait_condition("Complete")
    asked = Rollback.make(None)
    annotation = {f"{ROLLBACK}live": asked.model_dump_json(exclude_none=True)}
    project.patch({"metadata": {"annotations": annotation}})
    told = project.wait(lambda: project.state().get(rollback_key("live")))
    assert Rollback.model_validate_json(told) == asked
    assert any(key.startswith("run-") for key in project.state()), "what the programs wrote is still there"


def test_a_stage_that_is_taken_out_serves_no_more(project: Project) -> None:
    project.apply(pipeline())
    project.wait_condition("Complete")
    project.apply(pipeline(DATA, SFT, CHECK))
    project.wait(lambda: not _service(project))
    project.wait_condition("Complete")
    assert "endpoint" not in project.status()
