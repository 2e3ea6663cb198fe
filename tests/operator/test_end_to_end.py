"""Everything at once: `kubectl apply` of the quickstart, the operator under its chart, and the real programs in a real Ray each."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from plumbline.api.labels import FINGERPRINT
from plumbline.artifacts import Workspace
from plumbline.training.checkpoint import CheckpointStore
from plumbline_operator import names
from support.fake_kuberay.kubelet import happens
from support.fake_kuberay.machine import Machine, kill, processes
from support.fake_kuberay.ray_jobs import RayJob
from support.fake_kuberay.real import RealPrograms
from support.installation import Installation
from support.project import Project
from support.rest import RAY_JOBS, Object

pytestmark = [pytest.mark.apiserver, pytest.mark.slow, pytest.mark.timeout(1500)]
QUICKSTART = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "quickstart.yaml"
SFT_STEPS = 40
PATIENCE = 800  # seconds; a run takes two or three minutes on two idle cores
VALUES: Object = {"scope": "cluster", "progressInterval": 1, "patience": {"retryBase": 1, "recheck": 1}}


def small_quickstart() -> Object:
    """The sample with fewer and smaller steps, and a gate that any model passes."""
    run: Object = yaml.safe_load(QUICKSTART.read_text())
    stages: dict[str, Any] = {stage["name"]: stage for stage in run["spec"]["stages"]}
    stages["data"]["curate"]["sources"][0]["limit"] = 400
    stages["sft"]["sft"] |= {"maxSteps": SFT_STEPS, "batchSize": 16, "maxLength": 96, "checkpoint": {"everySteps": 4}}
    stages["align"]["rlhf"] |= {"steps": 2, "promptsPerStep": 8, "groupSize": 4, "maxLength": 96}
    stages["align"]["rlhf"] |= {"parallelism": {"workers": 1}, "rollout": {"workers": 1}}
    stages["check"]["inputs"]["baselines"] = ["base"]
    stages["check"]["evaluate"]["tasks"][0] |= {"limit": 24, "maxTokens": 12}
    stages["check"]["evaluate"]["gates"] = [{"task": "skills", "baseline": "base", "minEffect": -1.0}]
    return run


@pytest.fixture
def computer() -> Iterator[Machine]:
    with Machine() as computer:
        yield computer


@pytest.fixture
def project(computer: Machine, tmp_path: Path) -> Iterator[Project]:
    with Installation(tmp_path, VALUES) as installed:
        computer.proxy = installed.proxy
        with installed.project() as project:
            yield project
    assert not processes(computer.folder), "a Pod's processes end with it"


def apply(project: Project, run: Object) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        project.on.apply(run)
    else:
        command = [kubectl, "--kubeconfig", project.on.server.kubeconfig, "apply", "-f", "-"]
        subprocess.run(command, input=yaml.safe_dump(run), text=True, check=True, timeout=60)


def kill_after_a_checkpoint(project: Project, computer: Machine, workspace: Path) -> None:
    """The first attempt at `sft` loses its driver program; what it leaves is marked."""
    project.fake.wait(project.name, "sft", "Created", 1, PATIENCE)
    job = project.on.get(RAY_JOBS, project.name, "quickstart-sft-1")
    assert job is not None
    store = CheckpointStore(str(workspace / "checkpoints" / job["metadata"]["annotations"][FINGERPRINT]))
    project.wait(store.latest, PATIENCE, "quickstart")
    assert kill(computer.folder, "plumbline.stage"), "the attempt must not end before"
    project.fake.wait(project.name, "sft", "Failed", 1, PATIENCE)
    project.wait(lambda: not processes(computer.folder), PATIENCE, "quickstart")
    left = store.latest()
    assert left is not None
    history = [row | {"attempt": 1} for row in left.history]
    store.put_state(left.step, [shard.stem for shard in left.shards], history, left.adapter_config)


def test_the_quickstart_is_served(project: Project, computer: Machine) -> None:
    programs, marked = RealPrograms(computer), threading.Event()
    programs.play_in(project.fake)

    async def second(job: RayJob) -> None:
        await happens(marked)
        await programs.job(job)

    project.fake.script(project.name, "sft", programs.job, second)
    run = small_quickstart()
    run["metadata"]["namespace"] = project.name
    claim = run["spec"]["workspace"]["persistentVolumeClaim"]
    project.make_claim(claim)
    workspace = computer.claim(project.name, claim) / run["spec"]["workspace"]["uri"]

    apply(project, run)
    kill_after_a_checkpoint(project, computer, workspace)
    marked.set()
    project.wait(lambda: project.status("quickstart").get("completionTime"), PATIENCE, "quickstart")

    status = project.status("quickstart")
    assert [(s["name"], s["phase"], s["attempt"]) for s in status["stages"]] == [
        ("data", "Succeeded", 1),
        ("sft", "Succeeded", 2),
        ("align", "Succeeded", 1),
        ("check", "Succeeded", 1),
        ("live", "Running", 1),
    ], status
    assert project.condition("Complete", "quickstart")["status"] == "True"
    assert (status["phase"], status["gate"]) == ("Succeeded", "Passed")
    assert status["endpoint"] == f"http://quickstart-live-serve-svc.{project.name}.svc:8000/v1"
    artifacts = {s["name"]: s["artifact"] for s in status["stages"] if "artifact" in s}
    assert status["report"] == artifacts["check"]
    found = {json.loads(path.read_text())["stage"]: path.parent for path in workspace.glob("artifacts/*/*/manifest.json")}
    assert artifacts == {stage: str(folder) for stage, folder in found.items()}

    # The second attempt went on from what the first had left, and the artifact is whole.
    kind, fingerprint = found["sft"].parts[-2:]
    tuned = Workspace(str(workspace)).find(kind, fingerprint)
    assert tuned is not None
    rows = [json.loads(line) for line in (tuned.local() / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, SFT_STEPS + 1))
    first = [row["step"] for row in rows if row.get("attempt") == 1]
    assert first
    assert first == list(range(1, len(first) + 1))
    assert project.saw_stage("sft", lambda one: one["attempt"] == 2 and one.get("progress"), "quickstart")

    # Programs wrote through the run's own account, into its one ConfigMap, and nobody tried what was forbidden.
    requests = list(project.on.proxy.requests)
    account = f"sa:{project.name}:{names.stage_account('quickstart')}"
    did = {(one.verb, one.resource, one.name) for one in requests if one.user == account}
    assert did == {(verb, "configmaps", names.state("quickstart")) for verb in ("get", "patch")}
    assert not [one for one in requests if one.code in (401, 403)]

    url = programs.endpoints[project.name, "quickstart-live"]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    model, base = client.models.list()
    assert base.id == "base"
    messages: Any = [{"role": "user", "content": "Reverse the letters q k d."}]
    answer = client.chat.completions.create(model=model.id, messages=messages, max_tokens=8)
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
