"""Every object that the builders emit is taken by a real API server, with KubeRay's real types and strict field validation."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes import client, config

from plumbline.api.run import RunSpec
from plumbline.graph import build_graph
from plumbline_operator.builders import build
from plumbline_operator.desired import Access, Desired, Endpoint, PlanJob, Restored, StageJob
from plumbline_operator.kinds import RESOURCES
from plumbline_operator.observed import Meta, project
from plumbline_operator.settings import StagePods
from support import kuberay_crds
from support.apiserver import find_api_server

pytestmark = pytest.mark.apiserver
Object = dict[str, Any]
KUBERNETES = "1.36"
SAMPLES = sorted((Path(__file__).resolve().parents[2] / "manifests" / "samples").glob("*.yaml"))
TEMPLATE: Object = {
    "metadata": {"annotations": {"example.com/note": "yes"}},
    "spec": {
        "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
        "runtimeClassName": "nvidia",
        "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "models"}}],
        "containers": [
            {
                "name": "ray-worker",
                "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
                "volumeMounts": [{"name": "cache", "mountPath": "/plumbline/home/.cache"}],
            }
        ],
    },
}
BELLS: Object = {
    "model": {"base": "hf://org/model", "revision": "main", "tokenSecret": "hub"},
    "workspace": {"uri": "s3://bucket/runs", "credentialsSecret": "bucket", "persistentVolumeClaim": "models"},
    "cluster": {
        "image": "registry.example.com/plumbline:1",
        "rayVersion": "2.60.0",
        "head": {"cpu": "4", "memory": "16Gi", "nodeSelector": {"pool": "cpu"}},
        "workers": [
            {
                "name": "trainers",
                "replicas": 2,
                "gpus": 8,
                "cpu": "96",
                "memory": "1.5Ti",
                "accelerator": "H100",
                "nodeSelector": {"zone": "a"},
                "template": TEMPLATE,
            },
            {"name": "rollout", "replicas": 1, "gpus": 1, "minReplicas": 0, "maxReplicas": 4, "accelerator": "L4"},
        ],
    },
    "stages": [
        {"name": "data", "curate": {"sources": [{"uri": "s3://bucket/data.jsonl"}], "parallelism": 16}},
        {"name": "sft", "sft": {"parallelism": {"workers": 16}}},
        {"name": "rl", "rlhf": {"parallelism": {"workers": 16}, "rollout": {"workers": 1}}},
        {
            "name": "check",
            "cluster": {"workers": [{"gpus": 1, "minReplicas": 0, "maxReplicas": 2}]},
            "evaluate": {
                "tasks": [{"name": "skills", "benchmark": "skills"}],
                "gates": [{"task": "skills", "threshold": 0.5}],
            },
        },
        {"name": "live", "serve": {"replicas": 2}},
    ],
    "priorityClassName": "high",
}
SETTINGS = StagePods(
    image_pull_secrets=("pull",),
    claim="workspace",
    accelerators={"H100": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}},
    network_policy=True,
    pod_template={"spec": {"dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}},
)
RUNS: dict[str, Object] = {
    **{path.stem: yaml.safe_load(path.read_text())["spec"] for path in SAMPLES},
    "all bells": BELLS,
    "queued": {**BELLS, "queueName": "team-queue"},
}
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def api() -> Iterator[client.ApiClient]:
    with find_api_server() as server:
        found = config.new_client_from_config(config_file=server.kubeconfig)
        kuberay_crds.load(found, ("rayjobs", "rayservices"))
        core = client.CoreV1Api(found)
        core.create_namespace({"metadata": {"name": "team"}})
        yield found


def request(api: client.ApiClient, method: str, value: Object, **query: str) -> Object:
    """The stored object after a strict POST, or a strict server-side apply as the operator does it."""
    meta = value["metadata"]
    path = RESOURCES[value["kind"]].path("team", "" if method == "POST" else meta["name"])
    kind = "application/json" if method == "POST" else "application/apply-patch+yaml"
    response = api.call_api(
        *api.param_serialize(
            method,
            path,
            query_params=[("fieldValidation", "Strict"), *query.items()],
            header_params={"Content-Type": kind, "Accept": "application/json"},
            body=copy.deepcopy(value),
            auth_settings=["BearerToken"],
        )
    )
    answer = response.read()
    assert response.status in (200, 201), f"{value['kind']}: {answer.decode()}"
    stored: Object = json.loads(answer)
    return stored


def whole(spec: Object, settings: StagePods = SETTINGS) -> list[Object]:
    """Every object of a run, in the order of the wiring."""
    run = RunSpec.model_validate(spec, by_name=False, by_alias=True)
    meta = Meta("team", f"run-{next(NUMBERS)}", "5f3c1d5e-0000-4000-8000-000000000001", 1, 7, 0.0, None, None, {}, {})
    desired: list[Desired] = [Access(), PlanJob(7, 1)]
    for node in build_graph(run).nodes:
        desired.append(
            Endpoint(node.name, "f" * 20, 7, "shape") if node.kind == "serve" else StageJob(node.name, 1, "f" * 20, 7)
        )
    return [value for one in desired for value in build(one, meta, run, settings)]


def templates(value: Object) -> list[Object]:
    spec = value["spec"]
    ray = spec.get("rayClusterSpec") or spec.get("rayClusterConfig")
    return [ray["headGroupSpec"]["template"], *(one["template"] for one in ray["workerGroupSpecs"])]


def lost(stored: Any, sent: Any, path: str = "") -> list[str]:
    """What was sent and not stored, by path; the server may add defaults."""
    if isinstance(sent, dict) and isinstance(stored, dict):
        return [one for key in sent for one in lost(stored.get(key), sent[key], f"{path}.{key}")]
    if isinstance(sent, list) and isinstance(stored, list) and len(sent) == len(stored):
        return [one for i, (a, b) in enumerate(zip(stored, sent, strict=True)) for one in lost(a, b, f"{path}[{i}]")]
    return [] if stored == sent else [f"{path}: sent {sent!r}, stored {stored!r}"]


@pytest.mark.parametrize("name", RUNS)
def test_every_object_of_a_run_is_created_as_it_was_meant(api: client.ApiClient, name: str) -> None:
    for value in whole(RUNS[name]):
        stored = request(api, "POST", value)
        assert lost(stored, value, value["kind"]) == []
        assert value["kind"] not in ("Job", "ConfigMap", "RayJob", "RayService") or project(stored).meta.run_uid


@pytest.mark.parametrize("name", RUNS)
def test_built_in_kinds_are_valid_to_the_letter(name: str) -> None:
    for value in whole(RUNS[name]):
        if not value["kind"].startswith("Ray"):
            kubernetes_validate.validate(value, KUBERNETES, strict=True)
            continue
        for template in templates(value):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": "x"}}
            kubernetes_validate.validate({**pod, "spec": template["spec"]}, KUBERNETES, strict=True)


def test_an_endpoint_is_updated_and_put_back_to_the_very_spec(api: client.ApiClient) -> None:
    run = RunSpec.model_validate(BELLS, by_name=False, by_alias=True)
    meta = Meta("team", "live", "5f3c1d5e-0000-4000-8000-000000000001", 1, 7, 0.0, None, None, {}, {})

    def apply(desired: Desired, settings: StagePods = SETTINGS) -> Object:
        (value,) = build(desired, meta, run, settings)
        return request(api, "PATCH", value, fieldManager="plumbline-operator", force="true")

    first = apply(Endpoint("live", "a" * 20, 7, "shape-1"))
    other = dataclasses.replace(SETTINGS, ray_version="2.61.0", pod_template={"spec": {"hostNetwork": True}})
    second = apply(Endpoint("live", "b" * 20, 8, "shape-2", "cluster-1", first["spec"], "a" * 20), other)
    assert second["spec"] != first["spec"]
    back = apply(Restored("live", first["spec"], "a" * 20, "b" * 20))
    assert back["spec"] == first["spec"]
    assert set(back["metadata"]["annotations"]) == {"plumbline.dev/fingerprint", "plumbline.dev/refused"}
    assert back["metadata"]["labels"]["plumbline.dev/plan"] == first["metadata"]["labels"]["plumbline.dev/plan"]


def test_the_config_maps_data_is_never_touched(api: client.ApiClient) -> None:
    state = next(value for value in whole(BELLS) if value["kind"] == "ConfigMap")
    request(api, "PATCH", state, fieldManager="plumbline-operator", force="true")
    core = client.CoreV1Api(api)
    core.patch_namespaced_config_map(state["metadata"]["name"], "team", {"data": {"plan-7.json": "{}"}})
    again = request(api, "PATCH", state, fieldManager="plumbline-operator", force="true")
    assert again["data"] == {"plan-7.json": "{}"}
