"""Pods of a run: security, mounts and variables, and templates laid over them."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.api import labels
from plumbline.api.ray_settings import SETTINGS
from plumbline_operator.builders.overlay import lay_over
from plumbline_operator.desired import Desired, Endpoint, PlanJob
from plumbline_operator.settings import StagePods
from support.built import DATA, EVERY, Object, cluster, environment, groups, made, mounts, pod_specs, ray_job, service


@pytest.mark.parametrize("desired", EVERY, ids=lambda one: type(one).__name__)
def test_pods_pass_the_restricted_security_standard(desired: Desired) -> None:
    for pod in pod_specs(made(desired)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert "emptyDir" in mounts(pod)["/tmp"]
        assert "emptyDir" in mounts(pod)[environment(pod)["HOME"]]


def test_only_pods_that_report_get_a_token() -> None:
    head, worker = pod_specs(ray_job("sft"))
    (plan,) = pod_specs(made(PlanJob(3, 1)))
    assert [pod["automountServiceAccountToken"] for pod in (head, worker, plan)] == [True, False, True]
    assert {pod["serviceAccountName"] for pod in (head, worker, plan)} == {"run-stage"}


def test_shared_memory_is_bounded_by_the_containers_memory() -> None:
    head, worker = pod_specs(ray_job("sft", cluster={"head": {"memory": "6Gi"}}))
    for pod, size in ((head, "6Gi"), (worker, "4Gi")):
        assert mounts(pod)["/dev/shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": size}


def test_stages_end_at_once_training_after_saving_and_endpoints_after_their_answers() -> None:
    for value, drains in ((ray_job("data"), [0, 0]), (ray_job("sft"), [0, 30]), (service(), [120, 120])):
        for pod, drain in zip(pod_specs(value), drains, strict=True):
            assert environment(pod)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == str(drain)
            assert pod["terminationGracePeriodSeconds"] > drain


@pytest.mark.parametrize("desired", EVERY, ids=lambda one: type(one).__name__)
def test_programs_find_state_settings_and_secrets(desired: Desired) -> None:
    value = made(
        desired,
        model={"base": "hf://org/name", "tokenSecret": "hub"},
        workspace={"uri": "s3://bucket/x", "credentialsSecret": "bucket"},
        priorityClassName="high",
    )
    for pod in pod_specs(value):
        variables = environment(pod)
        assert variables["PLUMBLINE_STATE"] == "team/run-state"
        assert variables["PLUMBLINE_RUN_UID"]
        assert SETTINGS.items() <= variables.items()
        assert variables["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "bucket"}}]
        assert mounts(pod)["/plumbline/state"]["configMap"] == {"name": "run-state"}
        assert pod["priorityClassName"] == "high"
        assert pod["containers"][0]["workingDir"] == "/tmp"  # nothing is mounted for s3://


def teacher(name: str, **fields: object) -> Object:
    return {"endpoint": f"https://{name}.example/v1", "model": "m", **fields}


def test_keys_of_endpoints_come_from_their_secrets_into_pods_of_their_stage_only() -> None:
    judge = teacher("judge", keySecret="of-judge")
    more = {
        "teacher": teacher("wise", keySecret="of-teacher"),
        "selfImprove": {"judge": judge},
    }
    stages = [DATA, {"name": "more", "synthesize": more}, {"name": "sft", "sft": {}}]
    for pod in pod_specs(ray_job("more", stages=stages)):
        variables = environment(pod)
        assert variables["PLUMBLINE_TEACHER_KEY"] == {"secretKeyRef": {"name": "of-teacher", "key": "apiKey"}}
        assert variables["PLUMBLINE_JUDGE_KEY"] == {"secretKeyRef": {"name": "of-judge", "key": "apiKey"}}
    for other in (ray_job("sft", stages=stages), made(PlanJob(3, 1), stages=stages)):
        for pod in pod_specs(other):
            assert not {"PLUMBLINE_TEACHER_KEY", "PLUMBLINE_JUDGE_KEY"} & environment(pod).keys()


def test_api_keys_are_files_of_the_endpoints_pods_that_follow_their_secret() -> None:
    keyed = {"name": "live", "serve": {"ungated": True, "admission": {"apiKeys": {"secret": "our-keys", "key": "k.yaml"}}}}
    for pod in pod_specs(made(Endpoint("live", "f" * 20, 3, "shape"), stages=[DATA, keyed])):
        path = environment(pod)["PLUMBLINE_API_KEYS"]
        folder = path.removesuffix("/k.yaml")
        assert mounts(pod)[folder]["secret"] == {"secretName": "our-keys", "items": [{"key": "k.yaml", "path": "k.yaml"}]}
        (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["mountPath"] == folder]
        assert mount["readOnly"]
        assert "subPath" not in mount, "the kubelet never changes such a mount"
    for pod in [*pod_specs(service()), *pod_specs(ray_job("data", stages=[DATA, keyed]))]:
        assert "PLUMBLINE_API_KEYS" not in environment(pod)


def test_workers_stand_by_only_where_the_runs_own_model_is_asked() -> None:
    def stages(**fields: object) -> list[Object]:
        return [DATA, {"name": "more", "synthesize": {"distill": {}, **fields}}]

    own, endpoint = stages(), stages(teacher=teacher("wise"))
    assert groups(cluster("more", stages=own)) == {"workers": (1, 0, 1)}
    assert groups(cluster("more", stages=endpoint)) == {}
    assert groups(cluster("more", stages=endpoint, cluster={"workers": [{"gpus": 8}]})) == {}
    head = cluster("more", stages=endpoint)["headGroupSpec"]
    assert "num-cpus" not in head["rayStartParams"], "the head does the work"


@pytest.mark.parametrize(
    ("workspace", "default", "claim", "path"),
    [
        ({"uri": "results"}, "shared", "shared", "/workspace"),
        ({"uri": "results", "persistentVolumeClaim": "mine"}, "shared", "mine", "/workspace"),
        ({"uri": "/mnt/runs/"}, "shared", "shared", "/mnt/runs"),
        ({"uri": "file:///mnt/runs"}, "shared", "shared", "/mnt/runs"),
        ({"uri": "s3://bucket", "persistentVolumeClaim": "data"}, "shared", "data", "/workspace"),
    ],
)
def test_the_workspace_claim_is_mounted_where_its_uri_points(workspace: Object, default: str, claim: str, path: str) -> None:
    for pod in pod_specs(ray_job("sft", StagePods(claim=default), workspace=workspace)):
        assert mounts(pod)[path]["persistentVolumeClaim"] == {"claimName": claim}
        assert pod["containers"][0]["workingDir"] == path


@pytest.mark.parametrize(
    ("uri", "mounted", "claimed"),
    [
        ("/mnt/nfs/runs", "/mnt/nfs", False),
        ("file:///mnt/nfs", "/mnt/nfs/", False),
        ("/mnt/nfs-2", "/mnt/nfs", True),
        ("results", "/workspace", True),  # a relative path lies in a claim
    ],
)
def test_a_volume_of_a_template_goes_before_the_default_claim(uri: str, mounted: str, claimed: bool) -> None:
    template = {
        "spec": {
            "volumes": [{"name": "nfs", "nfs": {"server": "x", "path": "/"}}],
            "containers": [{"name": "ray-worker", "volumeMounts": [{"name": "nfs", "mountPath": mounted}]}],
        }
    }
    default, workspace, shape = StagePods(claim="shared"), {"uri": uri}, {"workers": [{"template": template}]}
    plan = made(PlanJob(3, 1), default, workspace=workspace, cluster=shape)
    pods = [*pod_specs(ray_job("sft", default, workspace=workspace, cluster=shape)), *pod_specs(plan)]
    for pod in pods:  # one that forgot the volume must fail, and not work on another
        assert any("persistentVolumeClaim" in volume for volume in pod["volumes"]) is claimed
    named = workspace | {"persistentVolumeClaim": "mine"}
    (worker,) = pod_specs(ray_job("sft", default, workspace=named, cluster=shape))[1:]
    assert {"name": "workspace", "persistentVolumeClaim": {"claimName": "mine"}} in worker["volumes"]


@pytest.mark.parametrize("uri", ["s3://bucket/x", "results"])
def test_without_a_claim_nothing_is_mounted(uri: str) -> None:
    settings = StagePods(claim="shared" if "://" in uri else None)
    for pod in pod_specs(ray_job("sft", settings, workspace={"uri": uri})):
        assert not any("persistentVolumeClaim" in volume for volume in pod["volumes"])


# Templates laid over


def test_templates_merge_by_name_and_add_tolerations() -> None:
    template = {
        "metadata": {"labels": {"team": "red"}, "annotations": {"sidecar.istio.io/inject": "false"}},
        "spec": {
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "runtimeClassName": "nvidia",
            "enableServiceLinks": None,
            "volumes": [{"name": "tmp", "hostPath": {"path": "/fast"}}, {"name": "cache", "hostPath": {"path": "/c"}}],
            "containers": [
                {
                    "name": "ray-worker",
                    "env": [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "TOKENIZERS_PARALLELISM", "value": "true"}],
                    "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
                    "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
                },
                {"name": "exporter", "image": "dcgm"},
            ],
        },
    }
    group = cluster("sft", cluster={"workers": [{"gpus": 1, "template": template}]})["workerGroupSpecs"][0]["template"]
    pod = group["spec"]
    assert group["metadata"]["labels"]["team"] == "red"
    assert [one["key"] for one in pod["tolerations"]] == ["nvidia.com/gpu", "spot"]
    assert "enableServiceLinks" not in pod
    assert pod["runtimeClassName"] == "nvidia"
    assert [one["name"] for one in pod["containers"]] == ["ray-worker", "exporter"]
    assert environment(pod)["NCCL_DEBUG"] == "INFO"
    assert environment(pod)["TOKENIZERS_PARALLELISM"] == "true"
    assert mounts(pod)["/tmp"] == {"name": "tmp", "hostPath": {"path": "/fast"}}  # one source
    assert mounts(pod)["/cache"]["hostPath"] == {"path": "/c"}
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}


def test_the_contract_stays_whatever_a_template_says() -> None:
    template = {
        "metadata": {"labels": {labels.RUN_UID: "other", labels.STAGE: "other"}},
        "spec": {
            "volumes": [{"name": "state", "emptyDir": {}}, {"name": "workspace", "emptyDir": {}}],
            "containers": [
                {
                    "name": "ray-head",
                    "workingDir": "/",
                    "env": [{"name": "PLUMBLINE_STATE", "value": "x/y"}],
                    "volumeMounts": [{"name": "tmp", "mountPath": "/workspace"}],
                }
            ],
        },
    }
    value = ray_job("sft", StagePods(claim="shared"), cluster={"head": {"template": template}})
    head = value["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert head["metadata"]["labels"][labels.RUN_UID] == "uid-1"
    assert head["metadata"]["labels"][labels.STAGE] == "sft"
    assert environment(head["spec"])["PLUMBLINE_STATE"] == "team/run-state"
    assert mounts(head["spec"])["/workspace"]["persistentVolumeClaim"] == {"claimName": "shared"}
    assert mounts(head["spec"])["/plumbline/state"]["configMap"] == {"name": "run-state"}
    assert head["spec"]["containers"][0]["workingDir"] == "/workspace"


def test_the_operators_template_lies_below_the_runs_and_means_each_container_only() -> None:
    operators = {
        "spec": {
            "schedulerName": "site",
            "runtimeClassName": "site",
            "containers": [{"name": "ray-worker", "env": [{"name": "A", "value": "1"}]}],
        }
    }
    mine = {"spec": {"runtimeClassName": "mine"}}
    head, worker = pod_specs(ray_job("sft", StagePods(pod_template=operators), cluster={"workers": [{"template": mine}]}))
    assert (head["runtimeClassName"], worker["runtimeClassName"]) == ("site", "mine")
    assert worker["schedulerName"] == "site"
    assert [one["name"] for one in head["containers"]] == ["ray-head"]
    assert environment(worker)["A"] == "1"


@pytest.mark.parametrize("name", [{}, ["ray-worker"], None, 1])
def test_a_container_with_rubbish_for_a_name_is_left_to_the_api_server(name: object) -> None:
    template = {"spec": {"containers": [{"name": name, "volumeMounts": [{"mountPath": {}}, 3, None]}]}}
    for settings, shape in ((StagePods(), {"template": template}), (StagePods(pod_template=template), {})):
        (worker,) = pod_specs(ray_job("sft", settings, cluster={"workers": [shape]}))[1:]
        assert worker["containers"][0]["name"] == "ray-worker"


LEAF = st.none() | st.booleans() | st.integers() | st.sampled_from(["state", "ray-worker", "", "/workspace"])
FIELD = st.sampled_from(
    [
        "metadata",
        "labels",
        "spec",
        "containers",
        "env",
        "name",
        "value",
        "volumes",
        "volumeMounts",
        "mountPath",
        "tolerations",
    ]
)
JSON = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELD, inner, max_size=4))


@given(template=st.dictionaries(FIELD, JSON, max_size=4))
def test_any_rubbish_in_a_template_leaves_the_contract_whole(template: Object) -> None:
    before = copy.deepcopy(template)
    pod = cluster("sft", cluster={"workers": [{"template": template}]})["workerGroupSpecs"][0]["template"]
    assert template == before
    assert pod["metadata"]["labels"][labels.RUN_UID] == "uid-1"
    ours = next(one for one in pod["spec"]["containers"] if isinstance(one, dict) and one.get("name") == "ray-worker")
    assert {"name": "PLUMBLINE_STATE", "value": "team/run-state"} in ours["env"]
    assert {"name": "state", "mountPath": "/plumbline/state", "readOnly": True} in ours["volumeMounts"]
    assert {"name": "state", "configMap": {"name": "run-state"}} in pod["spec"]["volumes"]


@given(base=st.dictionaries(FIELD, JSON), over=st.dictionaries(FIELD, JSON))
def test_laying_over_twice_changes_nothing_more(base: Object, over: Object) -> None:
    once = lay_over(base, over)
    assert lay_over(once, {}) == once
    named = {key: value for key, value in over.items() if not isinstance(value, list | dict)}
    assert lay_over(lay_over(base, named), named) == lay_over(base, named)
