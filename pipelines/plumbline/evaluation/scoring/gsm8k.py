"""GSM8K from stored outputs: the final number, strict and flexible (rules: `evaluation.benchmarks.gsm8k`)."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from plumbline.evaluation.benchmarks.gsm8k import last_number, strict_number
from plumbline.evaluation.scoring.records import Record, read_records
from plumbline.evaluation.scoring.scored import Sample, Scored, once, refuse_unmatched, reply, share

OUTPUTS = (
    "records with question, an output (response, output, completion, …) and answer, or answers by --problems; or OpenAI's example solutions: "
    "question, ground_truth and {is_correct, solution} per model"
)
PROBLEMS = "records with question and answer (… #### NUMBER)"
_REFERENCE = ("ground_truth", "answer", "reference", "target")
_LAST_LINE = re.compile(r"^\s*A:(.*)\Z", re.MULTILINE)
"""How OpenAI's example solutions and their ground truths end instead of `#### NUMBER`."""


def score_gsm8k(outputs: str, problems: str | None = None) -> list[Scored]:
    """Strict (the number after the marker) and flexible (the last number) of each model in the file.

    Args:
        outputs: file of what models said.
        problems: file of the questions with their answers, which then count instead of those in the outputs' file.

    Raises:
        InvalidInput: a file cannot be read, holds no outputs, or a question twice or without an answer.
    """
    records = read_records(outputs, OUTPUTS)
    answers = None if problems is None else _answers(problems)
    questions: dict[Any, Record] = {}
    ids: dict[Any, Record] = {}
    models: dict[str, list[Sample]] = {}
    apart = 0
    for record in records:
        doc = record.value.get("doc")
        asked = Record(record.file, record.place, doc) if isinstance(doc, dict) else record
        question = asked.value.get("question", asked.value.get("prompt"))
        if isinstance(question, str):
            once(questions, question, record, "the question")
        if "id" in record.value:
            once(ids, str(record.value["id"]), record, "id")
        if answers is None:
            reference = _reference(asked)
        elif not isinstance(question, str):
            raise record.refuse(f"has no question to find in {problems}; expected {OUTPUTS}")
        elif question in answers:
            reference = answers[question]
        else:
            apart += 1
            continue
        stored = {name: one for name, one in record.value.items() if isinstance(one, dict) and "solution" in one}
        item = str(record.value.get("id", record.value.get("doc_id", record.place)))
        for model, solution in stored.items():
            inner = Record(record.file, f"{record.place}, {model}", solution)
            models.setdefault(model, []).append(
                _sample(item, inner.text("solution"), reference, True, solution.get("is_correct"))
            )
        if not stored:
            models.setdefault("", []).append(_sample(item, reply(record), reference, False, record.value.get("is_correct")))
    if not models:
        raise refuse_unmatched(outputs, problems, "question")
    unanswered = 0 if answers is None else len(set(answers) - set(questions))
    return [_scored(model, samples, apart, unanswered) for model, samples in models.items()]


def _answers(problems: str) -> dict[str, Decimal]:
    seen: dict[Any, Record] = {}
    for record in read_records(problems, PROBLEMS):
        once(seen, record.text("question"), record, "the question")
    return {question: _reference(record) for question, record in seen.items()}


def _reference(record: Record) -> Decimal:
    """The right number: after the marker, or a field that is nothing but a number."""
    name = next((name for name in _REFERENCE if name in record.value), None)
    value = record.value.get(name or "")
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    found = None
    if isinstance(text, str):
        found = strict_number(text) or _marked(text) or (strict_number(f"#### {text}") if "\n" not in text.strip() else None)
    if found is None:
        raise record.refuse(f"has no answer with a number in {' or '.join(_REFERENCE)}; expected {PROBLEMS}")
    return Decimal(found)


def _marked(text: str) -> str | None:
    line = _LAST_LINE.search(text.rstrip())
    return strict_number(f"#### {line.group(1).strip()}") if line else None


def _sample(item: str, text: str, reference: Decimal, marked: bool, stored: Any) -> Sample:
    flexible = last_number(text)
    strict = _marked(text) if marked else strict_number(text)
    right = flexible is not None and Decimal(flexible) == reference
    reason = "" if right else "no number in it" if flexible is None else f"{flexible} instead of {reference}"
    exact = float(strict is not None and Decimal(strict) == reference)
    return Sample(
        item,
        float(right),
        flexible,
        reason,
        {"strict": exact, "strictExtracted": strict},
        stored if isinstance(stored, bool) else None,
    )


def _scored(model: str, samples: list[Sample], apart: int, unanswered: int) -> Scored:
    counts = {
        "no number": sum(one.extracted is None for one in samples),
        "no number after the marker": sum(one.variants["strictExtracted"] is None for one in samples),
    }
    flagged = [one for one in samples if isinstance(one.stored, bool)]
    if flagged:
        counts["stored flags"] = len(flagged)
        counts["stored flags that strict agrees with"] = sum(one.variants["strict"] == one.stored for one in flagged)
        counts["stored flags that flexible agrees with"] = sum(one.value == one.stored for one in flagged)
    if apart:
        counts["outputs without a problem, not scored"] = apart
    if unanswered:
        counts["problems without an output, not scored"] = unanswered
    metrics = {
        "flexible": share([one.value for one in samples]),
        "strict": share([one.variants["strict"] for one in samples]),
    }
    return Scored(model, metrics, counts, {}, samples)
