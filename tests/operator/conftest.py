"""One API server, one fake cluster and one operator for all operator tests of a process; a namespace for each test."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator

import pytest
from kubernetes import client, config

from plumbline.api import crd
from support import kuberay_crds
from support.apiserver import ApiServer, find_api_server
from support.definitions import establish
from support.installation import Installation
from support.project import Project


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Whatever the tests did, no request of the operator may have been forbidden."""
    with Installation(tmp_path_factory.mktemp("installation")) as installed:
        yield installed
        forbidden = {(r.verb, r.resource, r.name) for r in installed.proxy.requests if r.code in (401, 403)}
    assert forbidden == set()


@pytest.fixture
def project(installation: Installation) -> Iterator[Project]:
    with installation.project() as project:
        yield project


@pytest.fixture
def kubectl(installation: Installation) -> Callable[..., str]:
    """kubectl as the administrator: arguments and standard input to standard output."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("needs kubectl in the PATH")

    def run(*arguments: str, stdin: str = "") -> str:
        command = [program, "--kubeconfig", installation.server.kubeconfig, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def bare_server() -> Iterator[ApiServer]:
    """An API server on which everyone may do everything, with our types and KubeRay's, and without an operator."""
    with find_api_server() as server:
        api = config.new_client_from_config(config_file=server.kubeconfig)
        establish(client.ApiextensionsV1Api(api), crd.render())
        kuberay_crds.load(api, ("rayjobs", "rayservices"))
        yield server


@pytest.fixture
def bare_namespace(bare_server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A namespace of the test's own there; this process is logged in as the administrator."""
    monkeypatch.setenv("KUBECONFIG", bare_server.kubeconfig)
    name = f"test-{uuid.uuid4().hex[:8]}"
    api = config.new_client_from_config(config_file=bare_server.kubeconfig)
    client.CoreV1Api(api).create_namespace({"metadata": {"name": name}})
    return name
