"""How far a judge agrees with people on pairs of answers, and with itself when the answers change places. Pure.

A verdict that could not be read is None: *unscored*. It is no tie and is not left out; it counts as a wrong verdict and, for κ, as a
category of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from plumbline.evaluation.judges.pairwise import SWAPPED, VERDICTS, Verdict

Verdicts = Sequence[Verdict | None]


@dataclass(frozen=True)
class ClassAgreement:
    """One verdict: of those that the judge gave it, and of those that people gave it, the share that the other side gave it too."""

    precision: float
    recall: float
    f1: float
    humans: int
    judge: int


@dataclass(frozen=True)
class Agreement:
    """Figures of a judge against labels.

    Attributes:
        n: items.
        unscored: of them without a verdict that can be read.
        accuracy: share with the label as verdict, of all `n`.
        precision, recall, f1: unweighted means over the verdicts that either side gave.
        kappa: Cohen's; None where it is undefined.
        classes: by verdict.
    """

    n: int
    unscored: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    kappa: float | None
    classes: dict[Verdict, ClassAgreement]


@dataclass(frozen=True)
class Consistency:
    """Two verdicts on each item, one in each order of its answers, both told of the answers and not of the places.

    Attributes:
        n: items with a verdict in both orders.
        unscored: items without one.
        share: of the `n`, those with the same verdict twice; None without any.
        first: of all verdicts that name an answer, the share that names the one shown first; 0.5 is fair. None without any.
        both_right: share of all items where both verdicts are the label.
    """

    n: int
    unscored: int
    share: float | None
    first: float | None
    both_right: float


def agreement(labels: Sequence[Verdict], verdicts: Verdicts) -> Agreement:
    """Accuracy, macro precision, recall and F1, and κ.

    Raises:
        ValueError: the sequences differ in length or are empty.
    """
    _check(labels, verdicts)
    n = len(labels)
    pairs = Counter(zip(labels, verdicts, strict=True))
    humans, judge = Counter(labels), Counter(verdicts)
    classes: dict[Verdict, ClassAgreement] = {}
    for verdict in VERDICTS:
        if humans[verdict] or judge[verdict]:
            right = pairs[verdict, verdict]
            precision = right / judge[verdict] if judge[verdict] else 0.0
            recall = right / humans[verdict] if humans[verdict] else 0.0
            f1 = 2 * right / (humans[verdict] + judge[verdict])
            classes[verdict] = ClassAgreement(precision, recall, f1, humans[verdict], judge[verdict])
    return Agreement(
        n=n,
        unscored=judge[None],
        accuracy=sum(pairs[verdict, verdict] for verdict in VERDICTS) / n,
        precision=sum(one.precision for one in classes.values()) / len(classes),
        recall=sum(one.recall for one in classes.values()) / len(classes),
        f1=sum(one.f1 for one in classes.values()) / len(classes),
        kappa=cohen_kappa(labels, verdicts),
        classes=classes,
    )


def cohen_kappa(a: Verdicts, b: Verdicts) -> float | None:
    """(observed − expected agreement) / (1 − expected) (Cohen 1960); None where both gave one and the same verdict throughout.

    Raises:
        ValueError: the sequences differ in length or are empty.
    """
    _check(a, b)
    n = len(a)
    ours, theirs = Counter(a), Counter(b)
    observed = sum(one == other for one, other in zip(a, b, strict=True))
    expected = sum(ours[verdict] * theirs[verdict] for verdict in ours)  # in units of 1/n², so that equality is exact
    return None if expected == n * n else (observed * n - expected) / (n * n - expected)


def consistency(labels: Sequence[Verdict], given: Verdicts, exchanged: Verdicts) -> Consistency:
    """Whether a judge says the same when the answers change places.

    Args:
        labels: what people say.
        given: verdicts with the answers in their order.
        exchanged: verdicts with the answers exchanged, turned back by `turned`.

    Raises:
        ValueError: the sequences differ in length or are empty.
    """
    _check(labels, given)
    _check(labels, exchanged)
    both = [(one, other) for one, other in zip(given, exchanged, strict=True) if one is not None and other is not None]
    first = sum(one == "1" for one in given) + sum(other == "2" for other in exchanged)
    named = sum(one in ("1", "2") for one in [*given, *exchanged])
    right = sum(label == one == other for label, one, other in zip(labels, given, exchanged, strict=True))
    return Consistency(
        n=len(both),
        unscored=len(labels) - len(both),
        share=sum(one == other for one, other in both) / len(both) if both else None,
        first=first / named if named else None,
        both_right=right / len(labels),
    )


def turned(verdicts: Verdicts) -> list[Verdict | None]:
    """Verdicts on exchanged answers, told of the answers as they were before."""
    return [None if verdict is None else SWAPPED[verdict] for verdict in verdicts]


def unscored_as_ties(verdicts: Verdicts) -> list[Verdict]:
    """What the PandaLM paper makes of verdicts that cannot be read, for comparison with its figures."""
    return ["Tie" if verdict is None else verdict for verdict in verdicts]


def majority(labels: Sequence[Verdict]) -> Verdict | None:
    """The label that most raters gave, None where two are level."""
    ranked = Counter(labels).most_common(2)
    return ranked[0][0] if len(ranked) == 1 or ranked[0][1] > ranked[1][1] else None


def _check(a: Sequence[object], b: Sequence[object]) -> None:
    if len(a) != len(b) or not a:
        raise ValueError(f"agreement needs the same items, at least one: {len(a)} and {len(b)} are given")
