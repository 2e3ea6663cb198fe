"""Whether a judge may be believed: its verdicts on pairs that people have labelled, in both orders, against thresholds."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plumbline.data.row import Message
from plumbline.errors import InvalidInput
from plumbline.evaluation import statistics
from plumbline.evaluation.agreement import Agreement, Consistency, agreement, consistency, majority
from plumbline.evaluation.judges.pairs import Pair, PairJudgment
from plumbline.evaluation.judges.pairwise import Verdict, verdict_of
from plumbline.evaluation.judges.styles.style import Case
from plumbline.evaluation.scoring.judgments import FORMATS, raters_of
from plumbline.evaluation.scoring.records import Record, read_records
from plumbline.evaluation.statistics import Estimate

CONFIDENCE = 0.95
LEAST = 10
"""Fewer labelled pairs tell nothing."""
NO_MAJORITY, IDENTICAL = "no majority of people", "identical answers"

_TEXTS: dict[str, tuple[str, str, str]] = {
    "pandalm": ("instruction", "response1", "response2"),
    "llmbar": ("input", "output_1", "output_2"),
    "auto_j": ("prompt", "response 1", "response 2"),
}
"""Fields of the request and the two answers, by format."""


@dataclass(frozen=True)
class Labelled:
    """Pairs that people have labelled.

    Attributes:
        pairs: with the first answer as candidate.
        labels: by majority where there are several raters, one a pair.
        apart: records of neither, counted by reason.
    """

    pairs: list[Pair]
    labels: list[Verdict]
    apart: dict[str, int]


@dataclass(frozen=True)
class Thresholds:
    """What a judge must reach at least; None: anything will do.

    Attributes:
        accuracy: share of verdicts equal to people's. For scale: a single person agrees with the majority on 66 % of AlpacaEval's pairs,
            GPT-4 on 69 %.
        f1: unweighted mean over the verdicts.
        kappa: Cohen's.
        consistency: share of the pairs with the same verdict in both orders.
    """

    accuracy: float = 0.6
    f1: float | None = None
    kappa: float | None = None
    consistency: float | None = None


@dataclass(frozen=True)
class Qualification:
    """A judge against people.

    Attributes:
        agreement: over the verdicts of both orders, two a pair; unscored ones are wrong.
        accuracy: with its interval, which is that of the pairs.
        consistency: between the orders.
        apart: labelled records that were not asked about, counted by reason.
        problems: what it lacks, a clause each with the numbers.
    """

    agreement: Agreement
    accuracy: Estimate
    consistency: Consistency
    apart: dict[str, int]
    problems: tuple[str, ...]

    @property
    def qualified(self) -> bool:
        """Whether the judge reaches every threshold."""
        return not self.problems

    @property
    def reason(self) -> str:
        """One sentence, why not or on what grounds."""
        verdicts = f"on {self.accuracy.n} labelled pairs in both orders"
        if self.problems:
            return f"the judge is not qualified: {verdicts} its {'; its '.join(self.problems)}"
        return f"the judge is qualified: {verdicts} its accuracy is {_interval(self.accuracy)}"


def read_labelled(format: str, uri: str, limit: int, seed: int = 0) -> Labelled:
    """Pairs and labels of a file.

    Args:
        format: `pandalm`, `llmbar` or `auto_j`.
        uri: the file, with the texts and people's verdicts.
        limit: take only so many pairs, drawn with the seed.

    Raises:
        InvalidInput: the file cannot be read or is not of that format, or no pair is left.
    """
    form, (request, first, second) = FORMATS[format], _TEXTS[format]
    expected = f"{form.humans}, with the texts: {request}, {first}, {second}"
    records = read_records(uri, expected)
    raters = raters_of(records, form)
    found: list[tuple[Pair, Verdict]] = []
    apart = Counter[str]()
    for index, record in enumerate(records):
        label = majority([labels[index] for labels in raters.values()])
        texts = record.text(request), record.text(first), record.text(second)
        case = Case(_asked(texts[0]), context=_context(record) if format == "pandalm" else "")
        pair = Pair(str(index), case, (texts[1],), (texts[2],))
        if label is None:
            apart[NO_MAJORITY] += 1
        elif pair.identical:
            apart[IDENTICAL] += 1
        else:
            found.append((pair, label))
    if not found:
        why = ", ".join(f"{count} with {reason}" for reason, count in apart.items())
        raise InvalidInput(f"{uri}: no labelled pair can be asked about ({why}); expected {expected}")
    chosen = sorted(random.Random(seed).sample(range(len(found)), min(limit, len(found))))
    return Labelled([found[i][0] for i in chosen], [found[i][1] for i in chosen], dict(apart))


def qualify(labelled: Labelled, judgments: Sequence[PairJudgment], thresholds: Thresholds) -> Qualification:
    """A judge's figures from its judgments of the labelled pairs, in their order.

    Raises:
        ValueError: the judgments are not of these pairs.
    """
    if [one.id for one in judgments] != [pair.id for pair in labelled.pairs]:
        raise ValueError("qualification needs one judgment of each labelled pair, in their order")
    labels = labelled.labels
    read = [_verdicts(one) for one in judgments]
    given, exchanged = [one[0] for one in read], [one[1] for one in read]
    pooled = agreement([*labels, *labels], [*given, *exchanged])
    both = consistency(labels, given, exchanged)
    shares = [((a == label) + (b == label)) / 2 for label, a, b in zip(labels, given, exchanged, strict=True)]
    accuracy = statistics.score(shares, CONFIDENCE)
    reached: Mapping[str, tuple[float | None, float | None]] = {
        "accuracy": (pooled.accuracy, thresholds.accuracy),
        "macro-F1": (pooled.f1, thresholds.f1),
        "κ": (pooled.kappa, thresholds.kappa),
        "consistency between the orders": (both.share, thresholds.consistency),
    }
    problems = []
    if len(labels) < LEAST:
        problems.append(f"{len(labels)} labelled pairs are too few to tell; {LEAST} are the least")
    for name, (value, least) in reached.items():
        if least is not None and (value is None or value < least):
            told = "cannot be told" if value is None else _interval(accuracy) if name == "accuracy" else f"{value:.3f}"
            problems.append(f"{name} is {told}, below {least:g}" if value is not None else f"{name} {told}")
    if problems and pooled.unscored:
        problems[-1] += f" ({pooled.unscored} of {pooled.n} verdicts could not be read)"
    return Qualification(pooled, accuracy, both, labelled.apart, tuple(problems))


def _verdicts(judgment: PairJudgment) -> tuple[Verdict | None, Verdict | None]:
    """Those of both orders; a judge that scores each answer, such as a reward model, knows no order."""
    if judgment.decision != "scored" or judgment.outcome is None:
        return judgment.orders
    verdict = verdict_of(judgment.outcome, 0.5)
    return verdict, verdict


def _asked(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _context(record: Record) -> str:
    return record.text("input") if record.value.get("input") is not None else ""


def _interval(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
