"""What models answered, to be shown to people: the samples of a report, or plain files of outputs."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from plumbline.errors import InvalidInput
from plumbline.evaluation.judges.rating import request_of
from plumbline.evaluation.scoring.records import Record, read_records
from plumbline.evaluation.shown import printable, shown
from plumbline.external import expand

SAMPLES = "samples.jsonl"
"""A report's replies; `report.SAMPLES` would bring the charts along."""
EXPECTED = (
    "samples of a report (task, item, model, prompt, reply), or outputs: a request (`instruction` with `input`, `prompt`, `question`) and an "
    "answer (`output`, `response`, `reply`, `completion`, `prediction`, `answer`, `text`, `choices`)"
)
REQUESTS = ("instruction", "prompt", "question", "request", "turns")
REPLIES = ("reply", "output", "response", "completion", "prediction", "answer", "text", "choices")
MODELS = ("model", "generator", "model_id")
IDS = ("item", "question_id", "uid", "id", "idx")
PLAIN = "outputs"
"""The task of answers whose file names none."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Answer:
    """One answer of one model.

    Attributes:
        task, item: what it answers; answers to the same have both in common.
        request: what was asked, as people are shown it.
        text: the answer, as people are shown it.
        where: file and line, for errors.
    """

    task: str
    item: str
    model: str
    request: str
    text: str
    where: str


def read_answers(uris: Sequence[str], tasks: Sequence[str] = (), questions: str | None = None) -> list[Answer]:
    """All answers of the files, in order.

    A folder with samples.jsonl is a report; of any other folder all files are read. A model that no record names is called like its file.

    Args:
        uris: files, folders or globs.
        tasks: keep only these; all without any.
        questions: file of questions (`question_id` with `turns` or another request), for answers that do not hold their own, as FastChat's.

    Raises:
        InvalidInput: FILE, line: a record is no answer, its question is not known, a model answers an item twice, one item has two requests,
            or a task is not there.
    """
    asked = {} if questions is None else _questions(questions)
    found: dict[tuple[str, str, str], Answer] = {}
    first: dict[tuple[str, str], Answer] = {}
    times: Counter[tuple[str, str, str, str]] = Counter()
    there: dict[str, None] = {}
    for record in _records(uris):
        task = _name(record.value, ("task",)) or PLAIN
        there[task] = None
        if tasks and task not in tasks:
            continue
        answer = _answer(record, task, asked, questions)
        if _name(record.value, IDS) is None:  # the same request twice in one file is two items
            times[record.file, task, answer.model, answer.item] += 1
            again = times[record.file, task, answer.model, answer.item]
            answer = replace(answer, item=f"{answer.item}-{again}") if again > 1 else answer
        key = (task, answer.item, answer.model)
        if key in found:
            raise record.refuse(
                f"a second answer of {answer.model} to {answer.item} of {task}; the first stands at {found[key].where}; keep one"
            )
        other = first.setdefault(key[:2], answer)
        if other.request != answer.request:
            raise record.refuse(
                f"{answer.item} of {task} asks something else than at {other.where}; the files are of different questions"
            )
        found[key] = answer
    for task in tasks:
        if task not in there:
            raise InvalidInput(f"--task '{task}' has no answers; there are those of {', '.join(there)}")
    for task in there:
        texts = [answer.text for answer in found.values() if answer.task == task]
        if texts and all(map(_holds_likelihoods, texts)):
            others = [name for name in there if name != task]
            hint = f"; choose with --task among {', '.join(others)}" if others else ""
            raise InvalidInput(f"the replies of task '{task}' are likelihoods of its choices, which nobody can read{hint}")
    return list(found.values())


def _records(uris: Sequence[str]) -> list[Record]:
    files: list[str] = []
    for uri in uris:
        of = expand(uri)
        samples = [file for file in of if PurePosixPath(file).name == SAMPLES]
        files += samples or of
    for file in files:
        if files.count(file) > 1:
            raise InvalidInput(f"{file} is given {files.count(file)} times; give it once")
    return [record for file in files for record in read_records(file, EXPECTED)]


def _answer(record: Record, task: str, asked: Mapping[str, str], questions: str | None) -> Answer:
    value = record.value
    name = _name(value, IDS)
    request = _request(value)
    if request is None and name is not None:
        request = asked.get(name)
        if request is None and questions is not None:
            raise record.refuse(f"question {name} is not in {questions}; give the questions of these answers")
    if request is None:
        hint = "; --questions FILE gives the questions of answers that name them by number" if name and not asked else ""
        raise record.refuse(f"has no request; its fields: {', '.join(value) or 'none'}; expected {EXPECTED}{hint}")
    return Answer(
        task=task,
        item=name or hashlib.sha256(request.encode()).hexdigest()[:12],
        model=_name(value, MODELS) or re.sub(r"(\.(jsonl?|csv|gz|bz2|xz))+$", "", PurePosixPath(record.file).name),
        request=request,
        text=_reply(record),
        where=f"{record.file}, {record.place}",
    )


def _questions(uri: str) -> dict[str, str]:
    """Number or name → text of each question."""
    found: dict[str, str] = {}
    for record in read_records(uri, "questions: question_id and turns (or text, prompt, instruction)"):
        name = _name(record.value, IDS)
        request = _request(record.value) or _clean(record.value.get("text"))
        if name is None or request is None:
            raise record.refuse(
                f"is no question: {shown(record.value)}; expected question_id and turns (or text, prompt, instruction)"
            )
        if found.setdefault(name, request) != request:
            raise record.refuse(f"question {name} stands there twice, with different texts; keep one")
    return found


def _name(value: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        one = value.get(name)
        if isinstance(one, str | int) and not isinstance(one, bool) and str(one).strip():
            return printable(str(one)).strip()
    return None


def _request(value: Mapping[str, Any]) -> str | None:
    """A text, the turns of a user, or a chat, as people are shown it; None where there is none."""
    one = next((value[name] for name in REQUESTS if value.get(name)), None)
    if isinstance(one, list) and one:
        if all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in one):
            further = value["turns"] if isinstance(value.get("turns"), list) else []
            return _turns(
                [
                    request_of([{"role": str(turn["role"]), "content": str(turn["content"])} for turn in one]),
                    *map(str, further),
                ]
            )
        return _turns([str(turn) for turn in one])
    context = value.get("input")
    if isinstance(one, str) and isinstance(context, str) and context.strip():
        one = f"{one.strip()}\n\n{context}"
    return _clean(one)


def _reply(record: Record) -> str:
    value = record.value
    one: Any = value["replies"] if isinstance(value.get("replies"), list) else None
    if one is None:
        name = next((name for name in REPLIES if value.get(name) is not None), None)
        one = value[name] if name else None
    if isinstance(one, list) and one and isinstance(one[0], dict):  # FastChat's choices: the first is taken, as there
        one = one[0].get("turns")
    if isinstance(one, list) and one and all(isinstance(turn, str) for turn in one):
        return _turns(one)
    if not isinstance(one, str):
        raise record.refuse(f"has no answer; its fields: {', '.join(value) or 'none'}; expected {EXPECTED}")
    return _clean(one) or ""


def _holds_likelihoods(text: str) -> bool:
    """Whether a reply is what a multiple-choice benchmark stores: a number for each choice."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(values, list)
        and len(values) > 1
        and all(isinstance(value, int | float) and value <= 0 for value in values)
    )


def _turns(texts: Sequence[str]) -> str:
    """Several turns in one text, a heading above each."""
    if len(texts) == 1:
        return _clean(texts[0]) or ""
    return "\n\n".join(f"[turn {number}]\n{_clean(text) or ''}" for number, text in enumerate(texts, 1))


def _clean(text: Any) -> str | None:
    """A text as a spreadsheet and a page show it: lines end in \\n, no control characters, no halves of characters, no space around it."""
    if not isinstance(text, str):
        return None
    return _CONTROLS.sub("", printable(text).replace("\r\n", "\n").replace("\r", "\n")).strip() or None
