"""What C-Eval and CMMLU share: CSV files with a header, and prompts in Chinese."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.benchmarks.benchmark import Item, Score
from plumbline.evaluation.benchmarks.choices import LETTERS, score_letter
from plumbline.evaluation.benchmarks.files import table_rows
from plumbline.evaluation.benchmarks.multiple_choice import CHOICES, Question, Wording, items_of, subject_of

COLUMNS = ("question", "A", "B", "C", "D", "answer")
EXPECTED = "CSV with a header and the columns question, A, B, C, D, answer (the letter A, B, C or D)"
ANSWER = "答案："


@dataclass(frozen=True)
class ChineseExam:
    """One of the two.

    Attributes:
        subjects: category → subject, as its file is named → its name in Chinese.
        heading: line above questions whose letters are compared, with `{}` for the subject.
        mark: grouping that tells some subjects from the others.
        marked: those.
    """

    subjects: Mapping[str, Mapping[str, str]]
    heading: str
    mark: str
    marked: Set[str]

    def load(self, task: TaskSpec) -> list[Item]:
        """One item a row, after the subject's first `shots` examples where they are given; the file name gives the subject.

        Raises:
            InvalidInput: a column or a right letter is missing, or a subject has too few examples.
        """
        wording = Wording(
            lambda subject: self.heading.format(self._name(subject)),
            lambda subject: instruction(self._name(subject)),
            ANSWER,
        )
        return items_of(task, read, wording, self._groups)

    def score(self, reply: str, item: Item) -> Score:
        """1 if the likeliest letter is the right one; in writing, the first capital A–D that stands alone. None is unparseable."""
        return score_letter(reply, item, CHOICES)

    def _name(self, subject: str) -> str:
        """The subject in Chinese; one that the benchmark does not know, as its file is named."""
        return next((known[subject] for known in self.subjects.values() if subject in known), subject.replace("_", " "))

    def _groups(self, subject: str) -> Mapping[str, str]:
        category = next((name for name, known in self.subjects.items() if subject in known), None)
        known = {"category": category, self.mark: "yes" if subject in self.marked else "no"} if category else {}
        return {"subject": subject.replace("_", " ")} | known


def read(uri: str) -> Iterator[Question]:
    """The questions of CSV files; the file name gives the subject.

    Raises:
        InvalidInput: a column is missing, or a row has no question or no right letter. Files of the hidden test have none.
    """
    for row in table_rows(uri, COLUMNS, EXPECTED):
        question, *choices, letter = (row.value[name] for name in COLUMNS)
        if not question.strip() or letter.strip() not in tuple(LETTERS[:CHOICES]):
            raise row.refuse(EXPECTED)
        yield Question(row, subject_of(row.file), question.strip(), tuple(choices), letter.strip())


def instruction(name: str) -> str:
    """The line above a question that is answered in writing."""
    return f"以下是关于{name}的单项选择题。请只回答正确选项的字母，不要写其他内容。"
