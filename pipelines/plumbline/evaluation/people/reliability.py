"""How far raters agree with each other beyond chance. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plumbline.evaluation.agreement import cohen_kappa


@dataclass(frozen=True)
class Reliability:
    """Agreement of two or more raters. A figure is None where it is undefined: no two verdicts of one item, or one verdict throughout.

    Attributes:
        units: what two raters at least have judged.
        alike: of all pairs of verdicts on the same, the share that are equal.
        cohen: κ of each two raters on what both have judged, by `FIRST / SECOND`.
        fleiss: κ of all, on what all have judged; None of two raters.
        krippendorff: α with the ordinal distance, on all units.
    """

    units: int
    alike: float | None
    cohen: dict[str, float | None]
    fleiss: float | None
    krippendorff: float | None


def reliability(verdicts: Mapping[str, Mapping[Hashable, str]], order: Sequence[str]) -> Reliability | None:
    """All figures; None of fewer than two raters.

    Args:
        verdicts: rater → unit → verdict; a unit that a rater has not judged is left out.
        order: all verdicts, from one end to the other.
    """
    if len(verdicts) < 2:
        return None
    cohen = {}
    for one, other in itertools.combinations(verdicts, 2):
        both = [unit for unit in verdicts[one] if unit in verdicts[other]]
        first: list[Any] = [verdicts[one][unit] for unit in both]
        second: list[Any] = [verdicts[other][unit] for unit in both]
        cohen[f"{one} / {other}"] = cohen_kappa(first, second) if both else None
    units: dict[Hashable, list[str]] = {}
    for said in verdicts.values():
        for unit, verdict in said.items():
            units.setdefault(unit, []).append(verdict)
    several = [said for said in units.values() if len(said) > 1]
    complete = [said for said in several if len(said) == len(verdicts)]
    pairs = [one == other for said in several for one, other in itertools.combinations(said, 2)]
    return Reliability(
        len(several),
        sum(pairs) / len(pairs) if pairs else None,
        cohen,
        fleiss_kappa(complete) if len(verdicts) > 2 else None,
        krippendorff_alpha(several, order),
    )


def fleiss_kappa(units: Sequence[Sequence[str]]) -> float | None:
    """(P̄ − P̄ₑ) / (1 − P̄ₑ) (Fleiss 1971) of units that equally many raters judged; None where it is undefined.

    Raises:
        ValueError: the units do not have the same number of verdicts.
    """
    if not units:
        return None
    n = len(units[0])
    if any(len(said) != n for said in units):
        raise ValueError("Fleiss' κ needs the same number of verdicts on every unit")
    total = Counter(verdict for said in units for verdict in said)
    expected = sum((count / (n * len(units))) ** 2 for count in total.values())
    if len(total) < 2 or n < 2:
        return None
    observed = sum(sum(c * (c - 1) for c in Counter(said).values()) / (n * (n - 1)) for said in units) / len(units)
    return (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Sequence[Sequence[str]], order: Sequence[str]) -> float | None:
    """1 − Dₒ / Dₑ with the ordinal distance (Krippendorff 2011, “Computing Krippendorff's Alpha-Reliability”); None where it is undefined.

    Args:
        units: the verdicts on each; units of one verdict say nothing and are passed over.
        order: all verdicts, from one end to the other.

    Raises:
        ValueError: a verdict is not in `order`.
    """
    place = {verdict: number for number, verdict in enumerate(order)}
    if any(verdict not in place for said in units for verdict in said):
        raise ValueError(f"verdicts must be among {', '.join(order)}")
    coincidences = np.zeros((len(order), len(order)))
    for said in units:
        if len(said) > 1:
            for one, other in itertools.permutations(said, 2):
                coincidences[place[one], place[other]] += 1 / (len(said) - 1)
    marginal = coincidences.sum(axis=0)
    total = marginal.sum()
    below = np.cumsum(marginal) - marginal / 2  # the rank in the middle of each verdict
    distance = np.subtract.outer(below, below) ** 2
    expected = float((np.outer(marginal, marginal) * distance).sum())
    if total < 2 or expected == 0:
        return None
    return 1 - float((total - 1) * (coincidences * distance).sum()) / expected
