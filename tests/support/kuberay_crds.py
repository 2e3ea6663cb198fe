"""KubeRay's real CustomResourceDefinitions on a test API server."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml
from kubernetes import client


def load(api: client.ApiClient, kinds: tuple[str, ...] = ("rayclusters", "rayjobs", "rayservices")) -> None:
    """Create the definitions and wait until they are served.

    Raises:
        TimeoutError: they were not established within a minute.
    """
    shared = Path(os.environ.get("PLUMBLINE_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    folder = shared / "kuberay-crds"
    if not folder.is_dir():
        pytest.skip("needs KubeRay's CRDs: set PLUMBLINE_SHARED or put shared/kuberay-crds beside the repository")
    extensions = client.ApiextensionsV1Api(api)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for kind in kinds:
        extensions.create_custom_resource_definition(
            yaml.load((folder / f"ray.io_{kind}.yaml").read_text(), loader), _preload_content=False
        )
    deadline = time.monotonic() + 60
    for kind in kinds:
        while not _established(extensions, f"{kind}.ray.io"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{kind}.ray.io was not established")
            time.sleep(0.1)


def _established(extensions: client.ApiextensionsV1Api, name: str) -> bool:
    conditions = extensions.read_custom_resource_definition_status(name).status.conditions or []
    return any(one.type == "Established" and one.status == "True" for one in conditions)
