"""One API server with the generated CRD for all contract tests of a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes import client, config

from plumbline.api import crd
from plumbline.cli import main
from support.apiserver import ApiServer, find_api_server
from support.definitions import establish
from support.observed_run import Access, Command, ObservedRun
from support.runs import Runs


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    with find_api_server() as server:
        yield server


@pytest.fixture(scope="session")
def runs(api_server: ApiServer) -> Runs:
    api = config.new_client_from_config(config_file=api_server.kubeconfig)
    establish(client.ApiextensionsV1Api(api), crd.render())
    if not client.CoreV1Api(api).list_namespace(field_selector="metadata.name=default").items:
        client.CoreV1Api(api).create_namespace({"metadata": {"name": "default"}})
    return Runs(api)


@pytest.fixture
def access(api_server: ApiServer) -> Access:
    value = yaml.safe_load(Path(api_server.kubeconfig).read_text())
    return Access(api_server.kubeconfig, value["clusters"][0]["cluster"]["server"], value["users"][0]["user"]["token"])


@pytest.fixture
def cluster(runs: Runs, access: Access, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ObservedRun:
    monkeypatch.setenv("KUBECONFIG", access.kubeconfig)
    number = sum(request.node.nodeid.encode())
    return ObservedRun(runs, f"run-{number}-{os.getpid()}")


@pytest.fixture
def command(capsysbinary: pytest.CaptureFixture[bytes]) -> Command:
    """Runs a command in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        shown = capsysbinary.readouterr()
        return code, shown.out.decode(), shown.err.decode()

    return run
