"""What a tracker is told and does: the stage that is tracked, and rows of figures by step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from plumbline.artifacts import Workspace

Row = dict[str, float]
"""Figures by name, and the `step` that they are of."""

PACE = 2.0  # seconds between two deliveries, so that a fast loop does not ask a server for every step


@dataclass(frozen=True)
class Subject:
    """The stage that is tracked, the same for each of its attempts.

    Attributes:
        run, stage, fingerprint: which.
        parameters: the stage's block as in YAML, and its base model.
        workspace: of the run.
    """

    run: str
    stage: str
    fingerprint: str
    parameters: dict[str, Any]
    workspace: Workspace

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.fingerprint[:8]}"


class Tracker(Protocol):
    """An open run of a tracker.

    Attributes:
        last: the last step that it has; 0 before the first.
    """

    last: int

    def log(self, rows: Sequence[Row]) -> None:
        """Take rows in the order of their steps, all after `last`. Asked again with the same ones where it failed."""
        ...

    def close(self, ok: bool) -> None:
        """No more will come; `ok`: the stage is done."""
        ...


def flat(block: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A block within blocks as `{"optimizer.learningRate": "0.0002"}`."""
    found: dict[str, str] = {}
    for name, value in block.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def figures(row: Row) -> Row:
    """The numbers of a row, without its step."""
    return {name: float(value) for name, value in row.items() if name != "step" and isinstance(value, int | float)}
