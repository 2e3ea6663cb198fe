"""What scoring stored outputs gives, and how an output is found in a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from plumbline.errors import InvalidInput
from plumbline.evaluation import statistics
from plumbline.evaluation.scoring.records import Record
from plumbline.evaluation.shown import shown
from plumbline.evaluation.statistics import Estimate

CONFIDENCE = 0.95
REPLY = ("response", "output", "completion", "solution", "reply", "prediction", "text")
"""Fields that hold what a model said, the first one there counts. `resps` of lm-evaluation-harness is read too."""


@dataclass(frozen=True)
class Sample:
    """One output.

    Attributes:
        id: of its item, for people.
        value: in [0, 1], by the benchmark's first metric.
        extracted: what was found in it, None if nothing was.
        reason: why it is not right, in words; empty if it is.
        variants: by the other metrics.
        stored: whether the file itself says that it is right, None if it does not say.
    """

    id: str
    value: float
    extracted: str | None
    reason: str
    variants: dict[str, Any] = field(default_factory=dict)
    stored: bool | list[bool] | None = None


@dataclass(frozen=True)
class Scored:
    """The figures of one model's outputs.

    Attributes:
        model: as the file names it, empty if it does not.
        metrics: by name, with 95 % intervals over items; the first one is the benchmark's own.
        counts: of what is worth knowing about the outputs, by words for people.
        groups: the first metric by subject or kind.
        samples: each output.
    """

    model: str
    metrics: dict[str, Estimate]
    counts: dict[str, int]
    groups: dict[str, Estimate]
    samples: list[Sample]


def share(values: Sequence[float]) -> Estimate:
    """Mean of scores of items in [0, 1] with its interval."""
    return statistics.score(values, CONFIDENCE)


def reply(record: Record, *first: str) -> str:
    """What the model said; null is an empty reply. Fields named `first` count before others.

    Raises:
        InvalidInput: no field holds it.
    """
    for name in (*first, *REPLY):
        if name in record.value:
            return "" if record.value[name] is None else record.text(name)
    stored = record.value.get("resps")
    while isinstance(stored, list) and stored:
        stored = stored[0]
    if isinstance(stored, str):
        return stored
    raise record.refuse(
        f"has no output of a model; expected text in one of {', '.join(REPLY)}; it has {', '.join(record.value) or 'nothing'}"
    )


def once(seen: dict[Any, Record], key: Any, record: Record, what: str) -> None:
    """Remember a record under its key.

    Raises:
        InvalidInput: there is one already.
    """
    if key in seen:
        first = seen[key]
        raise record.refuse(f"{what} {shown(key)} stands a second time (first: {first.file}, {first.place}); keep one")
    seen[key] = record


def refuse_unmatched(outputs: str, problems: str | None, by: str) -> InvalidInput:
    """The error where no output belongs to a problem."""
    return InvalidInput(
        f"{outputs}: none of its outputs belongs to a problem in {problems}, compared by {by}; give the problems that were asked"
    )
