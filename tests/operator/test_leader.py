"""The leader's thread on the real API server: kopf watches, leaves no trace, and ends when it is told to."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config

from plumbline.api import labels
from plumbline.api.run import GROUP, PLURAL, VERSION
from plumbline_operator import leader, metrics, names
from plumbline_operator.cluster import Cluster
from plumbline_operator.kinds import BUILT_IN, RAY, Resource
from plumbline_operator.leader import Leader
from plumbline_operator.settings import Settings, StagePods
from support.apiserver import ApiServer
from support.patience import PATIENCE, wait_for

pytestmark = pytest.mark.apiserver
RUN = {
    "apiVersion": f"{GROUP}/{VERSION}",
    "kind": "AlignmentRun",
    "metadata": {"name": "run"},
    "spec": {
        "model": {"base": "builtin://tiny"},
        "workspace": {"uri": "s3://bucket/runs"},
        "stages": [{"name": "data", "curate": {"sources": [{"uri": "builtin://skills"}]}}],
    },
}


class Lead:
    """A leader of one namespace, and the API as the administrator sees it."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        api = config.new_client_from_config(config_file=server.kubeconfig)
        self.runs, self.jobs, self.core = client.CustomObjectsApi(api), client.BatchV1Api(api), client.CoreV1Api(api)
        self.namespace = namespace
        self.leads = True
        self.ended = threading.Event()
        settings = Settings(stage_pods=StagePods(claim="workspace"))
        self.thread = Leader(settings, [namespace], lambda: self.leads, "me", self.ended.set)

    def create(self) -> None:
        self.runs.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, RUN)

    def run(self) -> dict[str, Any]:
        value: dict[str, Any] = self.runs.get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, "run")
        return value

    def job(self) -> Any:
        found = self.jobs.list_namespaced_job(self.namespace).items
        return found[0] if found else None

    def stop(self) -> bool:
        self.thread.stop()
        return self.ended.wait(PATIENCE)


@pytest.fixture
def lead(bare_server: ApiServer, bare_namespace: str) -> Iterator[Lead]:
    lead = Lead(bare_server, bare_namespace)
    yield lead
    assert lead.stop()


def test_objects_that_were_there_and_that_come_are_seen(lead: Lead) -> None:
    lead.create()
    lead.thread.start()
    job = wait_for(lead.job)
    assert job.metadata.name == names.plan_job("run", 1, 1)
    wait_for(lambda: lead.thread.listed)
    assert lead.thread.problems() == []
    lead.jobs.delete_namespaced_job(job.metadata.name, lead.namespace, propagation_policy="Background")
    again = wait_for(lambda: (found := lead.job()) and found.metadata.uid != job.metadata.uid and found)
    assert again.metadata.name == job.metadata.name


def test_kopf_leaves_no_trace(lead: Lead) -> None:
    lead.thread.start()
    lead.create()
    job = wait_for(lead.job)
    lead.core.patch_namespaced_config_map(names.state("run"), lead.namespace, {"data": {"note": "x"}})
    wait_for(lambda: lead.run()["status"].get("phase"))
    assert lead.stop()
    state = lead.core.read_namespaced_config_map(names.state("run"), lead.namespace)
    for meta in (client.ApiClient().sanitize_for_serialization(one.metadata) for one in (job, state)):
        assert not meta.get("finalizers")
        assert all(key.startswith("plumbline.dev/") for key in meta.get("annotations") or {})
    run = lead.run()["metadata"]
    assert "finalizers" not in run
    assert "annotations" not in run
    assert {entry["manager"] for entry in run["managedFields"]} <= {"plumbline-operator", "OpenAPI-Generator"}


def test_one_that_leads_no_more_writes_nothing(lead: Lead) -> None:
    lead.leads = False
    lead.thread.start()
    lead.create()
    wait_for(lambda: lead.thread.listed)
    before = lead.run()["metadata"]["resourceVersion"]
    lead.runs.patch_namespaced_custom_object(
        GROUP, VERSION, lead.namespace, PLURAL, "run", {"metadata": {"labels": {"seen": "yes"}}}
    )
    assert lead.stop()
    assert lead.run()["metadata"]["resourceVersion"] != before
    assert "status" not in lead.run()
    assert lead.job() is None


def test_a_stop_takes_the_runs_out_of_the_metrics(lead: Lead) -> None:
    lead.thread.start()
    lead.create()
    series = f'plumbline_run_info{{namespace="{lead.namespace}"'
    wait_for(lambda: series in metrics.text().decode())
    assert lead.stop()
    assert series not in metrics.text().decode()
    assert lead.thread.problems() == ["the leader's thread has ended"]
    assert not lead.thread.failed


def test_stopping_before_it_began(lead: Lead) -> None:
    lead.thread.stop()
    lead.thread.start()
    assert lead.ended.wait(PATIENCE)


def test_a_restart_of_the_api_server_is_lived_through(lead: Lead, bare_server: ApiServer) -> None:
    lead.thread.start()
    wait_for(lambda: lead.thread.listed)
    time.sleep(2)  # kopf watches by now, most likely; the end must be the same either way
    bare_server.stop_api()
    time.sleep(1)
    assert lead.thread.is_alive()
    bare_server.start_api()
    lead.create()
    wait_for(lead.job)
    assert lead.thread.problems() == []


def test_a_child_whose_labels_are_taken_away_is_seen_again(lead: Lead) -> None:
    """To a watch by labels that looks like a deletion."""
    lead.thread.start()
    lead.create()
    job = wait_for(lead.job)
    wait_for(lambda: lead.run()["status"]["plan"].get("message") == "external inputs are being resolved")
    bare = {"metadata": {"labels": {labels.RUN_UID: None}}}
    lead.core.patch_namespaced_config_map(names.state("run"), lead.namespace, bare)
    time.sleep(1)  # else it comes back with the Job's or, unseen meanwhile, with the next attempt's launch
    lead.jobs.patch_namespaced_job(job.metadata.name, lead.namespace, bare)
    labelled = wait_for(lambda: (found := lead.job()) and labels.RUN_UID in (found.metadata.labels or {}) and found)
    assert labelled.metadata.uid == job.metadata.uid
    time.sleep(1)
    before = requests("create", "jobs")
    time.sleep(2)
    assert requests("create", "jobs") == before  # it is known again, and not created time after time
    error = json.dumps({"attempt": 1, "error": {"message": "no such bucket", "permanent": True}})
    lead.core.patch_namespaced_config_map(names.state("run"), lead.namespace, {"data": {"plan-1.json": error}})
    wait_for(lambda: lead.run()["status"].get("phase") == "Failed")


def test_an_api_server_that_starts_knows_one_kind_after_the_other(lead: Lead, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without RayJobs in view, all that run would seem to be deleted."""
    whole, session = Cluster.served, Leader._session
    answers, seen = [frozenset(BUILT_IN)], []

    async def served(cluster: Cluster) -> frozenset[Resource]:
        return answers.pop() if answers else await whole(cluster)

    async def watch(leader: Leader, cluster: Cluster, served: frozenset[Resource], stop: asyncio.Event) -> None:
        seen.append(served)
        await session(leader, cluster, served, stop)

    monkeypatch.setattr(Cluster, "served", served)
    monkeypatch.setattr(Leader, "_session", watch)
    lead.thread.start()
    wait_for(lambda: lead.thread.listed)
    assert [one.issuperset(RAY) for one in seen] == [True]


def test_watching_that_fails_before_all_is_listed_is_not_ready(lead: Lead, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = []

    async def fail(*_: object) -> None:
        failures.append(lead.thread.listed)
        raise RuntimeError("deaf")

    async def something_there(*_: object) -> bool:
        return False

    monkeypatch.setattr(leader, "_check", fail)
    monkeypatch.setattr(Leader, "_nothing_there", something_there)
    lead.thread.start()
    wait_for(lambda: len(failures) > 2)
    assert not any(failures)
    assert not lead.thread.listed
    assert lead.thread.problems() == []


def test_objects_that_vanish_while_they_are_listed(lead: Lead, monkeypatch: pytest.MonkeyPatch) -> None:
    """kopf has no event to tell of then."""
    answers = [False, True]

    async def nothing_there(*_: object) -> bool:
        return answers.pop(0) if answers else True

    monkeypatch.setattr(Leader, "_nothing_there", nothing_there)
    monkeypatch.setattr(leader, "LOOK_FOR_NOTHING", 0.1)
    lead.thread.start()
    wait_for(lambda: lead.thread.listed)


def requests(verb: str, resource: str) -> float:
    """How many the operator has made."""
    series = f'plumbline_api_requests_total{{code="409",resource="{resource}",verb="{verb}"}}'
    lines = [line for line in metrics.text().decode().splitlines() if line.startswith(series)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)
