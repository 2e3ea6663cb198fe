"""`humaneval`: Python functions from their docstrings, run against tests (Chen et al. 2021, arXiv 2107.03374): pass@k without bias."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks.benchmark import Item, Score, select, user
from plumbline.evaluation.benchmarks.files import json_rows
from plumbline.evaluation.scoring.humaneval import SECONDS, Problem, pass_at_k, program, run_programs
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
    return score_samples([reply], item)


def score_samples(replies: Sequence[str], item: Item, ks: Sequence[int] = (1,)) -> Score:
    """pass@1 of several programs for one problem, with `pass@k` of the other k as variants. What is extracted is the first that passes, else the first.

    The mean over problems of 1 − C(n − c, k) / C(n, k) has no bias. Programs run side by side, one a core, equal ones once.

    Args:
        replies: n, drawn independently.
        item: the problem.
        ks: none above n.

    Raises:
        InvalidInput: this host cannot isolate programs.
    """
    require_isolation()
    problem = Problem(**json.loads(item.reference))
    programs = [(program(problem, reply), problem) for reply in replies if reply.strip()]
    failures = run_programs(programs, SECONDS)
    passed = [source for source, _ in programs if not failures[source, problem]]
    rates = {k: pass_at_k(len(replies), len(passed), k) for k in ks}
    extracted = next(iter([*passed, *(source for source, _ in programs)]), None)
    return Score(len(passed) / len(replies), extracted, {f"pass@{k}": rate for k, rate in rates.items() if k > 1})
