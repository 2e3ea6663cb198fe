"""`pandalm`: the format that PandaLM-7B was trained on (Wang et al. 2023, arXiv 2306.05087).

Instruction, input and two responses under headings; the reply is 1, 2 or Tie, then a reason and the judge's own reference. There is no
place for a reference answer or a rubric in it, and no grading.
"""

from __future__ import annotations

import re

from plumbline.data.row import Message
from plumbline.evaluation.judges.pairwise import VERDICTS, Verdict
from plumbline.evaluation.judges.styles.style import Answers, Case, Style, without_headings

_HEADINGS = ("Instruction", "Input", r"Response \d", "Evaluation", "Reason", "Reference")
_VERDICT = re.compile(r"\s*(?:### Evaluation:)?\s*(1|2|tie)[^\S\n]*(?:\n|\Z)", re.IGNORECASE)


def _compare(case: Case, first: Answers, second: Answers) -> list[Message]:
    parts = {
        "Instruction": case.instruction,
        "Input": case.context,
        "Response 1": case.told(first),
        "Response 2": case.told(second),
    }
    shown = [
        f"### {heading}:\n{without_headings(text, _HEADINGS).strip()}"
        for heading, text in parts.items()
        if text or heading != "Input"
    ]
    what = "an Instruction, and an Input that it is about" if case.context else "an Instruction"
    head = f"Below are two responses to a task, which is given by {what}. Evaluate them, and write a reference answer to the task."
    return [{"role": "user", "content": "\n\n".join((head, *shown, "### Evaluation:\n"))}]


def _read(reply: str) -> Verdict | None:
    """The line that the reply opens with, if it holds a verdict and nothing else. PandaLM's own program takes all else for a tie."""
    found = _VERDICT.match(reply)
    return next((verdict for verdict in VERDICTS if found and verdict.lower() == found[1].lower()), None)


STYLE = Style(_compare, _read, opens=True, grading=None)
