"""What every object of a run carries: labels, owner, annotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import plumbline
from plumbline.api import labels
from plumbline.api.run import API_VERSION, KIND, RunSpec, Stage
from plumbline_operator.observed import Meta
from plumbline_operator.settings import StagePods

Object = dict[str, Any]
Component = Literal["plan", "stage", "endpoint", "state", "access"]
QUEUE = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True)
class Run:
    """What builders build from: the run as it is stored, and how the operator is set up."""

    meta: Meta
    spec: RunSpec
    pods: StagePods

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.spec.stages if stage.name == name)

    def labels(
        self, component: Component, *, stage: str | None = None, attempt: int | None = None, plan: int | None = None
    ) -> dict[str, str]:
        """Labels of a child and of its Pods; they say whose they are, so nothing may change them."""
        optional = {labels.STAGE: stage, labels.ATTEMPT: attempt, labels.PLAN: plan}
        return {
            "app.kubernetes.io/name": "plumbline",
            "app.kubernetes.io/instance": self.meta.name,
            "app.kubernetes.io/version": plumbline.__version__,
            "app.kubernetes.io/component": component,
            "app.kubernetes.io/part-of": "plumbline",
            "app.kubernetes.io/managed-by": "plumbline-operator",
            labels.RUN: self.meta.name,
            labels.RUN_UID: self.meta.uid,
            **{key: str(value) for key, value in optional.items() if value is not None},
        }

    def metadata(self, name: str, labels: dict[str, str], annotations: dict[str, str] | None = None) -> Object:
        """Metadata of a child: it goes with the run, and does not hold up the run's deletion."""
        owner = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.meta.name,
            "uid": self.meta.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }
        return {
            "name": name,
            "namespace": self.meta.namespace,
            "labels": labels,
            **({"annotations": annotations} if annotations else {}),
            "ownerReferences": [owner],
        }

    def queue_labels(self) -> dict[str, str]:
        """What makes Kueue admit a RayJob or RayService."""
        return {QUEUE: self.spec.queue_name} if self.spec.queue_name else {}
