"""HumanEval from stored completions: run against the problems' tests in the sandbox, unbiased pass@k (Chen et al. 2021, arXiv
2107.03374)."""

from __future__ import annotations

import math
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.evaluation.scoring.records import Record, read_records
from plumbline.evaluation.scoring.scored import Sample, Scored, once, refuse_unmatched, reply, share
from plumbline.sandbox import run_tests, supported

OUTPUTS = (
    "records with task_id and completion (the body that goes on after the prompt, or an answer with a fenced block of code)"
)
PROBLEMS = "records with task_id, prompt, entry_point and test"
KS = (1, 10, 100)
SECONDS = 3.0
"""For the tests of one sample, as in the reference implementation."""
LONGEST = 50_000
"""Characters of a program whose forms are tried: some texts take Python minutes to parse."""
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n`]*\n(.*?)(?:^[ \t]*(?:```|~~~)[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Problem:
    """One task: `prompt` ends where the completion begins; `test` defines `check(candidate)`."""

    prompt: str
    entry_point: str
    test: str


def score_humaneval(
    outputs: str,
    problems: str | None = None,
    seconds: float = SECONDS,
    allow_unsandboxed: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Scored]:
    """pass@1, 10 and 100, as far as every problem has so many samples.

    Samples run side by side, one a core, each in sandboxed processes of its own; equal ones run once. Whatever goes wrong in a sample is
    that sample's failure.

    Args:
        outputs: file of the completions.
        problems: file of the problems, where the outputs do not hold them.
        seconds: for the tests of one sample.
        allow_unsandboxed: run them where the host cannot isolate programs, too.
        progress: told (done, all) after each program.

    Raises:
        InvalidInput: a file cannot be read, no completion is of a problem, or the host cannot isolate programs.
    """
    reason = None if allow_unsandboxed else supported()
    if reason is not None:
        raise InvalidInput(
            f"this host cannot isolate programs ({reason}), and these are written by a model; use a Linux kernel with Landlock and seccomp, or "
            "say --allow-unsandboxed where the machine holds nothing of worth"
        )
    records = read_records(outputs, OUTPUTS)
    known = _problems(read_records(problems, PROBLEMS)) if problems is not None else _problems_inside(records)
    asked = [(record, task) for record in records if (task := record.text("task_id")) in known]
    if not asked:
        raise refuse_unmatched(outputs, problems, "task_id")
    programs = [(program(known[task], reply(record, "completion")), known[task]) for record, task in asked]
    failures = run_programs(programs, seconds, allow_unsandboxed, progress)

    samples: list[Sample] = []
    tasks: dict[str, list[float]] = {}
    for number, ((record, task), key) in enumerate(zip(asked, programs, strict=True)):
        failure = failures[key]
        passed = float(not failure)
        tasks.setdefault(task, []).append(passed)
        stored = record.value["passed"] if isinstance(record.value.get("passed"), bool) else None
        samples.append(Sample(f"{task}#{len(tasks[task])}", passed, programs[number][0], failure, {}, stored))
    fewest = min(map(len, tasks.values()))
    metrics = {
        f"pass@{k}": share([pass_at_k(len(results), round(sum(results)), k) for results in tasks.values()])
        for k in KS
        if k <= fewest
    }
    counts = {"problems": len(tasks), "samples": len(samples), "samples of a problem, at least": fewest}
    flagged = [one for one in samples if isinstance(one.stored, bool)]
    if flagged:
        counts["stored flags"] = len(flagged)
        counts["stored flags that agree"] = sum(one.value == one.stored for one in flagged)
    if len(asked) < len(records):
        counts["outputs without a problem, not scored"] = len(records) - len(asked)
    if len(tasks) < len(known):
        counts["problems without an output, not scored"] = len(known) - len(tasks)
    groups = {task: share(results) for task, results in tasks.items()}
    return [Scored("", metrics, counts, groups, samples)]


def pass_at_k(n: int, passed: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k): the chance that one of k of these n samples passes, drawn without putting back.

    Raises:
        ValueError: k is not within 1…n, or `passed` not within 0…n.
    """
    if not (1 <= k <= n and 0 <= passed <= n):
        raise ValueError(f"pass@{k} of {passed} passed among {n}: k must be within 1…n, and passed within 0…n")
    return 1.0 - math.comb(n - passed, k) / math.comb(n, k)


def program(problem: Problem, completion: str) -> str:
    """The answer's source text: what a completion makes of the prompt.

    A fenced block is taken out of its answer, one that defines the function before others. What defines the whole function stands
    for the prompt's own definition; a body goes on after the prompt, indented if it is not. Anything else goes on after the prompt
    as it is.
    """
    blocks: Sequence[str] = _FENCE.findall(completion)
    head = re.compile(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(problem.entry_point)}\b", re.MULTILINE)
    block = next((one for one in blocks if head.search(textwrap.dedent(one))), blocks[0] if blocks else None)
    code = completion if block is None else block
    plain = problem.prompt + code
    candidates: list[str] = []
    if head.search(textwrap.dedent(code)):
        own = head.search(problem.prompt)
        candidates.append(f"{problem.prompt[: own.start()] if own else ''}{textwrap.dedent(code)}")
    if block is not None:
        candidates += [plain, problem.prompt + textwrap.indent(textwrap.dedent(code), "    ")]
    return next((one for one in candidates if _compiles(one)), plain)


def _compiles(source: str) -> bool:
    if len(source) > LONGEST:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, "<answer>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def _problems(records: Sequence[Record]) -> dict[str, Problem]:
    seen: dict[Any, Record] = {}
    found = {}
    for record in records:
        task = record.text("task_id")
        once(seen, task, record, "task_id")
        found[task] = Problem(record.text("prompt"), record.text("entry_point"), record.text("test"))
    return found


def _problems_inside(records: Sequence[Record]) -> dict[str, Problem]:
    """Problems of a file that holds them beside the completions."""
    first = records[0]
    if not {"prompt", "entry_point", "test"} <= set(first.value):
        raise first.refuse("has no prompt, entry_point and test; give the problems' file by --problems")
    return {one.text("task_id"): Problem(one.text("prompt"), one.text("entry_point"), one.text("test")) for one in records}


def run_programs(
    programs: Sequence[tuple[str, Problem]],
    seconds: float,
    allow_unsandboxed: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[str, Problem], str]:
    """Why each program failed, empty if it passed. The work is done in the sandbox's processes, so threads are enough to wait for it."""
    different = list(dict.fromkeys(programs))
    failures: dict[tuple[str, Problem], str] = {}
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        running = {
            pool.submit(failure, source, problem, seconds, allow_unsandboxed): (source, problem)
            for source, problem in different
        }
        for done, future in enumerate(as_completed(running), 1):
            failures[running[future]] = future.result()
            if progress is not None:
                progress(done, len(different))
    finally:
        pool.shutdown(cancel_futures=True)  # whoever interrupts does not wait for the rest
    return failures


def failure(source: str, problem: Problem, seconds: float, allow_unsandboxed: bool = False) -> str:
    """Why a program does not pass a problem's tests, in words; empty if it does."""
    tests = f"{problem.test}\n\ncheck({problem.entry_point})\n"
    try:
        return run_tests(source, tests, seconds=seconds, allow_unsandboxed=allow_unsandboxed).reason
    except (PlumblineError, OSError, ValueError) as error:
        return f"could not be run: {error}"
