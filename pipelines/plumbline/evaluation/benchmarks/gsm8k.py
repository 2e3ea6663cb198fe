"""`gsm8k`: grade-school maths (Cobbe et al. 2021, arXiv 2110.14168), the final number compared."""

from __future__ import annotations

import re
from decimal import Decimal

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.benchmarks.benchmark import Item, Score, select, user
from plumbline.evaluation.benchmarks.files import json_rows

EXPECTED = 'one JSON object a line: {"question": "…", "answer": "… #### NUMBER"}'
INSTRUCTION = "Solve the problem step by step. End with the final number after ####."

# A minus after a digit, a letter or a closing bracket is subtraction.
_NUMBER = r"(?:(?<![\w)])[-−])?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_ANY = re.compile(_NUMBER)
_MARKED = re.compile(rf"####\s*\$?({_NUMBER})")


def load(task: TaskSpec) -> list[Item]:
    """Questions as single user turns without examples; the reference is the number after `####`.

    Raises:
        InvalidInput: a row has not the two fields, or its answer has no number after `####`.
    """
    assert task.uri is not None, "EvaluateSpec.problems asks for it"
    items = []
    for row in json_rows(task.uri, EXPECTED):
        question, answer = row.value.get("question"), row.value.get("answer")
        if not isinstance(question, str) or not isinstance(answer, str):
            raise row.refuse(EXPECTED)
        reference = strict_number(answer)
        if reference is None:
            raise row.refuse(EXPECTED)
        items.append(Item(row.id, user(f"{question}\n\n{INSTRUCTION}"), reference, (question,)))
    return select(items, task)


def score(reply: str, item: Item) -> Score:
    """Flexible extraction (the last number) is the value; `strict` wants the number after `####`.

    Both names and rules are those of EleutherAI's lm-evaluation-harness, but numbers are compared as numbers
    (18.00 is 18).
    """
    flexible, strict = last_number(reply), strict_number(reply)
    return Score(_equal(flexible, item.reference), flexible, {"strict": _equal(strict, item.reference)})


def last_number(text: str) -> str | None:
    """The last number in a text without `$`, thousands separators and a full stop after it, or None."""
    found = _ANY.findall(text)
    return _plain(found[-1]) if found else None


def strict_number(text: str) -> str | None:
    """The first number that follows `####`, or None."""
    found = _MARKED.search(text)
    return _plain(found.group(1)) if found else None


def _plain(number: str) -> str:
    return number.replace("$", "").replace(",", "").replace("−", "-")


def _equal(found: str | None, reference: str) -> float:
    return float(found is not None and Decimal(found) == Decimal(reference))
