"""`ifeval`: instructions whose following can be checked by a program (Zhou et al. 2023, arXiv 2311.07911)."""

from __future__ import annotations

import json

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.benchmarks.benchmark import Item, Score, select, user
from plumbline.evaluation.benchmarks.files import json_rows
from plumbline.evaluation.scoring.ifeval import instructions_of
from plumbline.evaluation.scoring.instructions import follows
from plumbline.evaluation.scoring.records import Record

EXPECTED = 'one JSON object a line: {"prompt": "…", "instruction_id_list": ["…"], "kwargs": [{}]}'


def load(task: TaskSpec) -> list[Item]:
    """Each prompt is one user turn; the reference holds its instructions as JSON: [[kind, arguments], …].

    Raises:
        InvalidInput: a row has not the three fields, or an instruction is unknown or lacks an argument.
    """
    assert task.uri is not None, "EvaluateSpec.problems asks for it"
    items = []
    for row in json_rows(task.uri, EXPECTED):
        prompt = row.value.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise row.refuse(EXPECTED)
        instructions = instructions_of(Record(row.file, f"line {row.line}", row.value))
        reference = json.dumps([[one.kind, one.arguments] for one in instructions])
        items.append(Item(row.id, user(prompt), reference, (prompt,)))
    return select(items, task)


def score(reply: str, item: Item) -> Score:
    """1 if all instructions of the prompt are followed; `loose` is the same by the loose rule. An empty reply is unparseable."""
    instructions = json.loads(item.reference)
    strict, loose = (
        float(all(follows(kind, arguments, reply, loose=rule) for kind, arguments in instructions)) for rule in (False, True)
    )
    return Score(strict, reply if reply.strip() else None, {"loose": loose})
