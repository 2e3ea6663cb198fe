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
from support.api_proxy import ApiProxy, Request
from support.apiserver import ApiServer, find_api_server
from support.fake_kuberay import FakeCluster, kueue
from support.operator_process import Operator
from support.patience import wait_for
from support.project import Project
from support.release import Release
from support.rest import LEASES, PODS, RUNS, Kind, Object

QUICK: Object = {
    "scope": "cluster",
    "progressInterval": 1,
    "patience": {
        "retryBase": 1,
        "retryLimit": 8,
        "unreachable": 10,
        "result": 15,
        "ending": 20,
        "healthy": 20,
        "recheck": 1,
    },
}
"""Chart values with the patience of a test: more than a busy machine stands still for."""


class Installation:
    """A cluster with Plumbline in it. Use it in a `with` statement.

    Args:
        folder: for logs, settings and kubeconfigs.
        values: of the chart.
        kuberay: whether KubeRay's types are there from the start.

    Attributes:
        operators: replicas that should run; one, until a test wants more.
    """

    def __init__(self, folder: Path, values: Object = QUICK, kuberay: bool = True) -> None:
        self.folder, self._kuberay = folder, kuberay
        self.release = Release(values)
        self.operators: list[Operator] = []
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.server: ApiServer = stack.enter_context(find_api_server(rbac=True))
            if self._kuberay:
                self.install_kuberay()
            self.fake = stack.enter_context(FakeCluster(self.server.kubeconfig))
            self.proxy = stack.enter_context(ApiProxy(self.server.kubeconfig))
            self.ensure_namespace(chart.NAMESPACE)
            for definition in kueue.definitions():
                self.apply(definition)
            stack.enter_context(self._installed("operator"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def operator(self) -> Operator:
        return self.operators[0]

    def requests(self) -> list[Request]:
        """What the operator has asked for so far."""
        return [one for one in list(self.proxy.requests) if one.user == self.release.account]

    def install_kuberay(self) -> None:
        kuberay_crds.load(config.new_client_from_config(config_file=self.server.kubeconfig), ("rayjobs", "rayservices"))

    @contextlib.contextmanager
    def instead(self, release: Release) -> Iterator[None]:
        """Another release in place of this one."""
        before, self.release = self.release, release
        self.operator.stop()
        operators, self.operators = self.operators, []
        try:
            with self._installed(release.lease):
                yield
        finally:
            self.release, self.operators = before, operators
            self.operator.start()

    @contextlib.contextmanager
    def replica(self) -> Iterator[None]:
        """With a second operator. Whichever was killed meanwhile, the first runs at the end."""
        first, second = self.operator, self._operator("standby")
        self.operators = [first, second]
        try:
            second.start()
            yield
        finally:
            second.stop()
            self.operators = [first]
            if not first.running:
                first.start()

    @contextlib.contextmanager
    def _installed(self, name: str) -> Iterator[None]:
        for namespace in {value["metadata"].get("namespace", "default") for value in self.release.installed}:
            self.ensure_namespace(namespace)
        for value in self.release.installed:
            self.apply(value)
        self.list(RUNS, "default")  # answered once the type is served
        self.operators = [self._operator(name)]
        try:
            self.operator.start()
            yield
        finally:
            self.operator.stop()

    def _operator(self, name: str) -> Operator:
        return self.release.operator(name, self.proxy.kubeconfig(self.folder, self.release.account), self.folder)

    def take_lease(self) -> None:
        """Delete the Lease of a killed operator, so that the next need not wait for its end."""
        self.delete(LEASES, self.release.namespace, self.release.lease)

    def restart_server(self, pause: float = 1.0) -> None:
        """The API server goes and comes back over the same data. In its first moments it knows no Roles and forbids all."""
        self.server.stop_api()
        time.sleep(pause)
        self.server.start_api()
        paths = [RUNS.path(), PODS.path(), LEASES.path(self.release.namespace, self.release.lease)]

        def settled() -> bool:
            for _ in range(3):  # it may know one Role before another, and forbid once more what it has just allowed
                time.sleep(0.1)
                if any(self._code(path) != 200 for path in paths):
                    return False
            return True

        wait_for(settled)
        self.proxy.requests[:] = [one for one in self.proxy.requests if one.code not in (401, 403)]

    def _code(self, path: str) -> int:
        """Status of a request by the operator's account."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.proxy.port}{path}")
        request.add_header("Authorization", f"Bearer {self.release.account}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
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
