"""`superNaturalInstructions`: tasks that are described in words (Wang et al. 2022, arXiv 2204.07705), ROUGE-L against the best reference."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks.benchmark import Item, Score, select, user
from plumbline.evaluation.benchmarks.files import Row, json_documents
from plumbline.evaluation.metrics.rouge import rouge_l
from plumbline.evaluation.shown import shown

EXPECTED = (
    'task files of Super-NaturalInstructions: {"Definition": "…", "Positive Examples": [{"input": "…", "output": "…"}], '
    '"Instances": [{"input": "…", "output": ["…"]}]}'
)
SHOTS = 2
"""Examples shown: the definition and two positive ones are what the authors evaluate with."""


def load(task: TaskSpec) -> list[Item]:
    """One item an instance: the definition, the first two positive examples, the input. Its task is group and cluster.

    The reference holds the accepted outputs in JSON, and whether the task is a classification: it has two different outputs, or a fifth as
    many as instances, or fewer.

    Raises:
        InvalidInput: a file is no task, or an instance has no input or no output.
    """
    assert task.uri is not None, "EvaluateSpec.problems asks for it"
    items = []
    for row in json_documents(task.uri, EXPECTED):
        name = PurePosixPath(row.file).name.split(".")[0]
        head = _head(row)
        instances = _list(row, "Instances")
        read = [_instance(row, i, instance) for i, instance in enumerate(instances)]
        if not read:
            raise row.refuse(EXPECTED)
        kinds = len({outputs for _, outputs in read})
        classification = kinds <= max(2, len(read) // 5) and 2 * kinds <= len(read)
        groups = {"task": name} | _category(row.value)
        for i, (text, outputs) in enumerate(read):
            reference = json.dumps({"outputs": outputs, "classification": classification}, ensure_ascii=False)
            prompt = "\n\n".join([*head, f"Now complete the following example.\nInput: {text}\nOutput:"])
            own = f"{row.id.rpartition(':')[0]}:{i + 1}"
            items.append(Item(own, user(prompt), reference, (text,), references=tuple(outputs), groups=groups, cluster=name))
    return select(items, task)


def score(reply: str, item: Item) -> Score:
    """ROUGE-L F against the nearest reference. `exactMatch`, of classifications only: equal up to case, punctuation and white space.

    An empty reply is unparseable.
    """
    right = json.loads(item.reference)
    value = max(rouge_l(reply, output) for output in right["outputs"])
    exact = float(any(_normalised(reply) == _normalised(output) for output in right["outputs"]))
    return Score(value, reply.strip() or None, {"exactMatch": exact} if right["classification"] else {})


def _head(row: Row) -> list[str]:
    """Definition and examples."""
    definition = row.value.get("Definition")
    lines = [definition] if isinstance(definition, str) else definition
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise InvalidInput(f"{row.file}: Definition is {shown(definition)}; expected {EXPECTED}")
    words = " ".join(line.strip() for line in lines)
    parts = [f"Definition: {words}"] if words.strip() else []  # some tasks say in every input what is to be done
    for i, example in enumerate(_list(row, "Positive Examples")[:SHOTS]):
        given, output = (example.get(name) for name in ("input", "output")) if isinstance(example, dict) else (None, None)
        if not isinstance(given, str) or not isinstance(output, str | list):
            raise InvalidInput(f"{row.file}: Positive Examples[{i}] is {shown(example)}; expected {EXPECTED}")
        first = output if isinstance(output, str) else output[0] if output else ""
        parts.append(f"Example {i + 1}\nInput: {given}\nOutput: {first}")
    return parts


def _instance(row: Row, number: int, instance: Any) -> tuple[str, tuple[str, ...]]:
    given, output = (instance.get(name) for name in ("input", "output")) if isinstance(instance, dict) else (None, None)
    outputs = [output] if isinstance(output, str) else output
    if (
        not isinstance(given, str)
        or not given.strip()
        or not isinstance(outputs, list)
        or not outputs
        or not all(isinstance(one, str) for one in outputs)
    ):
        raise InvalidInput(f"{row.file}: Instances[{number}] is {shown(instance)}; expected {EXPECTED}")
    return given, tuple(outputs)


def _list(row: Row, name: str) -> Sequence[Any]:
    value = row.value.get(name, [] if name != "Instances" else None)
    if not isinstance(value, list):
        raise InvalidInput(f"{row.file}: {name} is {shown(value)}; expected {EXPECTED}")
    return value


def _category(value: Mapping[str, Any]) -> dict[str, str]:
    """The task's first category, such as Question Answering."""
    found = value.get("Categories")
    first = found[0] if isinstance(found, list) and found else found
    return {"category": first.strip()} if isinstance(first, str) and first.strip() else {}


def _normalised(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]|_", "", text.casefold()).split())
