"""The few lines that the end of `plumbline run` shows of a report: plain data, no layout."""

from __future__ import annotations

import json
from dataclasses import dataclass

import fsspec

from plumbline.artifacts import Artifact
from plumbline.evaluation.report import REPORT


@dataclass(frozen=True)
class Row:
    """The score of one model on one task, with its interval and the number of items."""

    model: str
    task: str
    score: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Summary:
    """What a Report says.

    Attributes:
        rows: scores, task by task, the baselines first and the candidate last.
        confidence: level of the intervals.
        status: `pass`, `fail`, `inconclusive`, or None without gates.
        verdict: the same as one sentence with the numbers that decided.
    """

    rows: tuple[Row, ...]
    confidence: float
    status: str | None
    verdict: str


def summarise(report: Artifact) -> Summary:
    """Read the summary of a Report artifact."""
    with fsspec.open(f"{report.uri}/{REPORT}", "rb") as stream:
        values = json.load(stream)
    rows = tuple(Row(s["model"], s["task"], s["score"], s["low"], s["high"], s["n"]) for s in values["scores"])
    status, confidence = values["verdict"], values["confidence"]
    if status is None:
        return Summary(
            rows, confidence, None, f"no verdict on {values['candidate']}: stage '{values['stage']}' has no gates"
        )
    return Summary(rows, confidence, status, f"{status}: {values['verdictReason']}")
