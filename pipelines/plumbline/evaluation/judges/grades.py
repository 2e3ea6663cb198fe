"""What grade a judge gives to one answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from plumbline.evaluation.judges.calls import SEEDS, Call, Replies, read_grade
from plumbline.evaluation.judges.styles.style import Answers, Case, Style


@dataclass(frozen=True)
class Graded:
    """An answer that is graded. Of a conversation the last turn is; `by_turn` makes one of every turn.

    Attributes:
        id: tells it from all others of its list.
    """

    id: str
    case: Case
    answers: Answers


@dataclass(frozen=True)
class Grade:
    """What a judge said of an answer.

    Attributes:
        id: of the answer.
        grades: of each sample, on the style's scale; None cannot be read.
        mean: of those that can be; None: unscored.
        value: the mean brought to [0, 1].
        why: of an unscored answer, what was wrong with the replies.
        length: characters of the last answer.
    """

    id: str
    grades: tuple[float | None, ...]
    mean: float | None
    value: float | None
    why: str
    length: int


def by_turn(graded: Graded) -> list[Graded]:
    """One for every turn of a conversation, as MT-Bench grades them: `ID/1`, `ID/2` …; of one turn it stays as it is."""
    if not graded.case.turns:
        return [graded]
    return [
        Graded(f"{graded.id}/{turn}", graded.case.through(turn), graded.answers[:turn])
        for turn in range(1, len(graded.case.turns) + 2)
    ]


def calls(style: Style, graded: Graded, samples: int, seed: int) -> list[Call]:
    """The same question `samples` times.

    Args:
        seed: of the item.

    Raises:
        ValueError: the style only compares, or there is not one answer a turn.
    """
    if style.grading is None:
        raise ValueError("judges of this style only compare")
    messages = style.grading.ask(graded.case, graded.answers)
    return [Call(key, messages, (seed + i) % SEEDS, compares=False) for i, key in enumerate(_keys(graded, samples))]


def grade(style: Style, graded: Graded, samples: int, replies: Replies) -> Grade:
    """What the replies to `calls` come to; unscored without a single readable grade.

    Raises:
        ValueError: the style only compares.
    """
    read = [read_grade(style, replies.get(key)) for key in _keys(graded, samples)]
    grades = tuple(value for value, _ in read)
    known = [value for value in grades if value is not None]
    mean = sum(known) / len(known) if known else None
    why = "" if known else Counter(reason for _, reason in read).most_common(1)[0][0]
    return Grade(graded.id, grades, mean, normalised(style, mean), why, len(graded.answers[-1]))


def normalised(style: Style, mean: float | None) -> float | None:
    """A grade brought from the style's scale to [0, 1]."""
    if mean is None or style.grading is None:
        return None
    worst, best = style.grading.scale
    return (mean - worst) / (best - worst)


def _keys(graded: Graded, samples: int) -> Iterator[str]:
    return (f"{graded.id}/{sample}" for sample in range(samples))
