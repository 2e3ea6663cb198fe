"""Exams of four lettered choices by subject, as MMLU has them: prompts for log-likelihoods and for written answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.data.rouge import tokens_of
from plumbline.data.row import Message
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks.benchmark import Item, select, user
from plumbline.evaluation.benchmarks.choices import LETTERS
from plumbline.evaluation.benchmarks.files import Row

CHOICES = 4
SHOTS = 5  # what `TaskSpec.shots` promises where it is unset
TELLING_WORDS = 12
"""A question of so many words stands for itself, without its choices. Of Chinese, twice so many characters."""


@dataclass(frozen=True)
class Question:
    """One row.

    Attributes:
        row: where it stands.
        subject: as its file is named, such as `high_school_biology`.
        text: the question.
        choices: four.
        letter: of the right one.
    """

    row: Row
    subject: str
    text: str
    choices: tuple[str, ...]
    letter: str

    @property
    def lettered(self) -> str:
        """Question and choices, a line each."""
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False)]
        return "\n".join([self.text, *lines])


@dataclass(frozen=True)
class Wording:
    """The words of an exam.

    Attributes:
        heading: subject → line above questions whose letters are compared.
        instruction: subject → line above a question that is answered in writing.
        answer: what the letter follows.
    """

    heading: Callable[[str], str]
    instruction: Callable[[str], str]
    answer: str


def items_of(
    task: TaskSpec,
    read: Callable[[str], Iterable[Question]],
    wording: Wording,
    groups: Callable[[str], Mapping[str, str]],
) -> list[Item]:
    """The items of an exam.

    Args:
        task: its files, those of its examples, and how it is answered.
        read: URI → questions.
        wording: of its prompts.
        groups: subject → what its questions belong to.

    Raises:
        InvalidInput: as `read`, or a subject has too few examples.
    """
    assert task.uri is not None, "EvaluateSpec.problems asks for it"
    shots = _examples(task, read)
    items = []
    for question in read(task.uri):
        before = _shots(task, question, shots)
        written = task.answers == "written"
        items.append(
            Item(
                question.row.id,
                _written(wording, question, before) if written else _likelihood(wording, question, before),
                question.letter,
                _texts(question),
                choices=() if written else tuple(f" {letter}" for letter in LETTERS[:CHOICES]),
                groups=groups(question.subject),
            )
        )
    return select(items, task)


def subject_of(file: str) -> str:
    """`…/high_school_biology_test.csv.gz` → `high_school_biology`."""
    return re.sub(r"_(dev|val|test)(_.*)?$", "", PurePosixPath(file).name.split(".")[0])


def _examples(task: TaskSpec, read: Callable[[str], Iterable[Question]]) -> dict[str, list[Question]] | None:
    if task.examples is None:
        return None
    found: dict[str, list[Question]] = {}
    for example in read(task.examples):
        found.setdefault(example.subject, []).append(example)
    return found


def _shots(task: TaskSpec, question: Question, examples: dict[str, list[Question]] | None) -> list[Question]:
    """The first examples of the question's subject, without the question itself."""
    if examples is None:
        return []
    wanted = task.shots or SHOTS
    fit = [one for one in examples.get(question.subject, []) if one.lettered != question.lettered]
    if len(fit) < wanted:
        raise InvalidInput(
            f"task '{task.name}': {task.examples} holds {len(fit)} examples of subject '{question.subject}' "
            f"({question.row.file}), and {wanted} are shown; give files of that subject, or shots: {len(fit) or 1}"
        )
    return fit[:wanted]


def _likelihood(wording: Wording, question: Question, before: list[Question]) -> list[Message]:
    blocks = [f"{one.lettered}\n{wording.answer} {one.letter}" for one in before]
    return user("\n\n".join([wording.heading(question.subject), *blocks, f"{question.lettered}\n{wording.answer}"]))


def _written(wording: Wording, question: Question, before: list[Question]) -> list[Message]:
    instruction = wording.instruction(question.subject)
    chat: list[Message] = []
    for one in before:
        chat += [*user(f"{instruction}\n\n{one.lettered}"), {"role": "assistant", "content": one.letter}]
    return [*chat, *user(f"{instruction}\n\n{question.lettered}")]


def _texts(question: Question) -> tuple[str, ...]:
    """The question with its choices; also alone, unless it is no more than a phrase like "Which of these is true?"."""
    words, pieces = len(question.text.split()), len(tokens_of(question.text))
    telling = words >= TELLING_WORDS or (pieces >= 2 * words and pieces >= 2 * TELLING_WORDS)
    return (question.lettered, question.text) if telling else (question.lettered,)
