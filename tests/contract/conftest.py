"""One API server with the generated CRD for all contract tests of a process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config
from support.apiserver import find_api_server

from plumbline.api import crd
from plumbline.api.run import GROUP, PLURAL, VERSION


class Runs:
    """AlignmentRuns on a real API server, always with strict field validation."""

    def __init__(self, api: client.ApiClient) -> None:
        self._objects = client.CustomObjectsApi(api)
        self._where = (GROUP, VERSION, "default", PLURAL)

    def create(self, run: dict[str, Any], dry_run: bool = False) -> dict[str, Any]:
        extra = {"dry_run": "All"} if dry_run else {}
        stored: dict[str, Any] = self._objects.create_namespaced_custom_object(
            *self._where, run, field_validation="Strict", **extra
        )
        return stored

    def replace(self, run: dict[str, Any]) -> dict[str, Any]:
        stored: dict[str, Any] = self._objects.replace_namespaced_custom_object(
            *self._where, run["metadata"]["name"], run, field_validation="Strict"
        )
        return stored

    def patch_status(self, name: str, status: dict[str, Any]) -> dict[str, Any]:
        stored: dict[str, Any] = self._objects.patch_namespaced_custom_object_status(
            *self._where, name, {"status": status}, field_validation="Strict"
        )
        return stored

    def read(self, name: str) -> dict[str, Any]:
        stored: dict[str, Any] = self._objects.get_namespaced_custom_object(*self._where, name)
        return stored


@pytest.fixture(scope="session")
def runs() -> Iterator[Runs]:
    with find_api_server() as server:
        api = config.new_client_from_config(config_file=server.kubeconfig)
        extensions = client.ApiextensionsV1Api(api)
        definition = crd.render()
        extensions.create_custom_resource_definition(definition)
        name = definition["metadata"]["name"]
        deadline = time.monotonic() + 30
        while True:
            conditions = extensions.read_custom_resource_definition(name).status.conditions or []
            if any(c.type == "Established" and c.status == "True" for c in conditions):
                break
            assert time.monotonic() < deadline, f"{name} was not established: {conditions}"
            time.sleep(0.05)
        if not client.CoreV1Api(api).list_namespace(field_selector="metadata.name=default").items:
            client.CoreV1Api(api).create_namespace({"metadata": {"name": "default"}})
        yield Runs(api)
