"""The shape of the Ray cluster that a stage runs on. Nothing here enters a fingerprint."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from plumbline.api.base import Name, NonNegativeInt, PositiveInt, Quantity, SpecModel


class PodShape(SpecModel):
    """Resources and placement of one Pod."""

    cpu: Quantity | None = None
    """CPU request and limit."""
    memory: Quantity | None = None
    """Memory request and limit."""
    gpus: NonNegativeInt = 0
    """Whole GPUs."""
    accelerator: str | None = Field(default=None, max_length=100)
    """Accelerator type, as Ray names it (`H100`, `A100`, …)."""
    node_selector: dict[str, str] | None = None
    """Node labels that the Pod needs."""
    template: dict[str, Any] | None = Field(default=None, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    """Pod template laid over the generated one: tolerations, volumes, security context, …"""


class WorkerGroup(PodShape):
    """A group of like worker Pods."""

    name: Name = "workers"
    """Group name."""
    replicas: NonNegativeInt = 1
    """Pods to start with."""
    min_replicas: NonNegativeInt | None = None
    """With `maxReplicas`: lets Ray's autoscaler change the number."""
    max_replicas: PositiveInt | None = None
    """See `minReplicas`."""


class ClusterSpec(SpecModel):
    """One Ray cluster."""

    image: str | None = Field(default=None, max_length=500)
    """Stage image. Default: the operator's."""
    ray_version: str | None = Field(default=None, max_length=30)
    """Ray version in that image."""
    head: PodShape | None = None
    """The head Pod."""
    workers: list[WorkerGroup] | None = Field(default=None, max_length=16)
    """Worker groups."""
