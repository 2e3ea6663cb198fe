"""`mmlu`: multiple choice over 57 subjects (Hendrycks et al. 2021, arXiv 2009.03300).

The letters' log-likelihoods are compared, by default: prompt and rule are those of EleutherAI's lm-evaluation-harness. With
`answers: written` the model writes its choice and the letter is read from the reply; such scores compare only with their like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.benchmarks import multiple_choice
from plumbline.evaluation.benchmarks.benchmark import Item, Score
from plumbline.evaluation.benchmarks.choices import LETTERS as ALPHABET
from plumbline.evaluation.benchmarks.choices import score_letter
from plumbline.evaluation.benchmarks.files import csv_rows
from plumbline.evaluation.benchmarks.multiple_choice import CHOICES, Question, Wording, items_of

LETTERS = ALPHABET[:CHOICES]
EXPECTED = "six columns without a header: question, choice A, choice B, choice C, choice D, letter (A, B, C or D)"

CATEGORIES = {
    "STEM": [
        "abstract_algebra",
        "anatomy",
        "astronomy",
        "college_biology",
        "college_chemistry",
        "college_computer_science",
        "college_mathematics",
        "college_physics",
        "computer_security",
        "conceptual_physics",
        "electrical_engineering",
        "elementary_mathematics",
        "high_school_biology",
        "high_school_chemistry",
        "high_school_computer_science",
        "high_school_mathematics",
        "high_school_physics",
        "high_school_statistics",
        "machine_learning",
    ],
    "humanities": [
        "formal_logic",
        "high_school_european_history",
        "high_school_us_history",
        "high_school_world_history",
        "international_law",
        "jurisprudence",
        "logical_fallacies",
        "moral_disputes",
        "moral_scenarios",
        "philosophy",
        "prehistory",
        "professional_law",
        "world_religions",
    ],
    "social sciences": [
        "econometrics",
        "high_school_geography",
        "high_school_government_and_politics",
        "high_school_macroeconomics",
        "high_school_microeconomics",
        "high_school_psychology",
        "human_sexuality",
        "professional_psychology",
        "public_relations",
        "security_studies",
        "sociology",
        "us_foreign_policy",
    ],
    "other": [
        "business_ethics",
        "clinical_knowledge",
        "college_medicine",
        "global_facts",
        "human_aging",
        "management",
        "marketing",
        "medical_genetics",
        "miscellaneous",
        "nutrition",
        "professional_accounting",
        "professional_medicine",
        "virology",
    ],
}
"""Subjects as the paper and the harness sort them; the authors' code has anatomy under other."""
_CATEGORY = {topic: category for category, topics in CATEGORIES.items() for topic in topics}

_WORDING = Wording(
    lambda topic: f"The following are multiple choice questions (with answers) about {topic.replace('_', ' ')}.",
    lambda topic: (
        f"The following is a multiple choice question about {topic.replace('_', ' ')}. Reply with the letter of the right "
        "choice and nothing else."
    ),
    "Answer:",
)


def load(task: TaskSpec) -> list[Item]:
    """One item a row, after the subject's first `shots` examples where they are given; the file name gives the subject.

    Raises:
        InvalidInput: a row has not the six columns, or a subject has too few examples.
    """
    return items_of(task, _read, _WORDING, _groups)


def score(reply: str, item: Item) -> Score:
    """1 if the likeliest letter is the right one; in writing, the first capital A–D that stands alone. None is unparseable."""
    return score_letter(reply, item, CHOICES)


def subject(file: str) -> str:
    """`…/high_school_biology_test.csv` → `high school biology`."""
    return multiple_choice.subject_of(file).replace("_", " ")


def _read(uri: str) -> Iterator[Question]:
    for row in csv_rows(uri, EXPECTED):
        if len(row.value) != 6 or row.value[5].strip() not in tuple(LETTERS):
            raise row.refuse(EXPECTED)
        question, *choices, letter = row.value
        topic = multiple_choice.subject_of(row.file)
        yield Question(row, topic, question.strip(), tuple(choices), letter.strip())


def _groups(topic: str) -> Mapping[str, str]:
    category = _CATEGORY.get(topic.replace(" ", "_"))
    return {"subject": topic.replace("_", " ")} | ({"category": category} if category else {})
