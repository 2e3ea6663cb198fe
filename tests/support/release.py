"""A release of the chart: its objects, and operators as its Deployment would start them."""

from __future__ import annotations

from pathlib import Path

from support import chart
from support.operator_process import Operator
from support.rest import Object

INSTALLED = ("CustomResourceDefinition", "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")


class Release:
    """The chart with some values.

    Attributes:
        objects: all that it renders.
        installed: those that an operator needs outside of a Pod.
        lease: name of the Lease that its leader holds.
        account: the token of its operators' ServiceAccount.
    """

    def __init__(self, values: Object, name: str = chart.RELEASE, namespace: str = chart.NAMESPACE) -> None:
        self.namespace = namespace
        self.objects = chart.render(values, name, namespace)
        self.installed = [value for value in self.objects if value["kind"] in INSTALLED]
        self._container = chart.one(self.objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
        self.lease = next(one for one in self._container["args"] if one.startswith("--lease=")).removeprefix("--lease=")
        self.account = f"sa:{namespace}:{chart.one(self.objects, 'ServiceAccount')['metadata']['name']}"

    def operator(self, name: str, kubeconfig: str, folder: Path) -> Operator:
        """A replica, not yet started."""
        settings = folder / f"{self.lease}-settings.json"
        found = [one for one in self.objects if one["kind"] == "ConfigMap" and "settings.json" in one["data"]]
        settings.write_text(found[0]["data"]["settings.json"])
        arguments = [one.replace("/etc/plumbline/settings.json", str(settings)) for one in self._container["args"]]
        environment = {"KUBECONFIG": kubeconfig, "POD_NAME": name, "POD_NAMESPACE": self.namespace}
        return Operator(name, arguments, environment, folder)
