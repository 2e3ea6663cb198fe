"""One API server with the generated CRD for all contract tests of a process."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from kubernetes import client, config

from plumbline.api import crd
from support.apiserver import find_api_server
from support.runs import Runs


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
