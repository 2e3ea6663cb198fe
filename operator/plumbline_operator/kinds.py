"""Kinds of Kubernetes objects and where the API server has them."""

from __future__ import annotations

from dataclasses import dataclass

from plumbline.api import labels
from plumbline.api.run import API_VERSION, KIND, PLURAL


@dataclass(frozen=True)
class Resource:
    """Where the API server serves a kind.

    Attributes:
        group_version: `v1`, `batch/v1`, …
        selector: label selector of those that the operator watches.
    """

    kind: str
    group_version: str
    plural: str
    selector: str = labels.RUN_UID

    @property
    def group(self) -> str:
        return self.group_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.group_version.rpartition("/")[2]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.group, self.version, self.plural

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """URL path of the collection, of one object, or of its subresource."""
        parts = ["apis" if self.group else "api", self.group_version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        return "/" + "/".join([*parts, self.plural, *(part for part in (name, subresource) if part)])


RUN = Resource(KIND, API_VERSION, PLURAL, selector="")
KUBERAY, KUEUE = "ray.io/v1", "kueue.x-k8s.io"
BUILT_IN = (Resource("Job", "batch/v1", "jobs"), Resource("ConfigMap", "v1", "configmaps"), Resource("Pod", "v1", "pods"))
RAY = (Resource("RayJob", KUBERAY, "rayjobs"), Resource("RayService", KUBERAY, "rayservices"))
WORKLOADS = tuple(Resource("Workload", f"{KUEUE}/{version}", "workloads", selector="") for version in ("v1beta2", "v1beta1"))
"""Kueue's. Its labels are Kueue's own, so that no selector narrows them down."""
LOCAL_QUEUES = tuple(Resource("LocalQueue", f"{KUEUE}/{version}", "localqueues") for version in ("v1beta2", "v1beta1"))

RESOURCES: dict[str, Resource] = {
    resource.kind: resource
    for resource in (
        RUN,
        *BUILT_IN,
        *RAY,
        Resource("ServiceAccount", "v1", "serviceaccounts"),
        Resource("Role", "rbac.authorization.k8s.io/v1", "roles"),
        Resource("RoleBinding", "rbac.authorization.k8s.io/v1", "rolebindings"),
        Resource("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
        Resource("PersistentVolumeClaim", "v1", "persistentvolumeclaims"),
        Resource("Secret", "v1", "secrets"),
        Resource("Event", "v1", "events"),
        Resource("Lease", "coordination.k8s.io/v1", "leases"),
    )
}
"""By kind."""
