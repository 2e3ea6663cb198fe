"""`plumbline`: our own prompts, for any chat model."""

from __future__ import annotations

from plumbline.data.row import Message
from plumbline.evaluation.judges.pairwise import BETTER, CONVERSATION, REFERENCE, pairwise_prompt, read_verdict
from plumbline.evaluation.judges.rating import ACCURACY, BEST, rating_prompt, read_rating
from plumbline.evaluation.judges.styles.style import Answers, Case, Grading, Style


def _compare(case: Case, first: Answers, second: Answers) -> list[Message]:
    text = pairwise_prompt(
        case.request,
        case.told(first),
        case.told(second),
        reference=case.reference,
        better=BETTER if case.rubric is None else f"by {case.rubric}",
        conversations=bool(case.turns),
    )
    return [{"role": "user", "content": text}]


def _grade(case: Case, answers: Answers) -> list[Message]:
    hints = [CONVERSATION.format(what="answer")] * bool(case.turns) + [REFERENCE] * bool(case.references)
    text = rating_prompt(case.request, case.told(answers), case.rubric or ACCURACY, reference=case.reference, hints=hints)
    return [{"role": "user", "content": text}]


STYLE = Style(_compare, read_verdict, opens=True, grading=Grading(_grade, read_rating, (0.0, BEST)))
