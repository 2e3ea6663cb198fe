"""`humaneval`: Python functions from their docstrings, run against tests (Chen et al. 2021, arXiv 2107.03374). One sample an item: pass@1."""

from __future__ import annotations

import json
from dataclasses import asdict

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks.benchmark import Item, Score, select, user
from plumbline.evaluation.benchmarks.files import json_rows
from plumbline.evaluation.scoring.humaneval import SECONDS, Problem, failure, program
from plumbline.sandbox import supported

EXPECTED = (
    'one JSON object a line: {"task_id": "…", "prompt": "…", "entry_point": "…", "canonical_solution": "…", "test": "…"}'
)
INSTRUCTION = (
    "Complete this Python function. Reply with the whole function, its imports included, in one fenced block of code."
)


def load(task: TaskSpec) -> list[Item]:
    """Each problem is one user turn; the reference holds prompt, entry point and test as JSON.

    Raises:
        InvalidInput: a row has not the fields.
    """
    assert task.uri is not None, "EvaluateSpec.problems asks for it"
    items = []
    for row in json_rows(task.uri, EXPECTED):
        fields = [row.value.get(name) for name in ("prompt", "entry_point", "test", "canonical_solution")]
        if not all(isinstance(field, str) and field.strip() for field in fields):
            raise row.refuse(EXPECTED)
        prompt, entry_point, test, solution = fields
        reference = json.dumps(asdict(Problem(prompt, entry_point, test)))
        items.append(
            Item(
                row.id, user(f"{INSTRUCTION}\n\n```python\n{prompt.rstrip()}\n```"), reference, (prompt,), prompt + solution
            )
        )
    return select(items, task)


def require_isolation() -> None:
    """Refuse a host that cannot isolate programs, before anything is asked.

    Raises:
        InvalidInput: it cannot.
    """
    reason = supported()
    if reason is not None:
        raise InvalidInput(
            f"benchmark humaneval runs programs of a model, and this host cannot isolate them ({reason}); evaluate on a Linux kernel "
            "with Landlock and seccomp, or leave the task out"
        )


def score(reply: str, item: Item) -> Score:
    """1 if the function passes its tests in the sandbox. An empty reply is unparseable.

    Raises:
        InvalidInput: this host cannot isolate programs.
    """
    require_isolation()
    if not reply.strip():
        return Score(0.0, None)
    problem = Problem(**json.loads(item.reference))
    source = program(problem, reply)
    return Score(float(not failure(source, problem, SECONDS)), source)
