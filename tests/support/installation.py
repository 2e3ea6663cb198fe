"""The whole thing on a real API server: our types and KubeRay's, the operator under the chart's own account, a fake cluster."""

from __future__ import annotations

import contextlib
import itertools
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from kubernetes import config

from support import chart, kuberay_crds
from support.api_proxy import ApiProxy
from support.apiserver import ApiServer, find_api_server
from support.fake_kuberay import FakeCluster, kueue
from support.operator_process import Operator
from support.project import Project
from support.rest import LEASES, RUNS, Kind, Object

INSTALLED = ("CustomResourceDefinition", "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
QUICK: Object = {
    "scope": "cluster",
    "progressInterval": 1,
    "patience": {
        "retryBase": 1,
        "retryLimit": 4,
        "unreachable": 2,
        "result": 3,
        "ending": 4,
        "healthy": 4,
        "recheck": 1,
    },
}
"""Chart values with the patience of a test."""


class Installation:
    """A cluster with Plumbline in it. Use it in a `with` statement.

    Args:
        folder: for logs, settings and kubeconfigs.
        values: of the chart.
        replicas: operators that are started.
        kuberay: whether KubeRay's types are there from the start.
    """

    def __init__(self, folder: Path, values: Object = QUICK, replicas: int = 1, kuberay: bool = True) -> None:
        self.folder, self._kuberay = folder, kuberay
        self._objects = chart.render(values)
        self._replicas = replicas
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.server: ApiServer = stack.enter_context(find_api_server(rbac=True))
            if self._kuberay:
                self.install_kuberay()
            self.fake = stack.enter_context(FakeCluster(self.server.kubeconfig))
            self.proxy = stack.enter_context(ApiProxy(self.server.kubeconfig))
            self._install()
            self.operators = [self._operator(f"operator-{i}") for i in range(self._replicas)]
            for operator in self.operators:
                stack.callback(operator.stop)
                operator.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def operator(self) -> Operator:
        return self.operators[0]

    @property
    def account(self) -> str:
        """The token of the operator's ServiceAccount."""
        return f"sa:{chart.NAMESPACE}:{chart.one(self._objects, 'ServiceAccount')['metadata']['name']}"

    def install_kuberay(self) -> None:
        kuberay_crds.load(config.new_client_from_config(config_file=self.server.kubeconfig), ("rayjobs", "rayservices"))

    def _install(self) -> None:
        self.ensure_namespace(chart.NAMESPACE)
        for definition in kueue.definitions():
            self.apply(definition)
        for value in self._objects:
            if value["kind"] in INSTALLED:
                self.apply(value)
        self.list(RUNS, "default")  # answered once the type is served

    def _operator(self, name: str) -> Operator:
        container = chart.one(self._objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
        settings = self.folder / "settings.json"
        found = [one for one in self._objects if one["kind"] == "ConfigMap" and "settings.json" in one["data"]]
        settings.write_text(found[0]["data"]["settings.json"])
        arguments = [one.replace("/etc/plumbline/settings.json", str(settings)) for one in container["args"]]
        environment = {
            "KUBECONFIG": self.proxy.kubeconfig(self.folder, self.account),
            "POD_NAME": name,
            "POD_NAMESPACE": chart.NAMESPACE,
        }
        return Operator(name, arguments, environment, self.folder)

    def take_lease(self) -> None:
        """Delete the Lease of a killed operator, so that the next need not wait for its end."""
        name = next(one for one in self.operator._arguments if one.startswith("--lease=")).removeprefix("--lease=")
        self.fake.call(self.fake.rest.delete(LEASES, chart.NAMESPACE, name))

    def restart_server(self, pause: float = 1.0) -> None:
        """The API server goes and comes back over the same data. In its first moments it knows no Roles and forbids all."""
        self.server.stop_api()
        time.sleep(pause)
        self.server.start_api()
        lease = LEASES.path(chart.NAMESPACE, chart.RELEASE)
        deadline = time.monotonic() + 60
        while self._code(lease) not in (200, 404):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        self.proxy.requests[:] = [one for one in self.proxy.requests if one.code not in (401, 403)]

    def _code(self, path: str) -> int:
        """Status of a request by the operator's account."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.proxy.port}{path}")
        request.add_header("Authorization", f"Bearer {self.account}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    # Objects, as the administrator.

    def apply(self, value: Object) -> Object:
        """Server-side apply of anything."""
        kind, meta = kind_of(value), value["metadata"]
        path = f"{kind.path(meta.get('namespace'), meta['name'])}?fieldManager=test&force=true&fieldValidation=Strict"
        applied: Object = self.fake.call(self.fake.rest.request("PATCH", path, value, "application/apply-patch+yaml"))
        return applied

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        found: Object | None = self.fake.call(self.fake.rest.get(kind, namespace, name))
        return found

    def list(self, kind: Kind, namespace: str) -> list[Object]:
        items: list[Object] = self.fake.call(self.fake.rest.request("GET", kind.path(namespace)))["items"]
        return items

    def patch(self, kind: Kind, namespace: str, name: str, body: Object, subresource: str | None = None) -> None:
        self.fake.call(self.fake.rest.patch(kind, namespace, name, body, subresource))

    def delete(self, kind: Kind, namespace: str, name: str) -> None:
        self.fake.call(self.fake.rest.delete(kind, namespace, name))

    def ensure_namespace(self, name: str) -> None:
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    @contextlib.contextmanager
    def project(self, name: str | None = None) -> Iterator[Project]:
        """A namespace of a test's own, with a claim for the workspace. Its runs are deleted at the end."""
        name = name or f"test-{next(self._numbers)}"
        self.ensure_namespace(name)
        project = Project(self, name)
        project.make_claim()
        before = len(self.fake.violations), len(self.fake.kubelet.overlaps)
        yield project
        self.fake.kubelet.linger.pop(name, None)
        for run in self.list(RUNS, name):
            self.delete(RUNS, name, run["metadata"]["name"])
        bad = self.fake.violations[before[0] :] + self.fake.kubelet.overlaps[before[1] :]
        assert not bad, "\n".join(bad)


def kind_of(value: Object) -> Kind:
    """Where an object of any kind is found."""
    api = value["apiVersion"]
    lower = value["kind"].lower()
    plural = f"{lower[:-1]}ies" if lower.endswith("y") else f"{lower}s"
    return Kind(f"apis/{api}" if "/" in api else f"api/{api}", plural)
