"""What people said, in figures: win rates, shares of acceptable answers, and how far a judge agrees with them. Pure.

The unit is the item: several raters of one item are averaged first, since they are not independent. What nobody has judged is counted and is
in no figure.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plumbline.evaluation import statistics
from plumbline.evaluation.agreement import cohen_kappa
from plumbline.evaluation.people.filled import Filled, Opinion
from plumbline.evaluation.people.reliability import Reliability, krippendorff_alpha, reliability
from plumbline.evaluation.people.sheet import VERDICTS, Key
from plumbline.evaluation.statistics import Difference, Estimate

CONFIDENCE = 0.95
GRADES = tuple(VERDICTS["acceptability"])
GOOD = ("A", "B")
NOBODY = "no majority"
UNREAD = "unscored"

Item = tuple[str, str]
"""(task, item)."""
Unit = tuple[str, str, str]
"""(task, item, model); of pairs the model is empty."""


@dataclass(frozen=True)
class Rater:
    """One rater.

    Attributes:
        sheet: that was filled in.
        said: verdict → how often, in the sheet's words.
        unanswered: rows without a verdict.
        win_rate: pairs only: of the model, on this rater's items.
        first: pairs only: of the verdicts that name an answer, the share that names the one shown first; ½ is fair. None without any.
    """

    name: str
    sheet: str
    said: dict[str, int]
    unanswered: int
    win_rate: Estimate | None = None
    first: Estimate | None = None


@dataclass(frozen=True)
class Pairs:
    """A model against another.

    Attributes:
        items: judged by one rater at least.
        open: of the sheet's items, those that nobody judged.
        win_rate: mean outcome of the items, a tie ½, of several raters their mean.
        with_identical: the same with the pairs of identical answers as ties; None where there are none.
        majority: what most raters of an item said: the model's or its opponent's name, `tie` or `no majority` → items.
        identical: pairs of identical answers, which nobody was asked about.
    """

    model: str
    against: str
    items: int
    open: int
    win_rate: Estimate
    with_identical: Estimate | None
    majority: dict[str, int]
    identical: int
    raters: tuple[Rater, ...]
    reliability: Reliability | None


@dataclass(frozen=True)
class Graded:
    """One model's answers.

    Attributes:
        items: judged by one rater at least; `open` are those that nobody judged.
        grades: A to D → verdicts of all raters.
        good: share of A and B, of several raters their mean.
    """

    model: str
    items: int
    open: int
    grades: dict[str, int]
    good: Estimate | None


@dataclass(frozen=True)
class Acceptability:
    """All models' answers.

    Attributes:
        differences: (model, other) → share of A and B of the first minus that of the second, on the items that both have.
    """

    models: tuple[Graded, ...]
    differences: dict[tuple[str, str], Difference]
    raters: tuple[Rater, ...]
    reliability: Reliability | None


@dataclass(frozen=True)
class Confusion:
    """A judge beside people.

    Attributes:
        n: units with a majority of people and a judgment; an unscored one counts as wrong.
        matrix: what people said → what the judge said → how often; `unscored` is a judgment without a verdict.
        accuracy: share of the same verdict.
        kappa: Cohen's, with unscored as a category of its own; None where it is undefined.
        alpha: Krippendorff's with the ordinal distance, of what is scored; None where it is undefined.
        apart: not compared, by reason.
    """

    n: int
    matrix: dict[str, dict[str, int]]
    accuracy: Estimate
    kappa: float | None
    alpha: float | None
    apart: dict[str, int]


def outcome(opinion: Opinion, model: str) -> float | None:
    """1 where the model's answer is better, ½ of a tie, 0 where the other is; None without a verdict."""
    if opinion.verdict in (None, "tie"):
        return None if opinion.verdict is None else 0.5
    return float(opinion.row.models[int(opinion.verdict) - 1] == model)


def pairs(key: Key, filled: Sequence[Filled]) -> Pairs:
    """Figures of a pairwise sheet.

    Raises:
        ValueError: nothing has been judged.
    """
    model, against = key.models
    outcomes: dict[Item, list[float]] = {}
    raters = []
    for one in filled:
        own = [(opinion, value) for opinion in one.opinions if (value := outcome(opinion, model)) is not None]
        for opinion, value in own:
            outcomes.setdefault((opinion.row.task, opinion.row.item), []).append(value)
        decided = [opinion.verdict == "1" for opinion, _ in own if opinion.verdict != "tie"]
        raters.append(
            _rater(
                one,
                tuple(VERDICTS["pairwise"]),
                _win_rate([value for _, value in own]) if own else None,
                statistics.wilson(sum(decided), len(decided), CONFIDENCE) if decided else None,
            )
        )
    means = [sum(values) / len(values) for values in outcomes.values()]
    words = {1.0: model, 0.0: against, 0.5: "tie"}
    told = Counter(_most(words[value] for value in values) or NOBODY for values in outcomes.values())
    asked = {(row.task, row.item) for row in key.sheets[0].rows}
    return Pairs(
        model,
        against,
        len(outcomes),
        len(asked - set(outcomes)),
        _win_rate(means),
        _win_rate(means + [0.5] * len(key.identical)) if key.identical else None,
        {name: told[name] for name in (model, against, "tie", NOBODY)},
        len(key.identical),
        tuple(raters),
        reliability(_by_rater(key, filled), (against, "tie", model)),
    )


def acceptability(key: Key, filled: Sequence[Filled]) -> Acceptability:
    """Figures of a sheet of A to D."""
    good: dict[str, dict[Item, list[float]]] = {model: {} for model in key.models}
    grades: dict[str, Counter[str]] = {model: Counter() for model in key.models}
    asked = Counter(row.models[0] for row in key.sheets[0].rows)
    for opinion in (opinion for one in filled for opinion in one.opinions):
        if opinion.verdict is not None:
            (model,) = opinion.row.models
            grades[model][opinion.verdict] += 1
            good[model].setdefault((opinion.row.task, opinion.row.item), []).append(float(opinion.verdict in GOOD))
    shares = {model: {item: sum(v) / len(v) for item, v in of.items()} for model, of in good.items()}
    differences = {}
    for one, other in itertools.combinations(key.models, 2):
        both = [item for item in shares[one] if item in shares[other]]
        if both:
            values = [[shares[model][item] for item in both] for model in (one, other)]
            differences[one, other] = statistics.paired_difference(values[0], values[1], CONFIDENCE)
    return Acceptability(
        tuple(
            Graded(
                model,
                len(shares[model]),
                asked[model] - len(shares[model]),
                {grade: grades[model][grade] for grade in GRADES},
                statistics.score(list(shares[model].values()), CONFIDENCE) if shares[model] else None,
            )
            for model in key.models
        ),
        differences,
        tuple(_rater(one, GRADES) for one in filled),
        reliability(_by_rater(key, filled), GRADES),
    )


def confusion(
    key: Key, filled: Sequence[Filled], judged: Mapping[Unit, str | None], passed_over: int = 0
) -> Confusion | None:
    """A judge's verdicts beside the majority of people; None where they have no unit in common.

    Args:
        key, filled: what people said.
        judged: unit → the judge's verdict: a model's name or `tie`, or A to D; None where it could not be read.
        passed_over: judgments that are of none of the sheet's answers.
    """
    labels: dict[Unit, list[str]] = {}
    for said in _by_rater(key, filled).values():
        for unit, verdict in said.items():
            labels.setdefault(unit, []).append(verdict)
    agreed = {unit: found for unit, said in labels.items() if (found := _most(said)) is not None}
    common = [unit for unit in agreed if unit in judged]
    apart = {
        "no majority of people": len(labels) - len(agreed),
        "no judgment": len(agreed) - len(common),
        "no verdict of people": sum(unit not in labels for unit in judged) + passed_over,
    }
    if not common:
        return None
    order = GRADES if key.kind == "acceptability" else (key.models[1], "tie", key.models[0])
    matrix = {human: dict.fromkeys((*order, UNREAD), 0) for human in order}
    for unit in common:
        matrix[agreed[unit]][judged[unit] or UNREAD] += 1
    humans: list[Any] = [agreed[unit] for unit in common]
    judges: list[Any] = [judged[unit] for unit in common]
    scored = [(human, judge) for human, judge in zip(humans, judges, strict=True) if judge is not None]
    return Confusion(
        len(common),
        matrix,
        statistics.wilson(sum(human == judge for human, judge in scored), len(common), CONFIDENCE),
        cohen_kappa(humans, judges),
        krippendorff_alpha(scored, order),
        {reason: count for reason, count in apart.items() if count},
    )


def battles(key: Key, filled: Sequence[Filled]) -> list[dict[str, str]]:
    """A record for each verdict of a pair, in the form that `plumbline rate --format battles` reads; `model_a` was shown first."""
    winners = {"1": "model_a", "2": "model_b", "tie": "tie"}
    return [
        {
            "task": opinion.row.task,
            "question_id": opinion.row.item,
            "model_a": opinion.row.models[0],
            "model_b": opinion.row.models[1],
            "winner": winners[opinion.verdict],
            "judge": one.rater,
        }
        for one in filled
        for opinion in one.opinions
        if opinion.verdict is not None
    ]


def opinions(filled: Sequence[Filled]) -> list[dict[str, Any]]:
    """A record for each row of each rater's sheet, with the models in the order in which they were shown."""
    return [
        {
            "rater": one.rater,
            "task": opinion.row.task,
            "item": opinion.row.item,
            "models": list(opinion.row.models),
            "verdict": opinion.verdict,
            "comment": opinion.comment,
        }
        for one in filled
        for opinion in one.opinions
    ]


def _by_rater(key: Key, filled: Sequence[Filled]) -> dict[str, dict[Any, str]]:
    """Rater → unit → verdict, told of the models and not of the sides."""
    found: dict[str, dict[Any, str]] = {}
    for one in filled:
        own = found.setdefault(one.rater, {})
        for opinion in one.opinions:
            row = opinion.row
            if opinion.verdict is not None and key.kind == "acceptability":
                own[row.task, row.item, row.models[0]] = opinion.verdict
            elif opinion.verdict is not None:
                own[row.task, row.item, ""] = "tie" if opinion.verdict == "tie" else row.models[int(opinion.verdict) - 1]
    return found


def _rater(one: Filled, order: Sequence[str], win_rate: Estimate | None = None, first: Estimate | None = None) -> Rater:
    said = Counter(one.verdicts.values())
    return Rater(one.rater, one.sheet, {verdict: said[verdict] for verdict in order}, said[None], win_rate, first)


def _win_rate(outcomes: Sequence[float]) -> Estimate:
    """The interval of paired differences where items are won, tied or lost, so that ties alone are no certainty; else Student's t."""
    if all(value in (0.0, 0.5, 1.0) for value in outcomes):
        return statistics.win_rate(outcomes, [1 - value for value in outcomes], CONFIDENCE)
    return statistics.mean(outcomes, CONFIDENCE)


def _most(said: Iterable[str]) -> str | None:
    """What most said; None where two are level."""
    ranked = Counter(said).most_common(2)
    return ranked[0][0] if len(ranked) == 1 or ranked[0][1] > ranked[1][1] else None
