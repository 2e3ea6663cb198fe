"""The Ray cluster of a stage: its shape by kind, and KubeRay's RayClusterSpec."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace

from kubernetes.utils import parse_quantity

from plumbline.api.base import StageSpec
from plumbline.api.cluster import PodShape, WorkerGroup, overridden
from plumbline.api.ray_settings import GROWS_TO, ROLLOUT
from plumbline.api.run import Stage
from plumbline.api.stages.curate import CurateSpec
from plumbline.api.stages.evaluate import EvaluateSpec
from plumbline.api.stages.rlhf import RlhfSpec
from plumbline.api.stages.serve import ServeSpec
from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.api.stages.training import TrainingSpec
from plumbline_operator.builders import pods
from plumbline_operator.builders.metadata import Object, Run

NAME = "app.kubernetes.io/name"  # KubeRay's Services select Pods by its own value of this label
CURATE_CPUS = 2  # of one curation worker, as PodShape's default
SAVE_SECONDS = 30  # that a training Pod has when it must go: until the step under way is done and saved
AUTOSCALER = {"cpu": "500m", "memory": "512Mi"}  # what KubeRay gives it; said here because Kueue and quotas want both


@dataclass(frozen=True)
class Marks:
    """What the Pods of one cluster have in common; see `pods.PodPlan`."""

    labels: dict[str, str]
    annotations: dict[str, str]
    drain: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, tuple[str, str]] = field(default_factory=dict)
    secret_files: dict[str, tuple[str, str]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


def worker_groups(run: Run, stage: Stage) -> list[WorkerGroup]:
    """The stage's own groups, else the run's, else what its kind needs."""
    groups = overridden(run.spec.cluster, stage.cluster).workers
    if groups is None:
        groups = _groups_of_kind(stage.spec)
        return [_fixed(group) for group in groups] if run.spec.queue_name else groups
    own = stage.cluster is not None and stage.cluster.workers is not None
    if stage.kind == "curate" and not own:  # GPUs would idle
        return [group.model_copy(update={"gpus": 0, "accelerator": None}) for group in groups]
    if isinstance(stage.spec, SynthesizeSpec) and not stage.spec.asks_own_model and not own:
        return []  # the head asks the endpoint
    return groups


def _groups_of_kind(spec: StageSpec) -> list[WorkerGroup]:
    match spec:
        case CurateSpec():
            return [WorkerGroup(min_replicas=0, max_replicas=math.ceil(spec.parallelism / CURATE_CPUS))]
        case EvaluateSpec():  # one replica asks; it is not needed where all answers are in the journal
            return [WorkerGroup(min_replicas=0, max_replicas=1)]
        case SynthesizeSpec():
            return [WorkerGroup(min_replicas=0, max_replicas=1)] if spec.asks_own_model else []
        case ServeSpec():
            return [_replicas(spec)]
        case RlhfSpec():
            return [_trainers(spec), *_rollouts(spec)]
        case TrainingSpec():
            return [_trainers(spec)]
        case _:
            return [WorkerGroup()]


def _trainers(spec: TrainingSpec) -> WorkerGroup:
    """A Pod for each worker. A range begins with the least: the job is submitted only when all Pods of the beginning run."""
    least, most = spec.parallelism.least, spec.parallelism.most
    if least == most:
        return WorkerGroup(replicas=most)
    return WorkerGroup(replicas=least, min_replicas=least, max_replicas=most)


def _replicas(spec: ServeSpec) -> WorkerGroup:
    """A Pod for each replica."""
    scaling = spec.autoscaling
    if scaling is None:
        return WorkerGroup(replicas=spec.replicas)
    low, high = scaling.min_replicas, scaling.max_replicas
    return WorkerGroup(replicas=min(max(spec.replicas, low), high), min_replicas=low, max_replicas=high)


def _rollouts(spec: RlhfSpec) -> list[WorkerGroup]:
    """A Pod for each rollout actor, and one for the reward model; colocated ones are in the training workers' Pods."""
    return [WorkerGroup(name=ROLLOUT, replicas=_actors(spec))] if spec.rollout.placement == "disaggregated" else []


def _actors(spec: RlhfSpec) -> int:
    return spec.rollout.workers + (1 if spec.reads("rewardModel") else 0)


def _kept(spec: StageSpec, groups: list[WorkerGroup], autoscaled: bool) -> dict[str, int]:
    """The group that is for rollout actors and the reward model alone, if there is one, and how many of them a Pod takes: `rollout`,
    of a fixed number of Pods, where the others have room for all training workers."""
    if not isinstance(spec, RlhfSpec) or spec.rollout.placement == "colocated":
        return {}
    for group in groups:
        if group.name == ROLLOUT and group.replicas and not (autoscaled and group.autoscaled):
            room, trainers = _most([other for other in groups if other is not group], autoscaled), spec.parallelism.most
            if room["CPU"] >= trainers and (not group.gpus or room["GPU"] >= trainers):
                return {ROLLOUT: math.ceil(_actors(spec) / group.replicas)}
    return {}


def _fixed(group: WorkerGroup) -> WorkerGroup:
    """A group that cannot grow begins with all that it may need."""
    return group.model_copy(update={"replicas": max(group.replicas, group.max_replicas or 0)})


def ray_cluster(run: Run, stage: Stage, marks: Marks) -> Object:
    """The RayClusterSpec: authenticated, and autoscaled where a group has a range."""
    cluster = overridden(run.spec.cluster, stage.cluster)
    groups = worker_groups(run, stage)
    marks = replace(marks, secrets=stage.spec.secrets(), secret_files=stage.spec.secret_files())
    # Kueue counts Pods at admission and refuses autoscaled clusters.
    autoscaled = not run.spec.queue_name and any(group.autoscaled for group in groups)
    image = cluster.image or run.pods.image
    trains = isinstance(stage.spec, TrainingSpec)
    told = replace(marks, drain=SAVE_SECONDS) if trains else marks
    kept = _kept(stage.spec, groups, autoscaled)
    if trains and autoscaled:
        most = _most([group for group in groups if group.name not in kept], autoscaled)
        marks = replace(marks, environment=marks.environment | {GROWS_TO: json.dumps(most)})
    return {
        "rayVersion": cluster.ray_version or run.pods.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": _head(run, cluster.head or PodShape(), image, marks, alone=not groups),
        "workerGroupSpecs": [_workers(run, group, image, told, autoscaled, kept) for group in groups],
        **(_autoscaling(run) if autoscaled else {}),
    }


def _head(run: Run, shape: PodShape, image: str, marks: Marks, *, alone: bool) -> Object:
    # The head holds Ray's control plane and the driver program. Ray places no other work there, or the two would starve,
    # unless there is no other place or its GPUs say that it should.
    works = alone or shape.gpus > 0
    return {
        "rayStartParams": {} if works else {"num-cpus": "0"},
        **_labels(shape),
        "template": pods.pod_template(run, _pod(pods.HEAD, shape, image, marks)),
    }


def _workers(run: Run, group: WorkerGroup, image: str, marks: Marks, autoscaled: bool, kept: dict[str, int]) -> Object:
    # Actors ask for the resource, training workers for CPUs. KubeRay writes both into a shell's command line.
    start = {"num-cpus": "0", "resources": f"'{json.dumps(kept)}'"} if group.name in kept else {}
    low, high = group.replicas, group.replicas
    if autoscaled and group.min_replicas is not None and group.max_replicas is not None:
        low, high = group.min_replicas, group.max_replicas
    return {
        "groupName": group.name,
        "replicas": group.replicas,
        "minReplicas": low,
        "maxReplicas": high,
        "rayStartParams": start,
        **_labels(group),
        "template": pods.pod_template(run, _pod(pods.WORKER, group, image, marks)),
    }


def _most(groups: list[WorkerGroup], autoscaled: bool) -> dict[str, int]:
    """What these groups have when they have grown: CPUs as KubeRay tells them to Ray, and GPUs."""
    most = {"CPU": 0, "GPU": 0}
    for group in groups:
        count, cpu = (autoscaled and group.max_replicas) or group.replicas, pods.ray_resources(group)["limits"]["cpu"]
        most["CPU"] += count * math.ceil(parse_quantity(cpu))  # type: ignore[no-untyped-call]
        most["GPU"] += count * group.gpus
    return most


def _pod(container: str, shape: PodShape, image: str, marks: Marks) -> pods.PodPlan:
    return pods.PodPlan(
        container=container,
        image=image,
        labels={name: value for name, value in marks.labels.items() if name != NAME},
        annotations=marks.annotations,
        resources=pods.ray_resources(shape),
        reports=container == pods.HEAD,  # the driver program runs there
        drain=marks.drain,
        environment=marks.environment,
        secrets=marks.secrets,
        secret_files=marks.secret_files,
        settings=marks.settings,
        shape=shape,
    )


def _labels(shape: PodShape) -> Object:
    """Ray's own label of its nodes."""
    return {"labels": {"ray.io/accelerator-type": shape.accelerator}} if shape.accelerator else {}


def _autoscaling(run: Run) -> Object:
    """KubeRay adds the autoscaler to the head Pod. It is held as strictly as our own containers, and writes where they do."""
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "imagePullPolicy": run.pods.image_pull_policy,
            "resources": {"requests": dict(AUTOSCALER), "limits": dict(AUTOSCALER)},
            "securityContext": pods.CONTAINER_SECURITY,
            "env": [{"name": "HOME", "value": pods.HOME}],
            "volumeMounts": pods.WRITABLE,
        },
    }
