"""What a RayService deploys: the application by its import path, through Serve's own configuration."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from plumbline.api.run import AlignmentRun
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.plan import Plan, make_plan
from support.patience import wait_for
from support.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
WORKERS: dict[str, Any] = {"workers": [{"gpus": 1}]}


def make(
    folder: Path, cluster: dict[str, Any] | None = None, stage: dict[str, Any] | None = None, replicas: int = 2
) -> Plan:
    spec: dict[str, Any] = {
        "model": {"base": "builtin://tiny"},
        "workspace": {"uri": str(folder / "workspace")},
        "stages": [
            {"name": "live", "serve": {"ungated": True, "modelName": "org/tiny", "maxTokens": 8, "replicas": replicas}}
            | ({"cluster": stage} if stage else {})
        ],
    }
    if cluster:
        spec["cluster"] = cluster
    value = {"apiVersion": "plumbline.dev/v1alpha1", "kind": "AlignmentRun", "metadata": {"name": "small"}, "spec": spec}
    return make_plan(AlignmentRun.model_validate(value, by_name=False, by_alias=True))


def written(plan: Plan, folder: Path) -> Path:
    path = folder / "run-1.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(plan.to_json()))
    return partial.replace(path)  # at once, as the kubelet does


def arguments(plan: Plan, path: Path, **changes: str) -> dict[str, Any]:
    return {"run": str(path), "stage": "live", "fingerprint": plan.fingerprints["live"]} | changes


@pytest.fixture
def port(ray_session: str) -> Iterator[int]:
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    free = free_port()
    serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host="127.0.0.1", port=free))
    yield free
    serve.shutdown()


def deploy(configuration: dict[str, Any]) -> Any:
    """As the Ray dashboard does it for KubeRay; returns the application's status once it is settled."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate({"applications": [configuration]})
    _get_global_client().deploy_apps(schema, _blocking=False)

    def settled() -> Any:
        found = serve.status().applications.get("model")
        return found if found is not None and found.status in ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY") else None

    return wait_for(settled, why=serve.status)


def test_the_application_answers_under_its_import_path(port: int, tmp_path: Path) -> None:
    plan = make(tmp_path, replicas=1)
    application = {"name": "model", "route_prefix": "/", "import_path": "plumbline.serving.cluster:build"}
    found = deploy(application | {"args": arguments(plan, written(plan, tmp_path))})
    assert found.status == "RUNNING", found
    (deployment,) = found.deployments.values()
    assert deployment.replica_states == {"RUNNING": 1}
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
    assert [model.id for model in client.models.list()] == ["org/tiny"]
    messages: Any = [{"role": "user", "content": "Reverse the letters q k d."}]
    answer = client.chat.completions.create(model="org/tiny", messages=messages, max_tokens=8)
    assert answer.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(model="org/tiny", messages=messages, max_tokens=9)


def options(plan: Plan, folder: Path) -> dict[str, Any]:
    from plumbline.serving.cluster import build

    application = build(arguments(plan, written(plan, folder)))
    deployment = application._bound_deployment
    return {"replicas": deployment.num_replicas, **(deployment.ray_actor_options or {})}


def test_replicas_get_a_gpu_where_the_stages_cluster_has_some(tmp_path: Path) -> None:
    assert options(make(tmp_path), tmp_path)["num_gpus"] == 0
    assert options(make(tmp_path, cluster=WORKERS), tmp_path) == {"replicas": 2, "num_cpus": 1, "num_gpus": 1}
    assert options(make(tmp_path, WORKERS, {"workers": [{"cpu": "2"}]}), tmp_path)["num_gpus"] == 0
    assert options(make(tmp_path, WORKERS, {"head": {"cpu": "2"}}), tmp_path)["num_gpus"] == 1
    assert options(make(tmp_path, stage={"head": {"gpus": 1}}), tmp_path)["num_gpus"] == 1


def test_a_run_file_that_is_on_its_way_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plumbline.serving import cluster

    plan = make(tmp_path)
    timer = threading.Timer(1, written, [plan, tmp_path])
    timer.start()
    assert cluster.build(arguments(plan, tmp_path / "run-1.json"))
    timer.join()
    monkeypatch.setattr(cluster, "MOUNT_SECONDS", 0.1)
    with pytest.raises(InvalidInput, match="cannot be read"):
        cluster.build(arguments(plan, tmp_path / "run-2.json"))


def test_only_what_is_planned_and_there_is_served(tmp_path: Path) -> None:
    from plumbline.serving.chat import ServedModel
    from plumbline.serving.cluster import build

    plan = make(tmp_path)
    path = written(plan, tmp_path)
    with pytest.raises(InvalidInput, match=r"plans nothing for stage 'other'"):
        build(arguments(plan, path, stage="other"))
    with pytest.raises(InvalidInput, match=f"plans {plan.fingerprints['live']} for stage 'live', and 0000 is to be served"):
        build(arguments(plan, path, fingerprint="0000"))
    value = plan.run.model_dump(mode="json", by_alias=True, exclude_none=True)
    data = {"name": "data", "curate": {"sources": [{"uri": "builtin://skills"}]}}
    value["spec"]["stages"] = [data, {"name": "sft", "sft": {}}, *value["spec"]["stages"]]
    tuned = make_plan(AlignmentRun.model_validate(value, by_name=False, by_alias=True))
    with pytest.raises(PlumblineError, match="serves the model of 'sft', which is not there yet"):
        ServedModel.of(tuned, "live")
    with pytest.raises(InvalidInput, match="is of kind sft"):
        ServedModel.of(tuned, "sft")
