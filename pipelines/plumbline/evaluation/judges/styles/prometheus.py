"""`prometheus`: the format that Prometheus was trained on (Kim et al. 2023, arXiv 2310.08491; 2024, arXiv 2405.01535).

Everything stands under headings; the reply is feedback and then `[RESULT]` with a whole number from 1 to 5, or with A or B. Prometheus
knows no tie.
"""

from __future__ import annotations

import re

from plumbline.data.row import Message
from plumbline.evaluation.judges.pairwise import Verdict
from plumbline.evaluation.judges.rating import ACCURACY, REASONING
from plumbline.evaluation.judges.styles.style import Answers, Case, Grading, Style, without_headings

_HEADINGS = (
    "Task Description", "The instruction to evaluate", "Instruction", "Response to evaluate", "Response [AB]", "Reference Answer",
    "Score Rubrics?", "Feedback",
)  # fmt: skip
_WHO = "You are a fair judge. Your feedback is clear and objective and follows the given criteria."
_LEVELS = (
    "fails at it altogether",
    "has serious faults",
    "is fair, with faults that matter",
    "is good, with small faults",
    "could not be better",
)
_RESULT = re.compile(r"\[RESULT\]", re.IGNORECASE)
_GRADE = re.compile(r"[\s:*_(\[]*(?:score[\s:]*)?([1-5])(?:\s*/\s*5)?[\s*_)\].]*", re.IGNORECASE)
_CHOICE = re.compile(r"[\s:*_(\[\"“]*(?:response[\s:]*)?([AB])[\s*_)\].\"”]*", re.IGNORECASE)


def _compare(case: Case, first: Answers, second: Answers) -> list[Message]:
    task = (
        "An instruction, two responses to it (A and B){reference} and an evaluation criterion are given.\n"
        "1. Write feedback that compares the two responses by the criterion and nothing else: what they have in common, where they "
        "differ. Neither length nor coming first counts.{turns}\n"
        "2. After the feedback, name the better response: A or B.\n"
        '3. The output looks like this: "Feedback: (your feedback) [RESULT] (A or B)"\n'
        "4. Write nothing before, between or after these."
    )
    return _prompt(
        task,
        case,
        [("Instruction", case.request), ("Response A", case.told(first)), ("Response B", case.told(second))],
        "Reference Answer",
        f"###Score Rubric:\n[{case.rubric or ACCURACY}]",
    )


def _grade(case: Case, answers: Answers) -> list[Message]:
    task = (
        "An instruction, a response to it{reference} and a score rubric are given.\n"
        "1. Write detailed feedback on the quality of the response by the rubric and nothing else.{turns}\n"
        "2. After the feedback, write a score: a whole number from 1 to 5, as the rubric defines it.\n"
        '3. The output looks like this: "Feedback: (your feedback) [RESULT] (a whole number from 1 to 5)"\n'
        "4. Write nothing before, between or after these."
    )
    levels = [f"Score {score}: The response {level}." for score, level in enumerate(_LEVELS, 1)]
    rubric = "\n".join((f"###Score Rubrics:\n[{case.rubric or ACCURACY}]", *levels))
    return _prompt(
        task,
        case,
        [("The instruction to evaluate", case.request), ("Response to evaluate", case.told(answers))],
        "Reference Answer (Score 5)",
        rubric,
    )


def _prompt(task: str, case: Case, parts: list[tuple[str, str]], reference: str, rubric: str) -> list[Message]:
    if case.reference is not None:
        parts = [*parts, (reference, case.reference)]
    head = task.format(
        reference=", a reference answer" if case.references else "",
        turns=" Responses are conversations; the last turn is what counts." if case.turns else "",
    )
    shown = [f"###{heading}:\n{without_headings(text, _HEADINGS)}" for heading, text in parts]
    text = "\n\n".join((_WHO, f"###Task Description:\n{head}", *shown, rubric, "###Feedback: "))
    return [{"role": "user", "content": text}]  # one turn: the templates of these models have no system turn


def _read_choice(reply: str) -> Verdict | None:
    found = _CHOICE.fullmatch(_result(reply))
    return None if found is None else "1" if found[1].upper() == "A" else "2"


def _read_grade(reply: str) -> float | None:
    found = _GRADE.fullmatch(_result(reply))
    return None if found is None else float(found[1])


def _result(reply: str) -> str:
    """What follows the last `[RESULT]`, which closes the reply; what was quoted from an answer stands before it."""
    parts = _RESULT.split(REASONING.sub("", reply))
    return parts[-1] if len(parts) > 1 else ""


STYLE = Style(_compare, _read_choice, opens=False, grading=Grading(_grade, _read_grade, (1.0, 5.0)))
