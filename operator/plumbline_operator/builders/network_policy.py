"""One NetworkPolicy for all Pods of a run. Policies add up: what a site needs beyond this goes into a policy of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import get_args, get_type_hints
from urllib.parse import urlsplit

from plumbline.api import labels
from plumbline.api.base import SpecModel
from plumbline.api.stages.tracking import TrackingUrl
from plumbline.api.synthesis.teacher import EndpointUrl
from plumbline_operator import names
from plumbline_operator.builders.metadata import Object, Run
from plumbline_operator.builders.ray_service import PORT

DASHBOARD, METRICS = 8265, 8080
URLS = (EndpointUrl, TrackingUrl)
"""Types of the fields that name a server which the run's programs talk to."""
SCHEMES = {"http": 80, "https": 443}


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
        # The API server, to which programs report and the autoscaler talks, the model hub and object stores; and judges, teachers,
        # rewards and trackers that the run names. Their addresses change, and a NetworkPolicy knows no host names.
        {"ports": _tcp(*sorted({443, 6443, *named_ports(run.spec)}))},
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": run.metadata(names.network_policy(run.meta.name), run.labels("access")),
        "spec": {**ours, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress},
    }


def named_ports(block: SpecModel) -> set[int]:
    """TCP ports of the URLs in a block and all that it holds."""
    return {port for url in _urls(block) if (port := _port(url)) is not None}


def _urls(block: SpecModel) -> Iterator[str]:
    fields = _url_fields(type(block))
    for name, value in block:
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, SpecModel):
                yield from _urls(one)
            elif name in fields and one is not None:
                yield one


@cache
def _url_fields(block: type[SpecModel]) -> frozenset[str]:
    hints = get_type_hints(block, include_extras=True)
    return frozenset(
        name for name in block.model_fields if any(one in URLS for one in (hints[name], *get_args(hints[name])))
    )


def _port(url: str) -> int | None:
    """None where there is none to connect to, as in `sqlite:`; a port that no server can have is the program's to refuse."""
    try:
        parts = urlsplit(url)
        return (parts.port if parts.port is not None else SCHEMES.get(parts.scheme)) or None
    except ValueError:
        return None


def _tcp(*ports: int) -> list[Object]:
    return [{"protocol": "TCP", "port": port} for port in ports]
