"""The planner and the stage program report to a ConfigMap on a real API server, through an account that may do only that."""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from plumbline.api.base import ArtifactType
from plumbline.api.report import Failure, PlanReport, Result, Rollback, StageReport, rollback_key, stage_key
from plumbline.api.stages.release import ReleaseSpec
from plumbline.artifacts import Workspace
from plumbline.plan import Plan
from plumbline.progress import Event
from plumbline.serving.release.controller import Controller, ReleaseArguments, Report, reporter
from plumbline.serving.release.figures import Window
from plumbline.serving.release.record import Version
from plumbline.state import NotReported, StageReports, State, Superseded
from support.apiserver import ApiServer, find_api_server
from support.patience import wait_for

pytestmark = pytest.mark.apiserver
NAMESPACE = "default"
PRINT = "f" * 20
RESULT = Result(artifact="/w/artifacts/sft/f")
RULES = [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["state"], "verbs": ["get", "patch"]}]


@dataclass
class Cluster:
    """An API server with RBAC, the ConfigMap `state`, and the account `stage` that may read and patch it."""

    server: ApiServer
    core: client.CoreV1Api
    kubeconfig: Path

    def recreate(self) -> None:
        body = {"metadata": {"name": "state"}}
        for existing in self.core.list_namespaced_config_map(NAMESPACE, field_selector="metadata.name=state").items:
            self.core.delete_namespaced_config_map(existing.metadata.name, NAMESPACE)
        self.core.create_namespaced_config_map(NAMESPACE, body)

    def data(self) -> dict[str, str]:
        return self.core.read_namespaced_config_map("state", NAMESPACE).data or {}

    def report(self, stage: str = "sft") -> StageReport:
        return StageReport.model_validate_json(self.data()[stage_key(stage)], by_name=False, by_alias=True)

    def plan(self, generation: int) -> PlanReport:
        return PlanReport.model_validate_json(self.data()[f"plan-{generation}.json"], by_name=False, by_alias=True)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with find_api_server(rbac=True) as server:
        api = config.new_client_from_config(config_file=server.kubeconfig)
        core, rbac = client.CoreV1Api(api), client.RbacAuthorizationV1Api(api)
        if not core.list_namespace(field_selector=f"metadata.name={NAMESPACE}").items:
            core.create_namespace({"metadata": {"name": NAMESPACE}})
        rbac.create_namespaced_role(NAMESPACE, {"metadata": {"name": "stage"}, "rules": RULES})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "stage"}
        # Both test servers know the account: one by its token, envtest's by its user name.
        subjects = [{"kind": "ServiceAccount", "name": "stage", "namespace": NAMESPACE}]
        rbac.create_namespaced_role_binding(
            NAMESPACE, {"metadata": {"name": "stage"}, "roleRef": role, "subjects": subjects}
        )
        value = yaml.safe_load(Path(server.kubeconfig).read_text())
        account = {"as": f"system:serviceaccount:{NAMESPACE}:stage"} if os.environ.get("KUBEBUILDER_ASSETS") else {}
        token = value["users"][0]["user"] if account else {"token": f"sa:{NAMESPACE}:stage"}
        value["users"][0]["user"] = token | account
        kubeconfig = tmp_path_factory.mktemp("kube") / "config"
        kubeconfig.write_text(yaml.safe_dump(value))
        yield Cluster(server, core, kubeconfig)


@pytest.fixture
def cluster(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    running.recreate()
    monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig))
    monkeypatch.setenv("PLUMBLINE_STATE", f"{NAMESPACE}/state")
    return running


def state(name: str = "state") -> State:
    return State(NAMESPACE, name)


def reports(attempt: int = 1, to: State | None = None, stage: str = "sft") -> StageReports:
    return StageReports(to or state(), stage, attempt, PRINT, interval=0.05)


def test_progress_and_result_arrive_and_nothing_else_is_touched(cluster: Cluster) -> None:
    cluster.core.patch_namespaced_config_map("state", NAMESPACE, {"data": {"run-1.json": "{}"}})
    sink = reports()
    sink(Event("sft", "training", 5, 10, 1.0, 5.0, {"loss": 0.5}))
    wait_for(lambda: "stage-sft.json" in cluster.data())
    assert cluster.report().message == "training"
    sink.succeeded(RESULT)
    assert cluster.report().result == RESULT
    assert set(cluster.data()) == {"run-1.json", "stage-sft.json"}


def test_a_release_tells_where_it_is_and_obeys_what_is_asked_in_the_config_map(cluster: Cluster, tmp_path: Path) -> None:
    def controller(letter: str) -> Controller:
        model: Any = {"name": "m", "reference": {"base": "builtin://tiny"}, "max_tokens": 8}
        arguments = ReleaseArguments(
            workspace=str(tmp_path),
            run="r",
            stage="live",
            version=Version(fingerprint=letter * 20, model=model),
            rules=ReleaseSpec(),
            holder=letter,
            asked=str(tmp_path / rollback_key("live")),
        ).model_dump_json(by_alias=True)
        return Controller(arguments, told=reporter(arguments))

    controller("a").report(Report("replica", None, Window(), frozenset({"a" * 20})))
    wait_for(lambda: "stage-live.json" in cluster.data())
    assert cluster.report("live").message == ""
    second = controller("f")
    second.report(Report("replica", None, Window(), frozenset({"a" * 20})))
    wait_for(lambda: "is being loaded beside" in cluster.report("live").message)
    assert cluster.report("live").fingerprint == PRINT
    (tmp_path / rollback_key("live")).write_text(Rollback.make(None).model_dump_json())
    wait_for(lambda: second.report(Report("replica", None, Window())).phase == "rolledBack")
    wait_for(lambda: "was rolled back" in cluster.report("live").message)
    assert "by hand" in cluster.report("live").message


def test_stages_side_by_side_lose_no_last_word(cluster: Cluster) -> None:
    def one(name: str) -> None:
        sink = reports(stage=name)
        for step in range(20):
            sink(Event(name, "training", step, 20))
            time.sleep(0.02)
        sink.succeeded(RESULT)

    threads = [threading.Thread(target=one, args=[f"s{i}"]) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(cluster.report(f"s{i}").result == RESULT for i in range(8))


def test_a_lower_attempt_overwrites_nothing_of_a_later_one(cluster: Cluster) -> None:
    early = reports(1)
    early(Event("sft", "early"))
    wait_for(lambda: "stage-sft.json" in cluster.data())
    reports(2).failed(Failure(message="why"))
    early(Event("sft", "still here"))
    with pytest.raises(Superseded, match="attempt 1 gives way to attempt 2"):
        early.succeeded(RESULT)
    assert (cluster.report().attempt, cluster.report().result) == (2, None)
    reports(2).succeeded(RESULT)
    assert cluster.report().result == RESULT


def test_rubbish_under_the_key_is_overwritten(cluster: Cluster) -> None:
    cluster.core.patch_namespaced_config_map("state", NAMESPACE, {"data": {"stage-sft.json": "[1"}})
    reports().succeeded(RESULT)
    assert cluster.report().result == RESULT


def test_a_result_waits_for_the_api_server(cluster: Cluster) -> None:
    sink = reports()
    sink(Event("sft", "training"))
    wait_for(lambda: "stage-sft.json" in cluster.data())
    cluster.server.stop_api()
    try:
        sink(Event("sft", "unheard"))
        with pytest.raises(NotReported, match="does not answer"):
            reports().succeeded(RESULT, patience=0.1)
        last = threading.Thread(target=sink.succeeded, args=[RESULT])
        last.start()
        time.sleep(1)
        assert last.is_alive()
    finally:
        cluster.server.start_api()
    last.join(60)
    assert not last.is_alive()
    assert cluster.report().result == RESULT


def test_a_result_waits_for_a_config_map_that_was_deleted(cluster: Cluster) -> None:
    sink = reports()
    sink(Event("sft", "training"))
    wait_for(lambda: "stage-sft.json" in cluster.data())
    cluster.core.delete_namespaced_config_map("state", NAMESPACE)
    last = threading.Thread(target=sink.succeeded, args=[RESULT])
    last.start()
    time.sleep(0.5)
    cluster.recreate()
    last.join(60)
    assert cluster.report().result == RESULT


def test_what_is_forbidden_or_absent_is_named(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "other"}})
    try:
        with pytest.raises(NotReported, match=r"ConfigMap default/other cannot be written: .*forbidden.*\(403\)"):
            reports(to=state("other")).succeeded(RESULT, patience=0.1)
        reports(to=state("other")).failed(Failure(message="why"), patience=0.1)
        assert "warning: ConfigMap default/other cannot be written" in capsys.readouterr().err
    finally:
        cluster.core.delete_namespaced_config_map("other", NAMESPACE)


def test_what_does_not_fit_is_given_up_at_once(cluster: Cluster) -> None:
    with pytest.raises(NotReported, match=r"\((413|422)\)"):
        state().insist("plan-1.json", 1, {"plan-1.json": "x" * 2**22})


RUN: dict[str, Any] = {
    "apiVersion": "plumbline.dev/v1alpha1",
    "kind": "AlignmentRun",
    "metadata": {"name": "small", "namespace": NAMESPACE},
    "spec": {
        "model": {"base": "builtin://tiny"},
        "workspace": {"uri": "space"},
        "stages": [
            {"name": "data", "curate": {"sources": [{"uri": "builtin://skills", "limit": 40}]}},
            {"name": "sft", "sft": {"maxSteps": 2}},
            {"name": "live", "serve": {"ungated": True}},
        ],
    },
}


def program(module: str, *arguments: object, cwd: Path, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def planner(run: dict[str, Any] | str, cwd: Path, generation: int = 1, attempt: int = 1) -> tuple[int, str, str]:
    text = run if isinstance(run, str) else json.dumps(run)
    return program("plumbline.planner", "--generation", generation, "--attempt", attempt, cwd=cwd, PLUMBLINE_RUN=text)


def test_the_planner_writes_the_run_and_finds_what_is_there(cluster: Cluster, tmp_path: Path) -> None:
    assert planner(RUN, tmp_path)[0] == 0
    first = cluster.plan(1)
    assert first.stages is not None
    assert [(name, stage.result) for name, stage in first.stages.items()] == [("data", None), ("sft", None), ("live", None)]

    path = tmp_path / "run-1.json"
    path.write_text(cluster.data()["run-1.json"])
    plan = Plan.load(path)
    assert plan.workspace_uri == f"{tmp_path}/space", "absolute: the stages may have another working folder"
    assert plan.fingerprints == {name: stage.fingerprint for name, stage in first.stages.items()}

    make_dataset(plan)
    compressed = "gz:" + base64.b64encode(gzip.compress(json.dumps(RUN).encode())).decode()
    code, shown, _ = planner(compressed, tmp_path, generation=2)
    assert (code, "cached" in shown) == (0, True)
    second = cluster.plan(2).stages
    assert second is not None
    assert second["data"].fingerprint == first.stages["data"].fingerprint
    assert second["data"].result == Result(
        artifact=f"{tmp_path}/space/artifacts/curate/{plan.fingerprints['data']}", metrics={"rows": "40"}
    )
    assert set(cluster.data()) == {"run-1.json", "plan-1.json", "run-2.json", "plan-2.json"}


def make_dataset(plan: Plan) -> None:
    fingerprint = plan.fingerprints["data"]
    workspace = Workspace(plan.workspace_uri)
    workspace.acquire(fingerprint, "test")
    with workspace.create(
        kind="curate", fingerprint=fingerprint, stage="data", type=ArtifactType.DATASET, inputs={}, holder="test"
    ) as writer:
        writer.metrics["rows"] = 40


def _missing_file(run: dict[str, Any]) -> None:
    run["spec"]["stages"][0]["curate"]["sources"][0] = {"uri": "none.jsonl", "format": "messages"}


def _misspelt(run: dict[str, Any]) -> None:
    run["spec"]["stages"][1]["sft"]["epochz"] = 1


def _too_large(run: dict[str, Any]) -> None:
    run["spec"]["cluster"] = {"head": {"template": {"metadata": {"annotations": {"a": "x" * 800_000}}}}}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_missing_file, "spec.stages[0].curate.sources[0].uri: "),
        (_misspelt, "spec.stages[1].sft.epochz: unknown field; did you mean 'epochs'?"),
        (_too_large, "KiB and 768 fit into a ConfigMap"),
    ],
)
def test_a_wrong_run_is_a_permanent_error_in_the_plan(
    spoil: Callable[[dict[str, Any]], None], words: str, cluster: Cluster, tmp_path: Path
) -> None:
    run = json.loads(json.dumps(RUN))
    spoil(run)
    text = json.dumps(run)
    if len(text) > 100_000:
        text = "gz:" + base64.b64encode(gzip.compress(text.encode())).decode()
    code, _, said = planner(text, tmp_path)
    report = cluster.plan(1)
    assert code == 2
    assert (report.stages, set(cluster.data())) == (None, {"plan-1.json"})
    assert report.error is not None
    assert report.error.permanent
    assert words in report.error.message
    assert said == f"error: {report.error.message}\n"


@pytest.mark.parametrize("text", ["", "gz:", "gz:AAAA", "{", "[]"])
def test_an_unreadable_run_is_said(text: str, cluster: Cluster, tmp_path: Path) -> None:
    code, _, said = planner(text, tmp_path)
    assert (code, said.startswith("error: PLUMBLINE_RUN holds no AlignmentRun")) == (2, True)
    assert cluster.plan(1).error is not None


def test_a_lower_planning_attempt_gives_way(cluster: Cluster, tmp_path: Path) -> None:
    assert planner(RUN, tmp_path, attempt=2)[0] == 0
    code, _, said = planner(RUN, tmp_path, attempt=1)
    assert (code, "attempt 1 gives way to attempt 2" in said) == (1, True)
    assert cluster.plan(1).attempt == 2


def test_the_stage_program_reports_how_it_ends(cluster: Cluster, tmp_path: Path) -> None:
    assert planner(RUN, tmp_path)[0] == 0
    path = tmp_path / "run-1.json"
    path.write_text(cluster.data()["run-1.json"])
    code, _, said = program("plumbline.stage", path, "sft", "--attempt", 1, cwd=tmp_path)
    report = cluster.report("sft")
    assert (code, report.attempt, report.result) == (1, 1, None)
    assert report.error == Failure(
        message="stage 'sft' needs the artifact of 'data', which is not there yet; run 'data' first"
    )
    assert said == f"error: {report.error.message}\n"

    plan = Plan.load(path)
    make_dataset(plan)
    code, shown, said = program("plumbline.stage", path, "data", "--attempt", 2, cwd=tmp_path)
    report = cluster.report("data")
    assert (code, said, shown) == (0, "", f"data: done, {plan.workspace_uri}/artifacts/curate/{plan.fingerprints['data']}\n")
    assert report.fingerprint == plan.fingerprints["data"]
    assert report.result == Result(artifact=shown.split()[-1], metrics={"rows": "40"})

    code, _, said = program("plumbline.stage", path, "data", "--attempt", 1, cwd=tmp_path)
    assert (code, "attempt 1 gives way to attempt 2" in said) == (1, True)
    assert cluster.report("data") == report
