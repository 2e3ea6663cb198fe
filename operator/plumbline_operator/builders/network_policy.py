"""One NetworkPolicy for all Pods of a run. Policies add up: what a site needs beyond this goes into a policy of its own."""

from __future__ import annotations

from plumbline.api import labels
from plumbline_operator import names
from plumbline_operator.builders.metadata import Object, Run
from plumbline_operator.builders.ray_service import PORT

DASHBOARD, METRICS = 8265, 8080


def network_policy(run: Run) -> Object:
    """What may reach the run's Pods, and what they may reach."""
    ours: Object = {"podSelector": {"matchLabels": {labels.RUN_UID: run.meta.uid}}}
    kuberay = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": run.pods.kuberay_namespace}}}
    ingress: list[Object] = [
        # The nodes of a Ray cluster talk to each other on ports that they choose.
        {"from": [ours]},
        # KubeRay submits jobs and Serve applications to the dashboard, and asks the head's Serve proxy how it is.
        {"from": [kuberay], "ports": _tcp(DASHBOARD, PORT)},
        # Users of the served model.
        {"from": [{"podSelector": {}}], "ports": _tcp(PORT)},
        # Prometheus, wherever it is: figures only, nothing can be changed there.
        {"from": [{"namespaceSelector": {}}], "ports": _tcp(METRICS)},
    ]
    egress: list[Object] = [
        {"to": [ours]},
        # Names; the resolver may be a Pod or, with a cache on each node, none. So it has no selector. OpenShift's listens on 5353.
        {"ports": [{"protocol": protocol, "port": port} for port in (53, 5353) for protocol in ("UDP", "TCP")]},
        # The API server, to which programs report and the autoscaler talks, the model hub and object stores. Their addresses
        # change, and a NetworkPolicy knows no host names.
        {"ports": _tcp(443, 6443)},
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": run.metadata(names.network_policy(run.meta.name), run.labels("access")),
        "spec": {**ours, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress},
    }


def _tcp(*ports: int) -> list[Object]:
    return [{"protocol": "TCP", "port": port} for port in ports]
