"""`gsm8k`: grade-school maths (Cobbe et al. 2021, arXiv 2110.14168), the final number compared."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks.benchmark import Item, Score, select, user
from plumbline.evaluation.benchmarks.files import Row, json_rows

EXPECTED = 'one JSON object a line: {"question": "…", "answer": "… #### NUMBER"}'
SHOTS = 5  # what `TaskSpec.shots` promises where it is unset
INSTRUCTION = "Solve the problem step by step. End with the final number after ####."

# A minus after a digit, a letter or a closing bracket is subtraction.
_NUMBER = r"(?:(?<![\w)])[-−])?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_QUESTION = "Question:"
_ANY = re.compile(_NUMBER)
_MARKED = re.compile(rf"####\s*\$?({_NUMBER})")


def load(task: TaskSpec) -> list[Item]:
    """Questions as single user turns; the reference is the number after `####`.

    Without examples the turn ends with an instruction. With them it is `Question: … Answer: …` of each, then the question, as in
    lm-evaluation-harness.

    Raises:
        InvalidInput: a row has not the two fields, its answer has no number after `####`, or there are too few examples.
    """
    assert task.uri is not None, "EvaluateSpec.problems asks for it"
    examples = None if task.examples is None else [(question, answer) for _, question, answer, _ in _read(task.examples)]
    items = []
    for row, question, _, reference in _read(task.uri):
        text = f"{question}\n\n{INSTRUCTION}" if examples is None else _few_shot(task, examples, row, question)
        items.append(Item(row.id, user(text), reference, (question,), stop=() if examples is None else (_QUESTION,)))
    return select(items, task)


def _read(uri: str) -> Iterator[tuple[Row, str, str, str]]:
    """Row, question, answer and its number."""
    for row in json_rows(uri, EXPECTED):
        question, answer = row.value.get("question"), row.value.get("answer")
        if not isinstance(question, str) or not isinstance(answer, str):
            raise row.refuse(EXPECTED)
        reference = strict_number(answer)
        if reference is None:
            raise row.refuse(EXPECTED)
        yield row, question, answer, reference


def _few_shot(task: TaskSpec, examples: list[tuple[str, str]], row: Row, question: str) -> str:
    wanted = task.shots or SHOTS
    fit = [one for one in examples if one[0] != question][:wanted]
    if len(fit) < wanted:
        raise InvalidInput(
            f"task '{task.name}': {task.examples} holds {len(fit)} examples other than {row.file}:{row.line}, and {wanted} are shown; give more "
            f"of them, or shots: {len(fit) or 1}"
        )
    return "\n\n".join([*(f"{_QUESTION} {q}\nAnswer: {a}" for q, a in fit), f"{_QUESTION} {question}\nAnswer:"])


def score(reply: str, item: Item) -> Score:
    """Flexible extraction (the last number) is the value; `strict` wants the number after `####`.

    Both names and rules are those of EleutherAI's lm-evaluation-harness, but numbers are compared as numbers
    (18.00 is 18). After examples, a reply that goes on with a next question counts up to there.
    """
    if item.prompt[-1]["content"].startswith(_QUESTION):
        reply = reply.split(_QUESTION)[0]
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
