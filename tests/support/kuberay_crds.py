"""KubeRay's real CustomResourceDefinitions on a test API server."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from support.patience import wait_for


def load(api: client.ApiClient, kinds: tuple[str, ...] = ("rayclusters", "rayjobs", "rayservices")) -> None:
    """Create the definitions and wait until they are served.

    Raises:
        TimeoutError: they are not served.
    """
    extensions = client.ApiextensionsV1Api(api)
    for kind in kinds:
        extensions.create_custom_resource_definition(_definition(kind), _preload_content=False)
    wait_for(lambda: _served(api).issuperset(kinds), why=lambda: f"{', '.join(kinds)} were not served")


@functools.cache
def _definition(kind: str) -> dict[str, Any]:
    shared = Path(os.environ.get("PLUMBLINE_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    folder = shared / "kuberay-crds"
    if not folder.is_dir():
        pytest.skip("needs KubeRay's CRDs: set PLUMBLINE_SHARED or put shared/kuberay-crds beside the repository")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    value: dict[str, Any] = yaml.load((folder / f"ray.io_{kind}.yaml").read_text(), loader)
    # Nobody here asks for v1alpha1, and with every version the server needs seconds more for these large schemas.
    value["spec"]["versions"] = [version for version in value["spec"]["versions"] if version["name"] == "v1"]
    return value


def _served(api: client.ApiClient) -> set[str]:
    try:
        found = client.CustomObjectsApi(api).get_api_resources("ray.io", "v1").resources
    except client.ApiException as error:
        if error.status != 404:
            raise
        return set()
    return {resource.name for resource in found}
