"""What the reconciler wants to exist, in its own words; `builders` turn them into Kubernetes objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Access:
    """The run's ConfigMap, ServiceAccount, Role, RoleBinding and, where configured, NetworkPolicy."""


@dataclass(frozen=True)
class PlanJob:
    """One attempt at planning a generation of the run."""

    generation: int
    attempt: int


@dataclass(frozen=True)
class StageJob:
    """One attempt at a stage: a RayJob.

    Attributes:
        generation: whose plan (`run-GENERATION.json`) it follows.
        first: nothing of this stage was ever created, so that no Pods can be left.
    """

    stage: str
    attempt: int
    fingerprint: str
    generation: int
    first: bool = False


@dataclass(frozen=True)
class Endpoint:
    """A served model: a RayService.

    Attributes:
        shape: digest of all that the spec depends on beside the fingerprint; kept in an annotation.
        replaces: the Ray cluster that serves now, if any; kept in an annotation.
        keep, keep_fingerprint: the spec to go back to if this one does not become healthy, and what it served; kept in
            annotations of the RayService.
    """

    stage: str
    fingerprint: str
    generation: int
    shape: str
    replaces: str = ""
    keep: dict[str, object] | None = None
    keep_fingerprint: str | None = None


@dataclass(frozen=True)
class Restored:
    """A RayService put back to the spec that served before.

    Attributes:
        spec: that spec.
        fingerprint: of what it serves.
        refused: fingerprint of what did not become healthy.
    """

    stage: str
    spec: dict[str, object]
    fingerprint: str
    refused: str


Desired = Access | PlanJob | StageJob | Endpoint | Restored


@dataclass(frozen=True)
class Reference:
    """An object by kind and name, in the run's namespace."""

    kind: str
    name: str
