"""Where a model comes from: its ancestors, and the curves that their training left behind."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import fsspec

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
    found: dict[tuple[str, str], Ancestor] = {}

    def visit(kind: str, fingerprint: str, type: str) -> None:
        if (kind, fingerprint) in found:
            return
        current = workspace.find(kind, fingerprint)
        for parents in current.manifest["lineage"]["inputs"].values() if current else ():
            for parent in parents:
                # By kind and fingerprint, not by URI: a workspace may have been moved.
                visit(parent["uri"].rsplit("/", 2)[-2], parent["fingerprint"], parent["type"])
        stage, drawn = (current.manifest["stage"], curves(current)) if current else (None, {})
        found[kind, fingerprint] = Ancestor(stage, kind, type, fingerprint, drawn)

    visit(artifact.manifest["kind"], artifact.fingerprint, artifact.type.value)
    return list(found.values())


def curves(artifact: Artifact) -> dict[str, Curve]:
    """The numeric columns of an artifact's metrics.jsonl over `step`; empty where it has none.

    Raises:
        PlumblineError: a line is not a JSON object with a step.
    """
    if METRICS not in artifact.manifest["files"]:
        return {}
    columns: dict[str, Curve] = {}
    with fsspec.open(f"{artifact.uri}/{METRICS}", "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line)
                step = float(row.pop("step"))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                where = f"{artifact.uri}/{METRICS}:{number}"
                raise PlumblineError(f"{where}: not a JSON object with a step ({error}); delete the artifact") from error
            for name, value in row.items():
                if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                    columns.setdefault(name, []).append((step, float(value)))
    return {name: _thin(columns[name]) for name in sorted(columns, key=_importance)}


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
