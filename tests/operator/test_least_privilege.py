"""The operator under the very account and rules that the chart gives it: nothing is forbidden, and no right is left unused."""

from __future__ import annotations

import itertools
import threading
from typing import NamedTuple

import pytest

from plumbline.api.labels import RUN_UID
from plumbline_operator.children import HASH
from support import chart
from support.fake_kuberay.behaviours import succeed
from support.fake_kuberay.plan_jobs import plan_hangs
from support.installation import QUICK, Installation
from support.project import CHECK, CLAIM, DATA, LIVE, SFT, Project, changed, pipeline
from support.release import Release
from support.rest import (
    CONFIG_MAPS,
    JOBS,
    NETWORK_POLICIES,
    RAY_JOBS,
    RAY_SERVICES,
    ROLE_BINDINGS,
    ROLES,
    RUNS,
    SERVICE_ACCOUNTS,
    Kind,
    Object,
)

SECRETS = ["bucket", "hub"]
EVERYTHING = QUICK | {"auditInterval": 2, "readableSecrets": SECRETS, "stagePods": {"networkPolicy": True}}
ALONGSIDE = {"crds": {"enabled": False}, "userRoles": {"enabled": False}}  # another release of the cluster has them


class Right(NamedTuple):
    """What a rule allows; `name` is empty where it allows it for objects of any name."""

    group: str
    resource: str
    verb: str
    name: str


def rights(objects: list[Object]) -> set[Right]:
    """All that is bound to the operator's account."""
    account = chart.one(objects, "ServiceAccount")["metadata"]
    subject = {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    bound = [value["roleRef"] for value in objects if subject in value.get("subjects", ())]
    names = {(role["kind"], role["name"]) for role in bound}
    roles = [value for value in objects if (value["kind"], value["metadata"]["name"]) in names]
    return {
        Right(group, resource, verb, name)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def test_rights_of_features_that_are_off_are_not_given() -> None:
    off = rights(chart.render(EVERYTHING)) - rights(chart.render(QUICK))
    assert {(right.resource, right.name) for right in off} == {("networkpolicies", ""), *(("secrets", s) for s in SECRETS)}


@pytest.mark.apiserver
def test_every_right_is_used_and_none_is_missing(installation: Installation) -> None:
    """Also those that it hands on to the Pods of runs, `get` and `patch` of ConfigMaps, it uses itself."""
    release = Release(EVERYTHING | {"scope": "cluster"} | ALONGSIDE, "whole")
    with installation.instead(release), installation.project() as project:
        _serves_a_model(project)
        _finds_what_was_relabelled_or_stopped(project)
        _makes_children_anew_after_an_upgrade(project)
        _is_told_of_a_conflict(project)
        _deletes_an_old_run(project)
        asked = installation.requests()
    used = {Right(one.group, one.resource, one.verb, name) for one in asked for name in ("", one.name)}
    assert {one for one in asked if one.code in (401, 403)} == set()
    assert rights(release.objects) - used == set()


@pytest.mark.apiserver
def test_runs_of_watched_namespaces_need_no_right_elsewhere(installation: Installation) -> None:
    watched = ["team-a", "team-b"]
    release = Release(EVERYTHING | {"scope": "namespaced", "watchNamespaces": watched} | ALONGSIDE, "part")
    with installation.instead(release):
        for name in ("elsewhere", *watched):
            with installation.project(name) as project:
                project.apply(pipeline())
                if name != "elsewhere":
                    project.wait_condition("Complete")
        asked = installation.requests()
    assert {one for one in asked if one.code in (401, 403)} == set()
    assert {one.namespace for one in asked} == {*watched, release.namespace}


def _serves_a_model(project: Project) -> None:
    """Creates everything; updates and deletes an endpoint."""
    for name in SECRETS:
        meta = {"name": name, "namespace": project.name}
        project.on.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"token": "x"}})
    queue = {"name": "team", "namespace": project.name}
    project.on.apply({"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "LocalQueue", "metadata": queue})
    names = {
        "model": {"base": "builtin://tiny", "tokenSecret": "hub"},
        "workspace": {"uri": "runs", "persistentVolumeClaim": CLAIM, "credentialsSecret": "bucket"},
        "queueName": "team",
    }
    for stages in [(DATA, SFT, CHECK, LIVE), (DATA, changed(SFT, maxSteps=11), CHECK, LIVE), (DATA, SFT, CHECK)]:
        project.apply(pipeline(*stages, **names))
        project.wait_condition("Complete")
    project.wait(lambda: project.on.get(RAY_SERVICES, project.name, "run-live") is None)


def _finds_what_was_relabelled_or_stopped(project: Project) -> None:
    """Looks up and labels Jobs that the watches lost sight of; deletes those of a suspended run."""
    project.fake.script_plan(project.name, plan_hangs())
    project.fake.kueue.full.add(project.name)
    project.apply(pipeline(_data(1), queueName="team"), name="odd")
    _relabelled(project, JOBS, "odd-plan-1-1")
    _suspended(project, JOBS, "odd")
    _relabelled(project, RAY_JOBS, "odd-data-1")
    _suspended(project, RAY_JOBS, "odd")
    project.fake.kueue.full.discard(project.name)
    project.wait_condition("Complete", name="odd")


def _makes_children_anew_after_an_upgrade(project: Project) -> None:
    """Looks up and applies what a version made that builds other objects."""
    go = threading.Event()
    project.fake.script(project.name, "data", succeed(until=go))
    project.apply(pipeline(_data(2), SFT), name="old")
    project.wait_stage("data", "Running", name="old")
    made = [(CONFIG_MAPS, "old-state"), (NETWORK_POLICIES, "old-pods")]
    made += [(kind, "old-stage") for kind in (SERVICE_ACCOUNTS, ROLES, ROLE_BINDINGS)]
    for kind, name in made:
        project.on.patch(kind, project.name, name, {"metadata": {"annotations": {HASH: "another version's"}}})
    project.on.operator.stop()
    project.on.operator.start()
    go.set()
    project.wait_condition("Complete", name="old")


def _is_told_of_a_conflict(project: Project) -> None:
    """Reads a run anew that somebody changed at that moment."""
    project.fake.script(project.name, "data", succeed(steps=600))
    project.apply(pipeline(_data(3)), name="busy")
    seen = len(project.on.requests())
    count = itertools.count()

    def read_anew() -> bool:
        project.patch({"metadata": {"annotations": {"count": str(next(count))}}}, name="busy")
        return any((one.verb, one.resource) == ("get", "alignmentruns") for one in project.on.requests()[seen:])

    project.wait(read_anew)


def _deletes_an_old_run(project: Project) -> None:
    project.apply(pipeline(_data(4), ttlSecondsAfterFinished=1), name="brief")
    project.wait(lambda: project.status("brief"))
    project.wait(lambda: project.on.get(RUNS, project.name, "brief") is None)


def _data(limit: int) -> Object:
    """A stage of a run's own, so that it is not found cached."""
    return changed(DATA, sources=[{"uri": "builtin://skills", "limit": limit}])


def _relabelled(project: Project, kind: Kind, name: str) -> None:
    """Somebody takes the label away by which the watches see it; the operator gives it back."""

    def seen() -> bool:
        found = project.on.get(kind, project.name, name)
        return found is not None and RUN_UID in found["metadata"]["labels"]

    project.wait(seen)
    project.on.patch(kind, project.name, name, {"metadata": {"labels": {RUN_UID: None}}})
    project.wait(seen)


def _suspended(project: Project, kind: Kind, run: str) -> None:
    """Somebody suspends a run until its Jobs are gone."""
    project.patch({"spec": {"suspend": True}}, name=run)
    project.wait_condition("Suspended", name=run)
    project.wait(lambda: not [one for one in project.on.list(kind, project.name) if one["metadata"]["name"].startswith(run)])
    project.patch({"spec": {"suspend": False}}, name=run)
