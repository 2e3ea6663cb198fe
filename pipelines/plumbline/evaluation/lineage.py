"""Where a model comes from: its ancestors, and the curves that their training left behind."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec

from plumbline.api.base import ArtifactType
from plumbline.artifacts import Artifact, Workspace
from plumbline.errors import PlumblineError

METRICS = "metrics.jsonl"
MAX_POINTS = 500  # of one curve; more would only be drawn over each other
FIRST = ("loss", "reward")  # columns that a reader looks for first

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Ancestor:
    """One artifact that a model was made from, or the model itself.

    Attributes:
        stage: the stage that made it first; None where the workspace has lost the artifact.
        kind, type, fingerprint: of the artifact.
        curves: metric → (step, value) points, the important metrics first.
    """

    stage: str | None
    kind: str
    type: str
    fingerprint: str
    curves: dict[str, Curve] = field(default_factory=dict)


def ancestors(artifact: Artifact, workspace: Workspace) -> list[Ancestor]:
    """The artifact and everything it was made from, the oldest first, each once.

    Raises:
        PlumblineError: a metrics file is not what it should be.
    """
    return [
        Ancestor(
            one.artifact.manifest["stage"] if one.artifact else None,
            one.kind,
            one.type.value,
            one.fingerprint,
            curves(one.artifact) if one.artifact else {},
        )
        for one in family([artifact], workspace)
    ]


@dataclass
class Member:
    """An artifact of a family.

    Attributes:
        kind, fingerprint, type: of the artifact.
        artifact: None where the workspace has lost it.
        read_by: the types of what was made from it.
    """

    kind: str
    fingerprint: str
    type: ArtifactType
    artifact: Artifact | None
    read_by: set[ArtifactType] = field(default_factory=set)


def family(artifacts: Sequence[Artifact], workspace: Workspace) -> list[Member]:
    """The artifacts and everything they were made from, the oldest first, each once."""
    found: dict[tuple[str, str], Member] = {}

    def visit(kind: str, fingerprint: str, type: ArtifactType) -> Member:
        if (kind, fingerprint) in found:
            return found[kind, fingerprint]
        member = Member(kind, fingerprint, type, workspace.find(kind, fingerprint))
        for parents in member.artifact.manifest["lineage"]["inputs"].values() if member.artifact else ():
            for parent in parents:
                # By kind and fingerprint, not by URI: a workspace may have been moved.
                kind_of_parent = parent["uri"].rsplit("/", 2)[-2]
                visit(kind_of_parent, parent["fingerprint"], ArtifactType(parent["type"])).read_by.add(type)
        return found.setdefault((kind, fingerprint), member)

    for artifact in artifacts:
        visit(artifact.manifest["kind"], artifact.fingerprint, artifact.type)
    return list(found.values())


def curves(artifact: Artifact) -> dict[str, Curve]:
    """The numeric columns of an artifact's metrics.jsonl over `step`; empty where it has none.

    Raises:
        PlumblineError: a line is not a JSON object with a step.
    """
    if METRICS not in artifact.manifest["files"]:
        return {}
    rows: list[dict[str, Any]] = []
    with fsspec.open(f"{artifact.uri}/{METRICS}", "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line)
                rows.append(row | {"step": float(row["step"])})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                where = f"{artifact.uri}/{METRICS}:{number}"
                raise PlumblineError(f"{where}: not a JSON object with a step ({error}); delete the artifact") from error
    return columns(rows)


def columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """The numeric columns of rows over their `step`, the important ones first."""
    found: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                found.setdefault(name, []).append((row["step"], float(value)))
    return {name: _thin(found[name]) for name in sorted(found, key=_importance)}


def _importance(name: str) -> tuple[int, str]:
    """Columns named loss or reward before `policy_loss` and `reward_std`, those before all others."""
    exact = [name.rsplit("/", 1)[-1] == first for first in FIRST]
    part = [first in name for first in FIRST]
    return ([*exact, *part, True].index(True), name)


def _thin(curve: Curve) -> Curve:
    """At most `MAX_POINTS` points, evenly chosen, the first and the last among them."""
    if len(curve) <= MAX_POINTS:
        return curve
    stride = (len(curve) - 1) / (MAX_POINTS - 1)
    return [curve[round(i * stride)] for i in range(MAX_POINTS)]
