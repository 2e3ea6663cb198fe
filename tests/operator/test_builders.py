"""What the builders emit: jobs, clusters, endpoints, access, and the contract with the programs."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import replace
from typing import Any

import pytest

from plumbline.api import labels
from plumbline.api.ray_settings import FAST_PROXY, GROWS_TO
from plumbline.api.report import Rollback
from plumbline.planner import read_run
from plumbline_operator import observed
from plumbline_operator.builders import build, pods
from plumbline_operator.desired import Access, Endpoint, PlanJob, Restored
from plumbline_operator.settings import StagePods
from support.built import (
    CHECK,
    DATA,
    GPU_CLUSTER,
    LIVE,
    PODS,
    RL,
    SFT,
    Object,
    cluster,
    environment,
    groups,
    made,
    meta,
    mounts,
    pod_specs,
    ray_job,
    run_spec,
    service,
)

PAIRS: Object = {"name": "rm", "rewardModel": {}}
COLOCATED: Object = {"workers": 3, "placement": "colocated"}


def starts(value: Object) -> dict[str, Object]:
    """Group name → how Ray is started in its Pods."""
    return {one["groupName"]: one["rayStartParams"] for one in value["workerGroupSpecs"]}


# What a RayJob is


def test_ray_job_leaves_retries_and_deadlines_to_the_operator() -> None:
    spec = ray_job("sft")["spec"]
    spec.pop("rayClusterSpec")
    assert spec == {
        "submissionMode": "HTTPMode",
        "entrypoint": "python -m plumbline.stage /plumbline/state/run-3.json sft --attempt 2",
        "shutdownAfterJobFinishes": True,
        "backoffLimit": 0,
    }


def test_labels_say_whose_a_child_and_its_pods_are() -> None:
    value = ray_job("sft")
    own = value["metadata"]["labels"]
    assert own[labels.RUN] == "run"
    assert own[labels.RUN_UID] == "uid-1"
    assert (own[labels.STAGE], own[labels.ATTEMPT], own[labels.PLAN]) == ("sft", "2", "3")
    assert own["app.kubernetes.io/component"] == "stage"
    assert value["metadata"]["annotations"] == {labels.FINGERPRINT: "f" * 20}
    owner = value["metadata"]["ownerReferences"]
    assert [(one["uid"], one["controller"], one["blockOwnerDeletion"]) for one in owner] == [("uid-1", True, False)]
    head = value["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["labels"]
    # KubeRay's Services select Pods by its own app.kubernetes.io/name.
    assert head == {key: word for key, word in own.items() if key != "app.kubernetes.io/name"}


def test_kueue_starts_a_queued_job_and_sees_no_autoscaler() -> None:
    value = ray_job("data", queueName="team-queue")
    assert value["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-queue"
    assert value["spec"]["suspend"] is True
    assert "enableInTreeAutoscaling" not in value["spec"]["rayClusterSpec"]
    assert groups(value["spec"]["rayClusterSpec"]) == {"workers": (1, 1, 1)}
    many = {"sources": [{"uri": "x"}], "parallelism": 9}  # nothing grows there, so it begins with all
    assert groups(cluster("data", stages=[{"name": "data", "curate": many}], queueName="q")) == {"workers": (5, 5, 5)}
    mine = {"workers": [{"minReplicas": 1, "replicas": 2, "maxReplicas": 8}]}
    assert groups(cluster("sft", cluster=mine, queueName="q")) == {"workers": (2, 2, 2)}
    assert service(queueName="team-queue")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-queue"


# Shapes of clusters


def test_without_a_word_the_kind_decides() -> None:
    assert groups(cluster("data")) == {"workers": (1, 0, 1)}
    assert groups(cluster("sft")) == {"workers": (4, 4, 4)}
    assert groups(cluster("rl")) == {"workers": (2, 2, 2), "rollout": (3, 3, 3)}
    assert groups(cluster("check")) == {"workers": (1, 0, 1)}
    assert groups(service()["spec"]["rayClusterConfig"]) == {"workers": (2, 2, 2)}
    many = {"sources": [{"uri": "x"}], "parallelism": 9}
    assert groups(cluster("data", stages=[{"name": "data", "curate": many}])) == {"workers": (1, 0, 5)}


def test_rollout_actors_and_the_reward_model_have_pods_of_their_own_unless_they_are_colocated() -> None:
    def found(**cluster_of_run: Any) -> Object:
        return cluster("rl", stages=[DATA, PAIRS, stage], **cluster_of_run)

    block: Object = {"rewards": [{"type": "exactMatch"}, {"type": "rewardModel"}]}
    stage = {"name": "rl", "rlhf": RL["rlhf"] | block}
    assert groups(found()) == {"workers": (2, 2, 2), "rollout": (4, 4, 4)}
    assert groups(found(queueName="q")) == {"workers": (2, 2, 2), "rollout": (4, 4, 4)}
    stage = {"name": "rl", "rlhf": block | {"parallelism": {"workers": 4}, "rollout": COLOCATED}}
    assert groups(found()) == {"workers": (4, 4, 4)}
    assert starts(found()) == {"workers": {}}


def test_ray_puts_actors_alone_into_the_pods_of_rollout() -> None:
    assert starts(cluster("rl")) == {"workers": {}, "rollout": {"num-cpus": "0", "resources": """'{"rollout": 1}'"""}}
    mine = [{"name": "workers", "gpus": 2}, {"name": "rollout", "replicas": 2, "gpus": 4}]  # three actors in two Pods
    assert starts(cluster("rl", cluster={"workers": mine}))["rollout"]["resources"] == """'{"rollout": 2}'"""
    assert starts(cluster("sft", cluster={"workers": mine})) == {"workers": {}, "rollout": {}}


@pytest.mark.parametrize(
    "workers",
    [
        [{"name": "rollout", "replicas": 4}],
        [{"name": "workers", "cpu": "1"}, {"name": "rollout", "replicas": 3}],  # the second trainer's CPU
        [{"name": "workers", "gpus": 1}, {"name": "rollout", "replicas": 3, "gpus": 1}],  # and GPU
        [{"name": "workers", "replicas": 2}, {"name": "rollout", "minReplicas": 0, "maxReplicas": 3}],
        [{"name": "workers", "replicas": 2}, {"name": "rollout", "replicas": 0}],
    ],
)
def test_training_workers_are_not_kept_out_of_where_they_must_be(workers: list[Object]) -> None:
    assert all(start == {} for start in starts(cluster("rl", cluster={"workers": workers})).values())


def test_what_training_workers_can_have_is_told_without_the_pods_of_rollout() -> None:
    mine = [
        {"name": "workers", "minReplicas": 0, "maxReplicas": 2, "gpus": 1},
        {"name": "rollout", "replicas": 3, "gpus": 1},
    ]
    value = cluster("rl", cluster={"workers": mine})
    assert starts(value)["rollout"]["num-cpus"] == "0"
    assert json.loads(environment(value["headGroupSpec"]["template"]["spec"])[GROWS_TO]) == {"CPU": 8, "GPU": 2}


def test_curation_and_evaluation_are_autoscaled_and_training_is_not() -> None:
    for stage, autoscaled in {"data": True, "check": True, "sft": False, "rl": False}.items():
        assert cluster(stage).get("enableInTreeAutoscaling", False) is autoscaled
    options = cluster("data")["autoscalerOptions"]
    assert options["securityContext"]["readOnlyRootFilesystem"] is True
    assert {one["mountPath"] for one in options["volumeMounts"]} == {"/tmp", pods.HOME}


def test_a_range_of_training_workers_is_autoscaled_and_the_head_knows_how_far() -> None:
    elastic = {"name": "sft", "sft": {"parallelism": {"minWorkers": 2, "maxWorkers": 5}}}
    value = cluster("sft", stages=[DATA, elastic])
    assert groups(value) == {"workers": (2, 2, 5)}
    assert value["enableInTreeAutoscaling"] is True
    head = value["headGroupSpec"]["template"]["spec"]
    assert json.loads(environment(head)[GROWS_TO]) == {"CPU": 10, "GPU": 0}
    assert groups(cluster("sft", stages=[DATA, elastic], queueName="q")) == {"workers": (5, 5, 5)}
    mine = {"workers": [{"minReplicas": 0, "maxReplicas": 4, "replicas": 0, "gpus": 8, "cpu": "1500m"}]}
    head = cluster("sft", cluster=mine)["headGroupSpec"]["template"]["spec"]
    assert json.loads(environment(head)[GROWS_TO]) == {"CPU": 8, "GPU": 32}
    assert GROWS_TO not in environment(cluster("sft")["headGroupSpec"]["template"]["spec"])


def test_the_head_keeps_free_of_work_unless_it_is_alone_or_has_gpus() -> None:
    assert cluster("sft")["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert cluster("sft", cluster={"workers": []})["headGroupSpec"]["rayStartParams"] == {}
    assert cluster("sft", cluster={"head": {"gpus": 1}})["headGroupSpec"]["rayStartParams"] == {}
    assert service()["spec"]["excludeHeadPodFromServeSvc"] is True
    for shape in ({"workers": []}, {"head": {"gpus": 1}}):  # replicas may lie there
        assert service(cluster=shape)["spec"]["excludeHeadPodFromServeSvc"] is False


def test_an_endpoint_follows_the_load_between_its_bounds() -> None:
    def live(**block: Any) -> Object:
        stages = [{"name": "live", "serve": {"ungated": True, "replicas": 2, **block}}]
        spec: Object = service(stages=stages)["spec"]
        return spec

    fixed = live()
    assert groups(fixed["rayClusterConfig"]) == {"workers": (2, 2, 2)}
    assert "enableInTreeAutoscaling" not in fixed["rayClusterConfig"]
    assert fixed["excludeHeadPodFromServeSvc"] is True
    for least in (1, 0):
        scaled = live(autoscaling={"minReplicas": least, "maxReplicas": 5})
        assert groups(scaled["rayClusterConfig"]) == {"workers": (2, least, 5)}
        assert scaled["rayClusterConfig"]["enableInTreeAutoscaling"] is True
        # With no replica left, the head's proxy takes the request that brings one up.
        assert scaled["excludeHeadPodFromServeSvc"] is (least > 0)
    assert groups(live(autoscaling={"minReplicas": 3, "maxReplicas": 5})["rayClusterConfig"]) == {"workers": (3, 3, 5)}


def test_an_endpoint_drains_as_long_as_it_is_told_and_has_the_fast_proxy_unless_a_template_says_otherwise() -> None:
    stages = [{"name": "live", "serve": {"ungated": True, "drainSeconds": 600}}]
    value = service(stages=stages)
    assert value["spec"]["rayClusterDeletionDelaySeconds"] == 600
    for pod in pod_specs(value):
        assert environment(pod).items() >= FAST_PROXY.items()
        assert environment(pod)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "600"
        assert pod["terminationGracePeriodSeconds"] > 600
        assert "lifecycle" not in pod["containers"][0], "a preStop that ends Ray would leave nothing to drain"
    off = {"spec": {"containers": [{"name": "ray-worker", "env": [{"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "0"}]}]}}
    _, worker = pod_specs(service(stages=stages, cluster={"workers": [{"template": off}]}))
    assert environment(worker)["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    for pod in pod_specs(ray_job("sft")):
        assert not environment(pod).keys() & FAST_PROXY.keys()


def test_gpus_and_accelerators_place_the_pods() -> None:
    (group,) = cluster("sft", cluster=GPU_CLUSTER)["workerGroupSpecs"]
    pod = group["template"]["spec"]
    assert group["labels"] == {"ray.io/accelerator-type": "H100"}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "zone": "a"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    amounts = {"cpu": "32", "memory": "256Gi", "nvidia.com/gpu": "8"}
    assert pod["containers"][0]["resources"] == {"requests": amounts, "limits": amounts}


def test_curation_takes_the_runs_groups_without_their_gpus_unless_it_says_so_itself() -> None:
    (group,) = cluster("data", cluster=GPU_CLUSTER)["workerGroupSpecs"]
    assert "labels" not in group
    assert group["template"]["spec"]["nodeSelector"] == {"zone": "a"}
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "2", "memory": "4Gi"}
    (own,) = cluster("data", cluster=GPU_CLUSTER, stages=[{**DATA, "cluster": {"workers": [{"gpus": 1}]}}])[
        "workerGroupSpecs"
    ]
    assert own["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_a_stage_overrides_the_runs_cluster_field_by_field() -> None:
    mine = {**SFT, "cluster": {"head": {"memory": "9Gi"}, "rayVersion": "2.59.0"}}
    found = cluster("sft", stages=[DATA, mine], cluster={**GPU_CLUSTER, "image": "mine:1", "head": {"memory": "5Gi"}})
    head = found["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert (head["image"], found["rayVersion"]) == ("mine:1", "2.59.0")
    assert head["resources"]["limits"]["memory"] == "9Gi"
    assert groups(found) == {"workers": (2, 2, 2)}


def test_a_range_of_replicas_makes_any_group_autoscaled() -> None:
    workers = [{"name": "few", "minReplicas": 0, "replicas": 2, "maxReplicas": 6}, {"name": "fixed", "replicas": 3}]
    found = cluster("sft", cluster={"workers": workers})
    assert found["enableInTreeAutoscaling"] is True
    assert groups(found) == {"few": (2, 0, 6), "fixed": (3, 3, 3)}


# The plan Job


def test_plan_job_runs_the_planner_once() -> None:
    value = made(PlanJob(3, 2), StagePods(image="stage:1"))
    assert value["metadata"]["name"] == "run-plan-3-2"
    assert value["spec"]["backoffLimit"] == 0
    (pod,) = pod_specs(value)
    assert pod["restartPolicy"] == "Never"
    container = pod["containers"][0]
    assert container["image"] == "stage:1"
    assert container["command"] == ["python", "-m", "plumbline.planner", "--generation", "3", "--attempt", "2"]
    assert "/dev/shm" not in mounts(pod)
    assert value["spec"]["template"]["metadata"]["labels"][labels.PLAN] == "3"


def test_planning_has_the_heads_account_and_volumes() -> None:
    mount = {"name": "nfs", "mountPath": "/nfs"}
    containers = [{"name": "ray-head", "env": [{"name": "A", "value": "1"}]}, {"name": "plan", "volumeMounts": [mount]}]
    template = {"spec": {"serviceAccountName": "cloud", "volumes": [{"name": "nfs"}], "containers": containers}}
    (pod,) = pod_specs(made(PlanJob(3, 1), cluster={"head": {"template": template}}))
    assert pod["serviceAccountName"] == "cloud"
    assert [one["name"] for one in pod["containers"]] == ["plan"]
    assert mounts(pod)["/nfs"] == {"name": "nfs"}
    assert pod["containers"][0]["command"][-1] == "1"


@pytest.mark.parametrize("sources", [1, 64])
def test_the_planner_reads_back_the_very_run(sources: int) -> None:
    uris = [{"uri": f"s3://bucket/$(HOME)/$$/{i:03}-" + "x" * (20 if sources == 1 else 900)} for i in range(sources)]
    stages = [{"name": f"data-{i}", "curate": {"sources": uris}} for i in range(1 if sources == 1 else 4)]
    (pod,) = pod_specs(made(PlanJob(3, 1), stages=stages))
    text = environment(pod)["PLUMBLINE_RUN"]
    assert len(text) < 128 * 1024 - 20
    assert text.startswith("gz:") is (sources > 1)
    assert "$" not in text  # Kubernetes would replace $(HOME) and $$
    run = read_run({"PLUMBLINE_RUN": text})
    assert (run.metadata.name, run.metadata.namespace) == ("run", "team")
    assert run.spec == run_spec(stages=stages)


def test_a_long_run_is_packed_the_same_way_each_time() -> None:
    uris = [{"uri": f"s3://bucket/{i:03}-" + "x" * 1000} for i in range(64)]
    stages = [{"name": f"data-{i}", "curate": {"sources": uris}} for i in range(2)]
    packed = base64.b64decode(
        environment(pod_specs(made(PlanJob(3, 1), stages=stages))[0])["PLUMBLINE_RUN"].removeprefix("gz:")
    )
    assert b"AlignmentRun" in gzip.decompress(packed)
    assert packed[4:8] == bytes(4)  # no time in the header


# The endpoint


def test_ray_service_serves_the_stage_through_our_application() -> None:
    value = service()
    assert value["metadata"]["name"] == "run-live"
    config = json.loads(value["spec"]["serveConfigV2"])
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}
    (application,) = config["applications"]
    assert (application["name"], application["route_prefix"]) == ("model", "/")
    assert application["import_path"] == "plumbline.serving.cluster:build"
    assert application["args"] == {"run": "/plumbline/state/run-3.json", "stage": "live", "fingerprint": "f" * 20}
    assert value["spec"]["upgradeStrategy"] == {"type": "NewCluster"}


def test_a_new_model_or_plan_is_a_new_cluster() -> None:
    def config(fingerprint: str, generation: int) -> Object:
        found: Object = made(Endpoint("live", fingerprint, generation, "shape"))["spec"]["rayClusterConfig"]
        for group in found["workerGroupSpecs"]:  # what KubeRay leaves out of its comparison
            del group["replicas"], group["minReplicas"], group["maxReplicas"]
        return found

    assert config("a" * 20, 3) == config("a" * 20, 3)
    assert config("a" * 20, 3) != config("b" * 20, 3)
    assert config("a" * 20, 3) != config("a" * 20, 4)


def test_the_version_before_is_kept_and_comes_back() -> None:
    before = service()["spec"]
    update = made(Endpoint("live", "b" * 20, 4, "shape-2", "cluster-1", before, "f" * 20))
    annotations = update["metadata"]["annotations"]
    assert annotations[labels.FINGERPRINT] == "b" * 20
    assert (annotations[observed.SHAPE], annotations[observed.REPLACES]) == ("shape-2", "cluster-1")
    assert json.loads(annotations[observed.HEALTHY]) == before
    assert annotations[observed.HEALTHY_FINGERPRINT] == "f" * 20
    back = made(Restored("live", before, "f" * 20, "b" * 20))
    assert back["spec"] == before
    assert back["metadata"]["name"] == update["metadata"]["name"]
    assert back["metadata"]["annotations"] == {labels.FINGERPRINT: "f" * 20, observed.REFUSED: "b" * 20}
    assert back["metadata"]["labels"][labels.PLAN] == "3"  # the plan that it reads must not be cleared away


# Access


def access(settings: StagePods = PODS, **fields: Any) -> dict[str, Object]:
    return {one["kind"]: one for one in build(Access(), meta(), run_spec(**fields), settings)}


def test_pods_may_touch_their_runs_config_map_only() -> None:
    found = access()
    assert list(found) == ["ConfigMap", "ServiceAccount", "Role", "RoleBinding"]
    assert "data" not in found["ConfigMap"]
    assert found["Role"]["rules"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["run-state"], "verbs": ["get", "patch"]}
    ]
    assert found["RoleBinding"]["roleRef"]["name"] == found["Role"]["metadata"]["name"]
    assert [one["name"] for one in found["RoleBinding"]["subjects"]] == ["run-stage"]


def test_a_rollback_that_the_run_asks_for_reaches_its_pods_and_nothing_else_does() -> None:
    asked = Rollback.make("f" * 20).model_dump_json()
    annotations = {f"{labels.ROLLBACK}live": asked, f"{labels.ROLLBACK}sft": '{"id": "../etc"}', "other": asked}
    found = build(Access(), replace(meta(), annotations=annotations), run_spec(), PODS)[0]
    assert list(found["data"]) == ["rollback-live.json"]
    assert Rollback.model_validate_json(found["data"]["rollback-live.json"]) == Rollback.model_validate_json(asked)


def test_the_key_of_a_releases_judge_reaches_the_pods_that_serve() -> None:
    judge = {"endpoint": "https://judge/v1", "model": "wise", "keySecret": "judge-key"}
    live = {**LIVE, "serve": {**LIVE["serve"], "release": {"judge": judge}}}
    for pod in pod_specs(service(stages=[DATA, SFT, RL, CHECK, live])):
        found = environment(pod)["PLUMBLINE_JUDGE_KEY"]
        assert found == {"secretKeyRef": {"name": "judge-key", "key": "apiKey"}}


def test_an_account_that_a_template_names_may_report_too() -> None:
    head = {"template": {"spec": {"serviceAccountName": "cloud"}}}
    found = access(cluster={"head": head})
    assert [one["name"] for one in found["RoleBinding"]["subjects"]] == ["run-stage", "cloud"]
    assert pod_specs(ray_job("sft", cluster={"head": head}))[0]["serviceAccountName"] == "cloud"


def test_network_policy_lets_in_kuberay_users_and_the_run_itself() -> None:
    policy = access(StagePods(network_policy=True, kuberay_namespace="ray-system"))["NetworkPolicy"]["spec"]
    ours = {"podSelector": {"matchLabels": {labels.RUN_UID: "uid-1"}}}
    assert policy["podSelector"] == ours["podSelector"]
    assert {"from": [ours]} in policy["ingress"]
    assert {"to": [ours]} in policy["egress"]
    kuberay = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ray-system"}}}
    (ports,) = [{port["port"] for port in rule["ports"]} for rule in policy["ingress"] if rule["from"] == [kuberay]]
    assert ports == {8265, 8000}  # KubeRay 1.7 asks nothing of the node agents; their probes come from the node
    names = [rule["ports"] for rule in policy["egress"] if {"protocol": "UDP", "port": 53} in rule.get("ports", [])]
    assert len(names) == 1
    assert {"protocol": "UDP", "port": 5353} in names[0]  # where OpenShift's resolver listens behind its Service


def egress_ports(*stages: Object) -> list[int]:
    """TCP ports to anywhere beside those of name servers."""
    policy = access(StagePods(network_policy=True), stages=list(stages))["NetworkPolicy"]["spec"]
    found = [rule["ports"] for rule in policy["egress"] if "to" not in rule]
    return [one["port"] for ports in found for one in ports if one["protocol"] == "TCP" and one["port"] not in (53, 5353)]


def test_network_policy_lets_out_what_the_run_names_and_no_more() -> None:
    assert egress_ports(DATA, SFT) == [443, 6443]
    judge = {"type": "judge", "url": "http://judge.ns.svc:8001/v1", "model": "m"}
    rewards = [{"type": "exactMatch"}, judge, {"type": "http", "url": "http://rewards"}]
    tracking = {"wandb": {"uri": "https://wandb.example:8443"}, "mlflow": {"uri": "http://[fd00::5]:5000"}}
    rl = {"name": "rl", "rlhf": {"rewards": rewards, "tracking": tracking}}
    assert egress_ports(DATA, rl) == [80, 443, 5000, 6443, 8001, 8443]
    teacher = {"endpoint": "http://teacher:8002/v1", "model": "m"}
    made_up = {"name": "more", "synthesize": {"distill": {}, "teacher": teacher}}
    rated = {"filters": {"judge": {"endpoint": "http://judge/v1", "model": "m"}, "rating": {}}}
    curated = {"name": "data", "curate": {"sources": [{"uri": "http://files:9000/rows.jsonl"}], **rated}}
    assert egress_ports(curated, made_up, SFT) == [80, 443, 6443, 8002]


@pytest.mark.parametrize(
    "uri", ["sqlite:////shared/mlflow.db", "databricks", "http://mlflow:0", "http://mlflow:70000", "http://[x"]
)
def test_a_url_without_a_port_opens_none(uri: str) -> None:
    assert egress_ports(DATA, {"name": "sft", "sft": {"tracking": {"mlflow": {"uri": uri}}}}) == [443, 6443]
