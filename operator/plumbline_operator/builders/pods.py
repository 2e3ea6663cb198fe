"""Pod templates: what runs our code, as a restricted namespace accepts it (Pod Security Standards)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from plumbline.api.cluster import PodShape
from plumbline.api.ray_settings import SETTINGS
from plumbline.api.run import RunSpec
from plumbline_operator import names
from plumbline_operator.builders.metadata import Object, Run
from plumbline_operator.builders.overlay import lay_over
from plumbline_operator.settings import StagePods

STATE = "/plumbline/state"
"""Where the run's ConfigMap is mounted."""
SECRETS = "/plumbline/secrets"
"""Where files of Secrets are, each in a folder of its own: a mount of one file would not follow its changes."""
HOME = "/plumbline/home"
WORKSPACE = "/workspace"
"""Where the claim is mounted, unless the workspace's URI says where."""
HEAD, WORKER, PLAN = "ray-head", "ray-worker", "plan"
"""Names of our containers. A template that speaks of one of them means only the Pods that have it."""
GPU = "nvidia.com/gpu"
USER = 1000
STOP_SECONDS = 30
"""From the end of draining to the kill: Ray ends its processes in 3 s, a slow disk needs more."""

POD_SECURITY: Object = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",  # else every Pod start walks through the whole workspace
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
WRITABLE: list[Object] = [
    {"name": "tmp", "mountPath": "/tmp"},  # Ray's sessions
    {"name": "home", "mountPath": HOME},  # caches of models, kernels, fonts
]


@dataclass(frozen=True)
class PodPlan:
    """One Pod template to be built.

    Attributes:
        container: name of our container.
        image: what it runs.
        labels, annotations: of the Pods.
        resources: of our container.
        command: of our container; None leaves it to KubeRay, which starts Ray.
        reports: the Pod writes into the run's ConfigMap, so it needs its account's token.
        drain: seconds that Ray waits on SIGTERM for its work to end before it ends it.
        environment: variables of the contract, named PLUMBLINE_*.
        secrets: variables from Secrets: variable → (name of the Secret, key in it).
        secret_files: files from Secrets: variable that names the file → (name of the Secret, key in it).
        settings: further variables, which a template may change.
        shape: what the run says of these Pods.
    """

    container: str
    image: str
    labels: dict[str, str]
    annotations: dict[str, str]
    resources: Object
    command: list[str] | None = None
    reports: bool = True
    drain: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, tuple[str, str]] = field(default_factory=dict)
    secret_files: dict[str, tuple[str, str]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    shape: PodShape = field(default_factory=PodShape)


def pod_template(run: Run, plan: PodPlan) -> Object:
    """The Pod template. From bottom to top: the generated one, the operator's, the run's, and what must hold in any case."""
    metadata = {"annotations": plan.annotations} if plan.annotations else {}
    template: Object = {"metadata": metadata, "spec": _pod(run, plan)}
    for over in (run.pods.pod_template, plan.shape.template or {}):
        template = lay_over(template, _without_others(over, plan.container))
    return lay_over(template, _contract(run, plan))


def ray_resources(shape: PodShape) -> Object:
    """Requests and limits alike: a Pod that is squeezed slows its whole group, and Ray counts what the limits say."""
    amounts = {
        "cpu": shape.cpu or str(4 * shape.gpus or 2),
        "memory": shape.memory or f"{32 * shape.gpus or 4}Gi",
        **({GPU: str(shape.gpus)} if shape.gpus else {}),
    }
    return {"requests": dict(amounts), "limits": dict(amounts)}


def workspace_mount(spec: RunSpec, pods: StagePods) -> tuple[str, str] | None:
    """Claim and path of the workspace volume; None where there is none.

    The default claim is for runs that bring no volume of their own: where a template mounts one at the workspace's absolute path
    or above it, that is the workspace.
    """
    uri = spec.workspace.uri
    local = "://" not in uri or uri.startswith("file://")
    path = PurePosixPath(uri.removeprefix("file://"))
    absolute = local and path.is_absolute()
    own = absolute and any(path.is_relative_to(mounted) for mounted in _mounted(spec, pods))
    claim = spec.workspace.persistent_volume_claim or (pods.claim if local and not own else None)
    return None if claim is None else (claim, str(path) if absolute else WORKSPACE)


def _mounted(spec: RunSpec, pods: StagePods) -> list[str]:
    """Where templates mount volumes."""
    clusters = [one for one in (spec.cluster, *(stage.cluster for stage in spec.stages)) if one is not None]
    shapes = [shape for one in clusters for shape in (one.head, *(one.workers or [])) if shape is not None]
    found = []
    for template in (pods.pod_template, *(shape.template or {} for shape in shapes)):
        for container in _dicts(_within(template, "spec", "containers")):
            found += [mount.get("mountPath") for mount in _dicts(container.get("volumeMounts"))]
    return [path for path in found if isinstance(path, str) and path.startswith("/")]


def _pod(run: Run, plan: PodPlan) -> Object:
    pods, shape = run.pods, plan.shape
    nodes = {**pods.accelerators.get(shape.accelerator or "", {}), **(shape.node_selector or {})}
    priority = run.spec.priority_class_name
    volumes: list[Object] = [{"name": mount["name"], "emptyDir": {}} for mount in WRITABLE]
    if plan.command is None:
        volumes.append({"name": "shared-mem", "emptyDir": _shared_memory(plan.resources)})
    return {
        "serviceAccountName": names.stage_account(run.meta.name),
        "automountServiceAccountToken": plan.reports,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "terminationGracePeriodSeconds": plan.drain + STOP_SECONDS,
        "containers": [_container(run, plan)],
        "volumes": volumes,
        **({"imagePullSecrets": [{"name": name} for name in pods.image_pull_secrets]} if pods.image_pull_secrets else {}),
        **({"priorityClassName": priority} if priority else {}),
        **({"nodeSelector": nodes} if nodes else {}),
        # Nodes with GPUs are commonly tainted, to keep others off.
        **({"tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]} if shape.gpus else {}),
    }


def _container(run: Run, plan: PodPlan) -> Object:
    spec = run.spec
    variables = {**SETTINGS, **plan.settings, "HOME": HOME}
    if plan.command is None:
        variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = str(plan.drain)
    env: list[Object] = [{"name": name, "value": value} for name, value in variables.items()]
    secrets = {"HF_TOKEN": (spec.model.token_secret, "token")} if spec.model.token_secret else {}
    for variable, (name, key) in (secrets | plan.secrets).items():
        env.append({"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}})
    credentials = spec.workspace.credentials_secret
    mounts = WRITABLE if plan.command else [*WRITABLE, {"name": "shared-mem", "mountPath": "/dev/shm"}]
    return {
        "name": plan.container,
        "image": plan.image,
        "imagePullPolicy": run.pods.image_pull_policy,
        "env": env,
        **({"envFrom": [{"secretRef": {"name": credentials}}]} if credentials else {}),
        "resources": plan.resources,
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _contract(run: Run, plan: PodPlan) -> Object:
    """What no template may change, because operator and programs rely on it."""
    state = names.state(run.meta.name)
    workspace = workspace_mount(run.spec, run.pods)
    volumes: list[Object] = [{"name": "state", "configMap": {"name": state}}]
    mounts: list[Object] = [{"name": "state", "mountPath": STATE, "readOnly": True}]
    if workspace is not None:
        claim, path = workspace
        volumes.append({"name": "workspace", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "workspace", "mountPath": path})
    files = {}
    for variable, (secret, key) in plan.secret_files.items():
        name = variable.lower().replace("_", "-")
        files[variable] = f"{SECRETS}/{name}/{key}"
        volumes.append({"name": name, "secret": {"secretName": secret, "items": [{"key": key, "path": key}]}})
        mounts.append({"name": name, "mountPath": f"{SECRETS}/{name}", "readOnly": True})
    own = {"PLUMBLINE_STATE": f"{run.meta.namespace}/{state}", "PLUMBLINE_RUN_UID": run.meta.uid}
    environment = own | files | plan.environment
    container: Object = {
        "name": plan.container,
        "workingDir": workspace[1] if workspace is not None else "/tmp",
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "volumeMounts": mounts,
        **({"command": plan.command} if plan.command else {}),
    }
    return {"metadata": {"labels": plan.labels}, "spec": {"containers": [container], "volumes": volumes}}


def _without_others(template: Object, container: str) -> Object:
    """The template without what it says of our containers in other Pods."""
    containers = _within(template, "spec", "containers")
    if not isinstance(containers, list):
        return template
    others = [one for one in (HEAD, WORKER, PLAN) if one != container]
    kept = [one for one in containers if not (isinstance(one, dict) and one.get("name") in others)]
    return {**template, "spec": {**template["spec"], "containers": kept}}


def _within(value: Any, *keys: str) -> Any:
    """What lies under these keys of a template, in which anything may stand; None where there is nothing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _dicts(value: Any) -> list[Object]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _shared_memory(resources: Object) -> Object:
    """Ray's object store. What lies in it counts as the container's memory, so that is its bound."""
    return {"medium": "Memory", "sizeLimit": resources["limits"]["memory"]}
