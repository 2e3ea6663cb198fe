"""Objects as the builders emit them, and what tests look at in them."""

from __future__ import annotations

from typing import Any

from plumbline.api.run import RunSpec
from plumbline_operator.builders import build
from plumbline_operator.desired import Desired, Endpoint, PlanJob, StageJob
from plumbline_operator.observed import Meta
from plumbline_operator.settings import StagePods

Object = dict[str, Any]
DATA: Object = {"name": "data", "curate": {"sources": [{"uri": "builtin://skills"}]}}
SFT: Object = {"name": "sft", "sft": {"parallelism": {"workers": 4}}}
RL: Object = {"name": "rl", "rlhf": {"parallelism": {"workers": 2}, "rollout": {"workers": 3}}}
CHECK: Object = {"name": "check", "evaluate": {"tasks": [{"name": "skills", "benchmark": "skills"}]}}
LIVE: Object = {"name": "live", "serve": {"ungated": True, "replicas": 2}}
GPU_CLUSTER: Object = {"workers": [{"gpus": 8, "accelerator": "H100", "replicas": 2, "nodeSelector": {"zone": "a"}}]}
PODS = StagePods(accelerators={"H100": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}})


def meta(name: str = "run") -> Meta:
    return Meta("team", name, "uid-1", 1, 3, 0.0, None, None, {}, {})


def run_spec(**fields: Any) -> RunSpec:
    value = {
        "model": {"base": "builtin://tiny"},
        "workspace": {"uri": "results"},
        "stages": [DATA, SFT, RL, CHECK, LIVE],
        **fields,
    }
    return RunSpec.model_validate(value, by_name=False, by_alias=True)


def made(desired: Desired, settings: StagePods = PODS, name: str = "run", **fields: Any) -> Object:
    (value,) = build(desired, meta(name), run_spec(**fields), settings)
    return value


def ray_job(stage: str, settings: StagePods = PODS, **fields: Any) -> Object:
    return made(StageJob(stage, 2, "f" * 20, 3), settings, **fields)


def cluster(stage: str, settings: StagePods = PODS, **fields: Any) -> Object:
    found: Object = ray_job(stage, settings, **fields)["spec"]["rayClusterSpec"]
    return found


def service(**fields: Any) -> Object:
    return made(Endpoint("live", "f" * 20, 3, "shape"), **fields)


def groups(value: Object) -> dict[str, tuple[int, int, int]]:
    """Group name → replicas, least, most."""
    found = value["workerGroupSpecs"]
    return {one["groupName"]: (one["replicas"], one["minReplicas"], one["maxReplicas"]) for one in found}


def pod_specs(value: Object) -> list[Object]:
    """Pod specs of a Job, RayJob or RayService, the head's first."""
    spec = value["spec"]
    if value["kind"] == "Job":
        return [spec["template"]["spec"]]
    ray = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    return [ray["headGroupSpec"]["template"]["spec"], *(one["template"]["spec"] for one in ray["workerGroupSpecs"])]


def environment(pod: Object) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in pod["containers"][0]["env"]}


def mounts(pod: Object) -> dict[str, Object]:
    """Mount path → the volume there."""
    volumes = {one["name"]: one for one in pod["volumes"]}
    return {one["mountPath"]: volumes[one["name"]] for one in pod["containers"][0]["volumeMounts"]}


EVERY: list[Desired] = [PlanJob(3, 1), StageJob("sft", 2, "f" * 20, 3), Endpoint("live", "f" * 20, 3, "shape")]
