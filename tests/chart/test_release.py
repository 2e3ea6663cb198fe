"""A release's life on a real API server, by Helm itself."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import client, config

from support import chart
from support.apiserver import find_api_server
from support.chart import NAMESPACE, RELEASE
from support.definitions import establish

pytestmark = pytest.mark.apiserver
CRD = "alignmentruns.plumbline.dev"


def notes(release: dict[str, Any]) -> str:
    return str(release["notes"])


def test_install_change_of_scope_and_removal() -> None:
    helm = chart.helm()
    with find_api_server() as server:
        api = config.new_client_from_config(config_file=server.kubeconfig)
        rbac, extensions = client.RbacAuthorizationV1Api(api), client.ApiextensionsV1Api(api)

        def roles() -> tuple[set[str], set[str]]:
            own = rbac.list_namespaced_role(NAMESPACE).items
            everywhere = rbac.list_cluster_role(label_selector=f"app.kubernetes.io/instance={RELEASE}").items
            return {one.metadata.name for one in own}, {one.metadata.name for one in everywhere}

        people = {f"{RELEASE}-viewer", f"{RELEASE}-editor", f"{RELEASE}-admin"}
        with (
            helm.Chart.load(chart.CHART) as loaded,
            helm.Config(kubeconfig_path=server.kubeconfig, namespace=NAMESPACE) as releases,
        ):
            installed = releases.install(loaded, RELEASE, create_namespace=True)
            assert "KubeRay is missing" in notes(installed)
            assert roles() == ({RELEASE, f"{RELEASE}-lease"}, people)

            releases.upgrade(loaded, RELEASE, {"scope": "cluster"})
            assert roles() == ({f"{RELEASE}-lease"}, {RELEASE, *people})

            with pytest.raises(helm.HelmError, match="replicas"):
                releases.upgrade(loaded, RELEASE, {"replicas": 0})

            releases.uninstall(RELEASE)
            assert roles() == (set(), set())
            assert extensions.read_custom_resource_definition(CRD), "the CRD and with it all runs must stay"

            serve_ray_jobs(extensions)
            with helm.Config(kubeconfig_path=server.kubeconfig, namespace=NAMESPACE) as afresh:
                installed = afresh.install(loaded, RELEASE)  # takes the CRD that was kept
            assert "KubeRay is missing" not in notes(installed)
            assert roles() == ({RELEASE, f"{RELEASE}-lease"}, people)


def serve_ray_jobs(extensions: client.ApiextensionsV1Api) -> None:
    """As much of KubeRay as the chart looks for: that `ray.io/v1` has the kind RayJob."""
    schema = {"openAPIV3Schema": {"type": "object"}}
    names = {"kind": "RayJob", "plural": "rayjobs", "singular": "rayjob", "listKind": "RayJobList"}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    establish(
        extensions,
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "rayjobs.ray.io"},
            "spec": {"group": "ray.io", "scope": "Namespaced", "names": names, "versions": [version]},
        },
    )
