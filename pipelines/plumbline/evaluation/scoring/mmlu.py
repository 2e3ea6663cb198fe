"""MMLU from stored outputs: the letter with the highest log-likelihood, or the letter in a reply; micro and macro."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from plumbline.evaluation.benchmarks.benchmark import Item
from plumbline.evaluation.benchmarks.files import csv_rows
from plumbline.evaluation.benchmarks.mmlu import EXPECTED, LETTERS, subject
from plumbline.evaluation.benchmarks.mmlu import score as score_reply
from plumbline.evaluation.scoring.records import Record, read_records
from plumbline.evaluation.scoring.scored import REPLY, Sample, Scored, once, refuse_unmatched, reply, share
from plumbline.evaluation.shown import shown
from plumbline.evaluation.statistics import Estimate

OUTPUTS = (
    "records with subject, answer (a letter or 0 to 3) and loglikelihoods (four, in the order of the letters) or an output (response, output, "
    "…); with --problems question instead of answer; or the samples of lm-evaluation-harness"
)
_LIKELIHOODS = ("loglikelihoods", "log_likelihoods", "logprobs", "log_probs")


def score_mmlu(outputs: str, problems: str | None = None) -> list[Scored]:
    """Micro (mean over items) and macro (mean over subjects).

    Of equal highest log-likelihoods none is a choice: a model that gives all letters the same would otherwise be credited for A.

    Args:
        outputs: file or folder of what the model said.
        problems: file, folder or glob of the benchmark's CSV files, where the outputs do not hold the right letters.

    Raises:
        InvalidInput: a file cannot be read, holds no outputs, an id twice, or no right letter.
    """
    records = read_records(outputs, OUTPUTS)
    answers = None if problems is None else _answers(problems)
    seen: dict[Any, Record] = {}
    samples: dict[str, list[Sample]] = {}
    apart = 0
    for record in records:
        doc = record.value.get("doc")
        asked = Record(record.file, record.place, doc) if isinstance(doc, dict) else record
        topic = _subject(record, asked)
        if "id" in record.value:
            once(seen, (topic, str(record.value["id"])), record, "id")
        if answers is None:
            right = _letter(asked, "answer" if "answer" in asked.value else "target")
        else:
            question = asked.text("question").strip()
            choices = asked.value.get("choices")
            known = answers.get((topic, question), {})
            found = known.get(tuple(str(one).strip() for one in choices)) if isinstance(choices, list) else None
            if found is None and len(set(known.values())) == 1:
                found = next(iter(known.values()))
            if found is None and known:
                raise record.refuse(
                    f"the question stands in {problems} with several answers; add its choices, a list of four texts"
                )
            if found is None:
                apart += 1
                continue
            right = found
        item = str(record.value.get("id", record.value.get("doc_id", f"{topic}, {record.place}")))
        samples.setdefault(topic, []).append(_sample(item, record, right))
    if not samples:
        raise refuse_unmatched(outputs, problems, "subject and question")
    everything = [one for topic in samples.values() for one in topic]
    groups = {topic: share([one.value for one in some]) for topic, some in sorted(samples.items())}
    counts = {"subjects": len(groups), "no choice": sum(one.extracted is None for one in everything)}
    if apart:
        counts["outputs without a problem, not scored"] = apart
    if answers is not None:
        asked_for = sum(len(choices) for choices in answers.values())
        if asked_for > len(everything):
            counts["problems without an output, not scored"] = asked_for - len(everything)
    metrics = {"micro": share([one.value for one in everything]), "macro": _macro(groups, samples)}
    return [Scored("", metrics, counts, groups, everything)]


def _macro(groups: dict[str, Estimate], samples: dict[str, list[Sample]]) -> Estimate:
    """Mean of the subjects' scores. The subjects are fixed, their items drawn: variances of the means add (Wilson's would not)."""
    value = sum(one.value for one in groups.values()) / len(groups)
    n = sum(len(some) for some in samples.values())
    # Half an observation right and half wrong in each subject: a subject that is all right is not certain.
    variances = (
        (p := (sum(s.value for s in some) + 0.5) / (len(some) + 1)) * (1 - p) / len(some) for some in samples.values()
    )
    reach = 1.959964 * math.sqrt(sum(variances)) / len(groups)
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach), n)


def _answers(problems: str) -> dict[tuple[str, str], dict[tuple[str, ...], str]]:
    """Right letters by subject and question, then by choices: some questions occur twice."""
    found: dict[tuple[str, str], dict[tuple[str, ...], str]] = {}
    for row in csv_rows(problems, EXPECTED):
        if len(row.value) != 6 or row.value[5].strip() not in tuple(LETTERS):
            raise row.refuse(EXPECTED)
        question, *choices, letter = (field.strip() for field in row.value)
        found.setdefault((subject(row.file), question), {})[tuple(choices)] = letter
    return found


def _subject(record: Record, asked: Record) -> str:
    for one in (asked, record):
        for name in ("subject", "category", "task"):
            value = one.value.get(name)
            if isinstance(value, str) and value.strip():
                return subject(value.strip().removeprefix("mmlu_"))
    raise record.refuse(f"has no subject; expected {OUTPUTS}")


def _letter(record: Record, name: str) -> str:
    value = record.value.get(name)
    if isinstance(value, str) and value.strip().upper() in tuple(LETTERS):
        return value.strip().upper()
    if isinstance(value, str) and value.strip() in tuple("0123"):
        return LETTERS[int(value)]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(LETTERS):
        return LETTERS[value]
    raise record.refuse(f"field 'answer' is {shown(value)}; expected A, B, C, D or 0 to 3, or give --problems")


def _sample(item: str, record: Record, right: str) -> Sample:
    likelihoods = _likelihoods(record)
    if likelihoods is None:
        text = reply(record)
        letter = score_reply(text, Item(item, [], right)).extracted
        reason = "" if letter == right else "no letter in it" if letter is None else f"{letter} instead of {right}"
        return Sample(item, float(letter == right), letter, reason)
    values = [float(one) if isinstance(one, int | float) and not isinstance(one, bool) else math.nan for one in likelihoods]
    if len(values) != len(LETTERS) or any(math.isnan(one) for one in values):
        return Sample(item, 0.0, None, f"{shown(likelihoods)} are not the log-likelihoods of four letters")
    best = [letter for letter, one in zip(LETTERS, values, strict=True) if one == max(values)]
    if len(best) > 1:
        return Sample(item, 0.0, None, f"{' and '.join(best)} are equally likely: no choice")
    return Sample(item, float(best[0] == right), best[0], "" if best[0] == right else f"{best[0]} instead of {right}")


def _likelihoods(record: Record) -> Sequence[Any] | None:
    """The four log-likelihoods, None where the record holds a reply."""
    for name in _LIKELIHOODS:
        value = record.value.get(name)
        if isinstance(value, dict):
            return [value.get(letter, value.get(f" {letter}")) for letter in LETTERS]
        if isinstance(value, list):
            return value
    for name in (
        "filtered_resps",
        "resps",
    ):  # lm-evaluation-harness: [log-likelihood, is greedy] per letter, as text or number
        value = record.value.get(name)
        if isinstance(value, list) and len(value) == len(LETTERS):
            return [_number(one) for one in value]
    if not any(name in record.value for name in (*REPLY, "resps")):
        raise record.refuse(f"has neither log-likelihoods nor an output; expected {OUTPUTS}")
    return None


def _number(value: Any) -> float:
    while isinstance(value, list) and value:
        value = value[0]
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
