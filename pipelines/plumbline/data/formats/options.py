"""What a source says about how its records become rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plumbline.data.row import Form


@dataclass(frozen=True)
class Options:
    """How records become rows.

    Attributes:
        form: what the rows hold.
        per_task: of a task with many instances, how many.
        paths: of a tree of messages, the best path or every path.
    """

    form: Form
    per_task: int = 100
    paths: Literal["best", "all"] = "best"
