"""What the chart renders: valid, least privilege, and in step with the operator."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubernetes import client, config, dynamic
from pydantic.alias_generators import to_camel

import plumbline
from plumbline.api import crd
from plumbline_operator import main
from plumbline_operator.settings import Patience, Settings, StagePods, read
from support import chart
from support.apiserver import find_api_server
from support.chart import NAMESPACE, Object, one, render

KUBERNETES = "1.36"
PROMETHEUS_KINDS = {"ServiceMonitor", "PrometheusRule"}
EVERYTHING: Object = {
    "image": {"repository": "registry.example.com/plumbline-operator", "digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": [{"name": "pull"}],
    "replicas": 3,
    "watchNamespaces": ["team-a", "team-b"],
    "readableSecrets": ["hub-token", "bucket"],
    "logFormat": "text",
    "stagePods": {
        "image": "registry.example.com/plumbline:1",
        "claim": "workspace",
        "imagePullSecrets": ["pull"],
        "accelerators": {"H100": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}},
        "networkPolicy": True,
        "podTemplate": {"spec": {"tolerations": [{"key": "gpu", "operator": "Exists"}], "runtimeClassName": "nvidia"}},
    },
    "serviceAccount": {"annotations": {"example.com/role": "operator"}},
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    },
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True, "annotations": {"grafana_folder": "AI"}},
    },
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "control-plane", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    ],
    "podAnnotations": {"example.com/note": "yes"},
    "podLabels": {"team": "platform"},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"}],
}
SHAPES: dict[str, Object] = {
    "default": {},
    "several namespaces": {"watchNamespaces": ["team-a", "team-b", "team-a"]},
    "cluster": {"scope": "cluster"},
    "one replica": {"replicas": 1, "crds": {"enabled": False}, "userRoles": {"enabled": False}},
    "everything": EVERYTHING,
}
shapes = pytest.mark.parametrize("values", SHAPES.values(), ids=SHAPES)
LONG_RELEASE = "a-release-name-of-fifty-three-characters-is-the-limit"


@shapes
def test_lint_finds_nothing(values: Object) -> None:
    found = chart.helm().lint(chart.CHART, values, strict=True)
    assert not found["errors"]
    assert not [one for one in found["messages"] if one["severity"] > 1]


@shapes
def test_built_in_kinds_are_strictly_valid(values: Object) -> None:
    for value in render(values):
        if value["kind"] not in PROMETHEUS_KINDS | {"CustomResourceDefinition"}:
            kubernetes_validate.validate(value, KUBERNETES, strict=True)


@pytest.mark.apiserver
@shapes
def test_a_real_api_server_takes_every_object(values: Object) -> None:
    objects = [value for value in render(values) if value["kind"] not in PROMETHEUS_KINDS]
    with find_api_server() as server:
        api = config.new_client_from_config(config_file=server.kubeconfig)
        kinds = dynamic.DynamicClient(api)
        for namespace in sorted({value["metadata"].get("namespace", NAMESPACE) for value in objects}):
            client.CoreV1Api(api).create_namespace({"metadata": {"name": namespace}})
        for value in objects:
            kind = kinds.resources.get(api_version=value["apiVersion"], kind=value["kind"])
            where = value["metadata"].get("namespace")
            kind.create(value, namespace=where, query_params=[("fieldValidation", "Strict")])


@shapes
def test_names_are_short_unique_and_labelled(values: Object) -> None:
    for release in (chart.RELEASE, LONG_RELEASE):
        objects = render(values, name=release)
        names = [(v["kind"], v["metadata"].get("namespace"), v["metadata"]["name"]) for v in objects]
        assert len(set(names)) == len(names)
        for value in objects:
            assert value["kind"] == "CustomResourceDefinition" or len(value["metadata"]["name"]) <= 63
            labels = value["metadata"]["labels"]
            assert labels["app.kubernetes.io/instance"] == release
            assert labels["app.kubernetes.io/version"] == plumbline.__version__
            assert all(len(label) <= 63 for label in labels.values())


def test_every_selector_finds_the_operators_pods_and_no_others() -> None:
    objects = render(EVERYTHING)
    pods = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        one(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        one(objects, "Service")["spec"]["selector"],
        one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= pods.items()
        assert selector["app.kubernetes.io/component"] == "operator"
    service = one(objects, "Service")["metadata"]["labels"]
    assert one(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items() <= service.items()


def test_pods_are_restricted() -> None:
    pod = one(render(), "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert {"livenessProbe", "readinessProbe", "startupProbe"} <= container.keys()


def test_a_change_of_settings_restarts_the_operator() -> None:
    def checksum(values: Object) -> str:
        annotations = one(render(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["checksum/settings"])

    assert checksum({}) != checksum({"patience": {"healthy": 60}})
    assert checksum({}) == checksum({"replicas": 3})


def test_an_image_by_digest_wins_over_the_tag() -> None:
    def image(values: Object) -> str:
        return str(one(render({"image": values}), "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"])

    assert image({}) == f"plumbline-operator:{plumbline.__version__}"
    assert image({"tag": "1.2"}) == "plumbline-operator:1.2"
    assert image({"tag": "1.2", "digest": f"sha256:{'a' * 64}"}) == f"plumbline-operator@sha256:{'a' * 64}"


def test_a_single_replica_has_no_disruption_budget() -> None:
    assert not [value for value in render({"replicas": 1}) if value["kind"] == "PodDisruptionBudget"]


def test_versions_are_those_of_the_library() -> None:
    with chart.helm().Chart.load(chart.CHART) as loaded:
        assert loaded.metadata["version"] == loaded.metadata["appVersion"] == plumbline.__version__


def test_the_crd_is_the_generated_one_and_is_kept() -> None:
    found = one(render(), "CustomResourceDefinition")
    assert found["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert found["metadata"].pop("labels")
    assert found == crd.render(), "run `make generate`"
    assert "annotations" not in one(render({"crds": {"keep": False}}), "CustomResourceDefinition")["metadata"]


def settings(values: Object | None = None) -> str:
    return str(one(render(values), "ConfigMap", "plumbline-settings")["data"]["settings.json"])


def test_settings_have_the_operators_own_defaults(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(settings())
    assert read(file) == Settings(StagePods(image=f"plumbline:{plumbline.__version__}"))


def test_the_operator_reads_every_setting_of_the_chart(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(settings(EVERYTHING))
    found, wanted = read(file), EVERYTHING["stagePods"]
    assert found.readable_secrets == ("hub-token", "bucket")
    assert found.stage_pods == StagePods(
        image=wanted["image"],
        claim="workspace",
        image_pull_secrets=("pull",),
        accelerators=wanted["accelerators"],
        network_policy=True,
        pod_template=wanted["podTemplate"],
    )


def test_the_chart_has_every_setting_of_the_operator() -> None:
    def keys(of: type) -> set[str]:
        return {to_camel(field.name) for field in dataclasses.fields(of)}

    values = json.loads(settings({"stagePods": {"claim": "workspace"}}))
    assert values.keys() == keys(Settings)
    assert values["stagePods"].keys() == keys(StagePods)
    assert values["patience"].keys() == keys(Patience)


def test_notes_name_what_is_missing() -> None:
    notes = chart.files({"watchNamespaces": ["team-a", "team-b"]})["NOTES.txt"]
    assert "KubeRay is missing" in notes  # offline there are no CRDs
    assert "team-a, team-b" in notes
    assert "all namespaces" in chart.files({"scope": "cluster"})["NOTES.txt"]


BAD_VALUES: dict[str, tuple[Object, str]] = {
    "unknown key": ({"replicaCount": 3}, "replicaCount"),
    "unknown nested key": ({"stagePods": {"rayversion": "2.60.0"}}, "rayversion"),
    "no replica": ({"replicas": 0}, "replicas"),
    "text for a number": ({"replicas": "2"}, "replicas"),
    "unknown scope": ({"scope": "namespace"}, "scope"),
    "namespace with a glob": ({"watchNamespaces": ["team-*"]}, "watchNamespaces"),
    "secrets by glob": ({"readableSecrets": ["*"]}, "readableSecrets"),
    "no patience": ({"patience": {"healthy": 0}}, "healthy"),
    "pull policy": ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    "digest without algorithm": ({"image": {"digest": "a" * 64}}, "digest"),
    "tag in the repository": ({"image": {"repository": "a@sha256:b"}}, "repository"),
    "accelerator without labels": ({"stagePods": {"accelerators": {"H100": "gpu"}}}, "H100"),
    "label that is no text": ({"podLabels": {"a": 1}}, "podLabels"),
    "port": ({"networkPolicy": {"apiServerPorts": [70000]}}, "apiServerPorts"),
    "no port": ({"networkPolicy": {"apiServerPorts": []}}, "apiServerPorts"),
    "peer that selects nothing": ({"networkPolicy": {"metricsFrom": [{}]}}, "metricsFrom"),
}


@pytest.mark.parametrize(("values", "where"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_bad_values_are_refused_by_name(values: Object, where: str) -> None:
    helm = chart.helm()
    with helm.Chart.load(chart.CHART) as loaded, pytest.raises(helm.HelmError, match=where):
        loaded.validate_schema(values)
    with pytest.raises(helm.HelmError, match=where):
        render(values)


def test_a_scope_that_would_be_wider_than_the_namespaces_named_is_refused() -> None:
    with pytest.raises(chart.helm().HelmError, match="leave watchNamespaces empty, or set scope: namespaced"):
        render({"scope": "cluster", "watchNamespaces": ["team-a"]})


def test_every_value_is_in_the_schema_and_has_a_default() -> None:
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())

    def compare(value: Object, properties: Object, path: str) -> None:
        assert value.keys() == properties.keys() - {"global"}, path
        for name, inner in value.items():
            if name != "resources" and isinstance(inner, dict) and inner and "properties" in properties[name]:
                compare(inner, properties[name]["properties"], f"{path}.{name}")

    compare(values, schema["properties"], "values")


def test_the_readme_names_every_value() -> None:
    readme = (chart.CHART / "README.md").read_text()
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    assert not [name for name in values if f"`{name}" not in readme]


def test_plain_manifests_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    chart.helm()
    manifests = Path(__file__).resolve().parents[2] / "manifests"
    monkeypatch.syspath_prepend(manifests)
    import render_install

    for scope in render_install.MEANINGS:
        found = (manifests / "install" / f"{scope}.yaml").read_text()
        assert found == render_install.render(scope), "run `make generate`"
        assert "helm" not in found.lower().replace("without helm", "")


def test_the_sample_claim_is_valid() -> None:
    path = Path(__file__).resolve().parents[2] / "manifests" / "workspace-claim.yaml"
    kubernetes_validate.validate(yaml.safe_load(path.read_text()), KUBERNETES, strict=True)


@shapes
def test_the_operator_takes_the_charts_arguments(values: Object) -> None:
    container = one(render(values), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    found = main._parser().parse_args(container["args"])
    assert str(found.settings.parent) in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert found.port == container["ports"][0]["containerPort"]
    assert found.lease == chart.RELEASE
