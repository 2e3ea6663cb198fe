"""Render the chart as plain YAML for people without Helm: `manifests/install/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).resolve().parent
CHART = MANIFESTS.parent / "charts" / "plumbline"
NAMESPACE = "plumbline"
HELM_ONLY = "helm.sh/chart"
INTRODUCTION = """\
# Generated from charts/plumbline by manifests/render_install.py.
#   kubectl apply --server-side -f manifests/crd/ -f manifests/install/{scope}.yaml
# {meaning}
# Put your images in: `image:` of the Deployment (the operator), `image` in the ConfigMap (the Pods of runs).
"""
MEANINGS = {
    "namespaced": "Runs live beside the operator, in the namespace `plumbline`.",
    "cluster": "Runs may live in any namespace.",
}


def render(scope: str) -> str:
    """The install for a scope, `namespaced` or `cluster`, without the CRD."""
    # Only here: whoever imports this module for its names may lack the library.
    import helm_python as helm

    with helm.Chart.load(CHART) as chart:
        files = chart.render({"scope": scope, "crds": {"enabled": False}}, name="plumbline", namespace=NAMESPACE)
    objects: list[dict[str, Any]] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}]
    for path, text in sorted(files.items()):
        if path.endswith(".yaml"):
            objects += [value for value in yaml.safe_load_all(text) if value]
    for value in objects:
        _forget_helm(value)
    return INTRODUCTION.format(scope=scope, meaning=MEANINGS[scope]) + yaml.safe_dump_all(
        objects, sort_keys=False, width=125
    )


def _forget_helm(value: dict[str, Any]) -> None:
    pod = value.get("spec", {}).get("template", {})
    for labels in (value["metadata"].get("labels"), pod.get("metadata", {}).get("labels")):
        if labels:
            del labels[HELM_ONLY]
            labels["app.kubernetes.io/managed-by"] = "kubectl"


def main() -> None:
    for scope in MEANINGS:
        (MANIFESTS / "install" / f"{scope}.yaml").write_text(render(scope))


if __name__ == "__main__":
    main()
