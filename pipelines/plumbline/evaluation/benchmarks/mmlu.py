"""`mmlu`: multiple choice over 57 subjects (Hendrycks et al. 2021, arXiv 2009.03300), by generation.

The model writes its choice and the letter is read from the reply. This is not the log-likelihood variant, which
compares the probabilities of the four letters; its scores differ, so compare only with scores of this kind.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.benchmarks.benchmark import Item, Score, select, user
from plumbline.evaluation.benchmarks.files import csv_rows

LETTERS = "ABCD"
EXPECTED = "six columns without a header: question, choice A, choice B, choice C, choice D, letter (A, B, C or D)"

TELLING_WORDS = 12
"""A question of so many words stands for itself, without its choices."""

_LETTER = re.compile(r"(?<![\w'’-])([A-D])(?![\w'’-])")


def load(task: TaskSpec) -> list[Item]:
    """One item a row, without examples; the file name gives the subject.

    Raises:
        InvalidInput: a row has not the six columns.
    """
    assert task.uri is not None, "EvaluateSpec.problems asks for it"
    items = []
    for row in csv_rows(task.uri, EXPECTED):
        if len(row.value) != 6 or row.value[5].strip() not in tuple(LETTERS):
            raise row.refuse(EXPECTED)
        question, *choices, letter = row.value
        lines = [f"{name}. {choice}" for name, choice in zip(LETTERS, choices, strict=True)]
        prompt = "\n".join(
            [
                f"The following is a multiple choice question about {subject(row.file)}. Reply with the letter of the right "
                "choice and nothing else.",
                "",
                question.strip(),
                *lines,
            ]
        )
        items.append(Item(row.id, user(prompt), letter.strip(), _texts(question.strip(), lines)))
    return select(items, task)


def score(reply: str, item: Item) -> Score:
    """1 if the first capital A–D that stands alone in the reply is the right letter; none is unparseable."""
    found = _LETTER.search(reply)
    letter = found.group(1) if found else None
    return Score(float(letter == item.reference), letter)


def _texts(question: str, lines: list[str]) -> tuple[str, ...]:
    """The question with its choices; also alone, unless it is no more than a phrase like "Which of these is true?"."""
    alone = (question,) if len(question.split()) >= TELLING_WORDS else ()
    return ("\n".join([question, *lines]), *alone)


def subject(file: str) -> str:
    """`…/high_school_biology_test.csv` → `high school biology`."""
    stem = PurePosixPath(file).name.split(".")[0]
    return re.sub(r"_(dev|val|test)(_.*)?$", "", stem).replace("_", " ")
