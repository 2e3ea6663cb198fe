"""`kubectl plumbline` against a real API server: what people see, what is refused and why, and with which exit code."""

from __future__ import annotations

import itertools
import json
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest

from plumbline.api import labels
from plumbline.api.report import Failure, Rollback, StageReport
from plumbline.errors import PlumblineError
from plumbline.kubectl import cluster as kubectl_cluster
from plumbline.kubectl import status as pages
from support.observed_run import (
    AT_WORK,
    CHECKED,
    DATA,
    SFT,
    Access,
    Command,
    ObservedRun,
    condition,
    refused,
    serving,
    stages,
    write_kubeconfig,
)
from support.patience import wait_for

pytestmark = pytest.mark.apiserver


def squeezed(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def test_status_shows_stages_with_progress_and_reasons(cluster: ObservedRun, command: Command) -> None:
    cluster.status(AT_WORK)
    cluster.event("StageStarted", "Stage sft began [attempt 2].")
    cluster.event("Old", "of an earlier run of this name", uid="other")
    code, shown, _ = command("status", cluster.name)
    page = squeezed(shown)
    assert code == 0
    assert f"{cluster.name} Running namespace default · generation 1" in page
    assert "≡ data curate Cached 1 rows 12000" in page
    assert "██████░░░░░░ 40/80 · 1 m 35 s left · loss 0.412 · training" in page
    assert "· live serve Pending" in page
    assert "Validated yes The run is valid." in page
    assert "StageStarted Stage sft began [attempt 2]." in page
    assert "earlier run" not in page


def test_status_says_why_it_waits_and_what_it_serves(cluster: ObservedRun, command: Command) -> None:
    waiting = {
        "name": "sft",
        "phase": "Waiting",
        "attempt": 1,
        "reason": "Unschedulable",
        "message": "0/3 nodes are available",
    }
    endpoint = "http://x-serve-svc.default.svc:8000/v1"
    cluster.status(
        AT_WORK | {"stages": stages(DATA, waiting), "gate": "Inconclusive", "endpoint": endpoint, "report": "/w/report"}
    )
    page = squeezed(command("status", cluster.name)[1])
    assert "▷ sft sft Waiting 1 0/3 nodes are available" in page
    assert f"gate Inconclusive\nendpoint {endpoint}\nreport /w/report" in page


def test_status_of_a_run_that_nobody_has_seen_yet(cluster: ObservedRun, command: Command) -> None:
    assert "not seen by the operator yet" in command("status", cluster.name)[1]
    cluster.status({"observedGeneration": 1, "plan": {"generation": 1, "attempt": 2, "message": "the hub does not answer"}})
    assert "planning, attempt 2: the hub does not answer" in command("status", cluster.name)[1]
    command("suspend", cluster.name)
    assert "the operator has not seen the latest edit yet" in command("status", cluster.name)[1]


def test_status_for_programs(cluster: ObservedRun, command: Command) -> None:
    cluster.status(AT_WORK)
    cluster.event("StageStarted", "Stage sft began.", "Warning")
    value = json.loads(command("status", cluster.name, "--json")[1])
    assert (value["run"], value["namespace"], value["status"]["currentStage"]) == (cluster.name, "default", "sft")
    assert [(event["type"], event["reason"]) for event in value["events"]] == [("Warning", "StageStarted")]
    every = json.loads(command("status", "--json")[1])
    assert cluster.name in [one["run"] for one in every]


def test_status_without_a_name_lists_the_runs(cluster: ObservedRun, command: Command) -> None:
    cluster.status(AT_WORK)
    lines = squeezed(command("status")[1]).splitlines()
    assert lines[0] == "NAME PHASE STAGE PROGRESS GATE ENDPOINT AGE"
    assert any(line.startswith(f"{cluster.name} Running sft 40/80 ") for line in lines)
    assert command("status", "-n", "empty") == (0, "no runs in namespace 'empty'\n", "")


@pytest.mark.parametrize("before", [True, False])
def test_the_namespace_may_come_before_the_command_or_after_it(cluster: ObservedRun, command: Command, before: bool) -> None:
    elsewhere = ("-n", "no-such-namespace")
    code, shown, _ = command(*elsewhere, "status") if before else command("status", *elsewhere)
    assert code == 0
    assert cluster.name not in shown


def ends(cluster: ObservedRun, status: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The run gets this status when the command has read it once: no sooner, however slow the command is."""
    read, calls = kubectl_cluster.Cluster.run, itertools.count()

    def run(self: kubectl_cluster.Cluster, name: str) -> dict[str, Any]:
        if next(calls):
            cluster.status(status)
        return read(self, name)

    monkeypatch.setattr(kubectl_cluster.Cluster, "run", run)


@pytest.mark.parametrize(
    ("end", "gate", "expected"), [("Complete", "Passed", 0), ("Complete", "Failed", 3), ("Failed", None, 1)]
)
def test_watch_ends_with_the_run_and_its_exit_code_says_how(
    end: str, gate: str | None, expected: int, cluster: ObservedRun, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "POLL", 0.05)
    cluster.status(AT_WORK)
    last = AT_WORK | {"phase": "Succeeded", "conditions": [condition(end, "True", "R", "The end.")]}
    ends(cluster, last | ({"gate": gate} if gate else {}), monkeypatch)
    code, shown, _ = command("status", cluster.name, "--watch", "--json")
    assert code == expected
    assert [json.loads(line)["status"]["phase"] for line in shown.splitlines()] == ["Running", "Succeeded"]


def test_watch_on_a_terminal(cluster: ObservedRun, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "POLL", 0.05)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    cluster.status(AT_WORK)
    ends(cluster, {"conditions": [condition("Failed", "True", "R", "Stage sft failed.")]}, monkeypatch)
    code, shown, _ = command("status", cluster.name, "--watch")
    assert code == 1
    assert "Stage sft failed." in shown


def test_watch_waits_for_an_api_server_that_restarts(
    cluster: ObservedRun, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "POLL", 0.05)
    cluster.status(AT_WORK)
    read = kubectl_cluster.Cluster.run

    def run(self: kubectl_cluster.Cluster, name: str) -> dict[str, Any]:
        if asked := len(calls):
            if asked <= 2:
                calls.append(1)
                raise PlumblineError("the API server does not answer")
            cluster.status({"conditions": [condition("Complete", "True", "R", "Done.")]})
        calls.append(1)
        return read(self, name)

    calls: list[int] = []
    monkeypatch.setattr(kubectl_cluster.Cluster, "run", run)
    assert command("status", cluster.name, "--watch")[0] == 0
    assert len(calls) == 4


def test_names_that_do_not_exist_are_answered_with_near_ones(cluster: ObservedRun, command: Command) -> None:
    assert refused(command("status", cluster.name[:-1])).startswith(
        f"no run '{cluster.name[:-1]}' in namespace 'default'; did"
    )
    assert refused(command("status", "x", "-n", "empty")) == "no run 'x' in namespace 'empty'; there is none"
    assert refused(command("logs", cluster.name, "stf")) == f"run '{cluster.name}' has no stage 'stf'; did you mean 'sft'?"
    assert "did you mean 'check'" in refused(command("retry", cluster.name, "chek"))
    assert "--watch needs the name of a run" in refused(command("status", "--watch"))
    many = [f"run-{i:03}" for i in range(300)]
    assert kubectl_cluster.near("zz", many).endswith("run-019 and 280 more")


def test_suspend_and_resume(cluster: ObservedRun, command: Command) -> None:
    assert command("suspend", cluster.name)[1] == f"{cluster.name}: suspended; what it has done is kept\n"
    assert cluster.read()["spec"]["suspend"] is True
    assert command("suspend", cluster.name)[:2] == (0, f"{cluster.name}: suspended already\n")
    assert command("resume", cluster.name)[0] == 0
    assert cluster.read()["spec"]["suspend"] is False
    assert command("resume", cluster.name)[1] == f"{cluster.name}: not suspended already\n"
    cluster.status({"phase": "Succeeded", "conditions": [condition("Complete", "True", "Complete", "")]})
    assert "has ended (Succeeded); there is nothing to suspend" in refused(command("suspend", cluster.name))


def test_retry_marks_the_attempt_and_only_that_of_a_failed_stage(cluster: ObservedRun, command: Command) -> None:
    failed = {"name": "sft", "phase": "Failed", "attempt": 4, "message": "out of memory"}
    cluster.status({"phase": "Failed", "stages": stages(DATA, failed)})
    assert command("retry", cluster.name, "sft")[:2] == (0, f"{cluster.name}: 'sft' is tried again after attempt 4\n")
    assert cluster.read()["metadata"]["annotations"] == {f"{labels.RETRY}sft": "4"}
    assert refused(command("retry", cluster.name, "data")) == (
        "stage 'data' is Cached; only a stage that is Failed is tried again"
    )
    blocked = {"name": "check", "phase": "Blocked", "message": "'sft' failed"}
    cluster.status({"stages": stages(DATA, failed, blocked)})
    assert "is Blocked: 'sft' failed; only a stage" in refused(command("retry", cluster.name, "check"))


def test_rollback_asks_for_it_at_the_run(cluster: ObservedRun, command: Command) -> None:
    serving = [stage["name"] for stage in cluster.read()["spec"]["stages"] if "serve" in stage]
    code, said, _ = command("rollback", cluster.name, "--to", "f" * 20)
    assert (code, f"'{serving[0]}' is asked to go back" in said) == (0, True)
    (text,) = cluster.read()["metadata"]["annotations"].values()
    asked = Rollback.model_validate_json(text)
    assert asked.to == "f" * 20
    assert list(cluster.read()["metadata"]["annotations"]) == [f"{labels.ROLLBACK}{serving[0]}"]
    command("rollback", cluster.name, "--stage", serving[0])
    (text,) = cluster.read()["metadata"]["annotations"].values()
    assert Rollback.model_validate_json(text).to is None
    assert Rollback.model_validate_json(text).id > asked.id
    assert f"serve stages: {serving[0]}" in refused(command("rollback", cluster.name, "--stage", "other"))


def test_report_shows_scores_and_copies_the_page(cluster: ObservedRun, command: Command, tmp_path: Path) -> None:
    assert "has no report yet" in refused(command("report", cluster.name), 1)
    folder = tmp_path / "artifacts"
    folder.mkdir()
    checked = CHECKED | {"artifact": str(folder)}
    passed = condition("GatePassed", "False", "GateFailed", "skills: 0.482 [0.451, 0.513], none of it above 0.6")
    cluster.status(AT_WORK | {"stages": stages(DATA, SFT, checked), "conditions": [passed]})
    shown = squeezed(command("report", cluster.name)[1])
    assert shown == (
        "task model score\nskills base 0\nskills sft 0.482\n"
        f"verdict: fail (skills: 0.482 [0.451, 0.513], none of it above 0.6)\nreport: {folder}"
    )
    target = tmp_path / "report.html"
    code, _, said = command("report", cluster.name, "check", "-o", target)
    assert (code, "cannot be read from this machine" in said, target.exists()) == (1, True, False)
    (folder / "report.html").write_text("<html>")
    assert command("report", cluster.name, "-o", target)[0] == 0
    assert target.read_text() == "<html>"
    assert "is of kind sft; only evaluate stages make reports" in refused(command("report", cluster.name, "sft"))


class LogServer(BaseHTTPRequestHandler):
    """Stands before the API server: it speaks pods/log, which a server without kubelets does not, and hands all else on."""

    behind: ClassVar[Access]
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        if "/log?" in self.path or self.path.endswith("/log"):
            self.asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            for i in range(3):
                self.wfile.write(f"line {i} ä\n".encode())
                self.wfile.flush()
            return
        headers = {"Authorization": f"Bearer {self.behind.token}", "Accept": "application/json"}
        request = urllib.request.Request(self.behind.host + self.path, headers=headers)
        try:
            answer: Any = urllib.request.urlopen(request, context=ssl._create_unverified_context(), timeout=30)
        except urllib.error.HTTPError as error:
            answer = error
        body = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def asked(cluster: ObservedRun, access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Log requests that were made."""
    LogServer.behind, LogServer.asked = access, []
    with serving(LogServer) as port:
        path = tmp_path / "kubeconfig"
        write_kubeconfig(path, f"http://127.0.0.1:{port}", "any")
        monkeypatch.setenv("KUBECONFIG", str(path))
        yield LogServer.asked


def test_logs_are_those_of_the_head_pod_of_the_stage_at_work(
    cluster: ObservedRun, asked: list[str], command: Command
) -> None:
    cluster.status(AT_WORK)
    own = {labels.STAGE: "sft", "ray.io/node-type": "worker"}
    cluster.pod(f"{cluster.name}-worker", own)
    cluster.pod(f"{cluster.name}-head", own | {"ray.io/node-type": "head"})
    cluster.pod(f"{cluster.name}-plan", {"app.kubernetes.io/component": "plan"})
    lines = "line 0 ä\nline 1 ä\nline 2 ä\n"
    assert command("logs", cluster.name) == (0, lines, "")
    cluster.status(AT_WORK | {"stages": stages(DATA, SFT | {"phase": "Succeeded"})})
    assert command("logs", cluster.name, "sft", "-f") == (0, lines, "")
    cluster.status({"plan": {"generation": 2, "done": False}})
    assert command("logs", cluster.name)[0] == 0
    assert [path.split("/pods/")[1].split("/")[0] for path in asked] == [
        f"{cluster.name}-head",
        f"{cluster.name}-head",
        f"{cluster.name}-plan",
    ]
    assert all("container=ray-head" in path for path in asked)
    assert "follow=true" in asked[1].lower()


def test_logs_are_followed_from_attempt_to_attempt(
    cluster: ObservedRun, asked: list[str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "POLL", 0.05)
    cluster.status(AT_WORK)
    own = {labels.STAGE: "sft", "ray.io/node-type": "head"}

    def attempts() -> None:
        try:
            for number in (1, 2):
                cluster.pod(f"{cluster.name}-{number}", own)
                wait_for(lambda number=number: any(f"{cluster.name}-{number}/" in path for path in asked))
                cluster.delete_pod(f"{cluster.name}-{number}")
        finally:  # else it is followed for ever
            cluster.status(AT_WORK | {"stages": stages(DATA, SFT | {"phase": "Failed"})})

    acting = threading.Thread(target=attempts)
    acting.start()
    code, shown, said = command("logs", cluster.name, "sft", "--follow")
    acting.join()
    assert (code, shown, said) == (0, 2 * "line 0 ä\nline 1 ä\nline 2 ä\n", "")
    assert len(asked) == 2


def test_the_log_is_that_of_our_container_wherever_it_stands(
    cluster: ObservedRun, asked: list[str], command: Command
) -> None:
    cluster.status(AT_WORK)
    own = {labels.STAGE: "sft", "ray.io/node-type": "head"}
    cluster.pod(f"{cluster.name}-head", own, ["istio-proxy", "ray-head"])
    assert command("logs", cluster.name)[0] == 0
    assert ["container=ray-head" in path for path in asked] == [True]


def test_logs_without_a_pod_are_what_is_known(cluster: ObservedRun, command: Command) -> None:
    assert command("logs", cluster.name)[1] == f"no Pod plans '{cluster.name}' now; nothing has begun yet\n"
    failed = {"name": "sft", "phase": "Failed", "attempt": 2, "startTime": "2026-01-01T00:00:00Z", "message": "it crashed"}
    cluster.status(AT_WORK | {"currentStage": "data", "stages": stages(DATA, failed)})
    cluster.report("sft", StageReport(attempt=2, fingerprint="f", error=Failure(message="ValueError: x\n\nTraceback …")))
    assert command("logs", cluster.name)[1] == (
        "stage 'sft' (Failed) has no Pod now\nit crashed\nits last word, in attempt 2: ValueError: x\n\nTraceback …\n"
    )
    assert command("logs", cluster.name, "live")[1] == "stage 'live' (Pending) has no Pod now\n"


def test_a_cluster_that_is_not_there_is_said(
    cluster: ObservedRun, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(command("status", "--context", "other")).startswith("no cluster is configured: ")
    nowhere = tmp_path / "nowhere"
    write_kubeconfig(nowhere, "https://127.0.0.1:9", "any")
    monkeypatch.setenv("KUBECONFIG", str(nowhere))
    assert refused(command("status", cluster.name), 1).startswith("the API server does not answer: ")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert f"set KUBECONFIG (now {tmp_path / 'none'}), or --context" in refused(command("status"))


@pytest.mark.parametrize("text", ["clusters: [", "just text", "", "a: 1"])
def test_a_broken_kubeconfig_is_said(text: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert refused(command("status")).startswith("no cluster is configured: ")


def test_in_a_pod_a_kubeconfig_goes_before_its_account(
    cluster: ObservedRun, access: Access, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "9")
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "token" in refused(command("status", cluster.name))  # a Pod without an account's token
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").write_text(Path(access.kubeconfig).read_text())
    assert command("status", cluster.name)[0] == 0


class Strict(BaseHTTPRequestHandler):
    """An API server that has no CRDs, or forbids everything."""

    code: ClassVar[int]

    def do_GET(self) -> None:
        body = json.dumps({"kind": "Status", "message": "the server says no"}).encode()
        self.send_response(self.code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_missing_type_and_missing_rights_are_said(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Strict) as port:
        write_kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{port}", "any")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        Strict.code = 404
        for arguments in (["status"], ["status", "x"], ["suspend", "x"]):
            assert refused(command(*arguments)).startswith("this cluster knows no AlignmentRun; install Plumbline's chart")
        Strict.code = 403
        assert refused(command("status", "x")) == "the server says no (403)"
        Strict.code = 500
        assert refused(command("status", "x"), 1) == "the server says no (500)"
