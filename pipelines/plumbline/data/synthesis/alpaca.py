"""Alpaca's variant of Self-Instruct (Taori et al. 2023): whole tasks in one call, three demonstrations, cheaper by far."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.data.normalise import fold
from plumbline.data.row import Reject, Row
from plumbline.data.synthesis.book import Book
from plumbline.data.synthesis.program import Program, Sampling, ask, random_of, seed_of, text_of
from plumbline.data.synthesis.screening import Screen
from plumbline.data.synthesis.seeds import instruction_of, name_of
from plumbline.data.synthesis.self_instruct import BARREN_ROUNDS, task_row

SHOWN, TASKS = 3, 20  # demonstrations of a call, and tasks with them (Alpaca's)

PROPOSE = """\
Write a list of {tasks} varied tasks for a language model, each with its input and the right output. The first {shown} are given.
- No two tasks share their verb or their subject; mix questions with requests, and open writing with short exact answers.
- A task must be doable with text alone: nothing to see, hear, open or look up.
- An instruction is one or two sentences in the language of the given ones.
- An input is realistic and specific, at most 100 words; where the instruction is complete without one, write <noinput>.
- An output answers the instruction for that input, in at most 100 words.
Keep exactly this form, with ### between tasks, and go on with number {first}.

{demonstrations}
###
"""

_FIELD = re.compile(r"^[*\s]*(?:\d+[.)]\s*)?[*]*(instruction|input|output)[*]*[ \t]*:[*]*", re.MULTILINE | re.IGNORECASE)
_NO_INPUT = re.compile(r"\W*(no\s*input|none|n/a)?\W*", re.IGNORECASE)


@dataclass(frozen=True)
class Seed:
    """A whole task that calls are shown."""

    instruction: str
    given: str
    output: str
    row: str


def alpaca(spec: SynthesizeSpec, rows: Sequence[Row], book: Book) -> Program:
    """Propose whole tasks, screen their instructions."""
    method = spec.alpaca
    assert method is not None
    seeds = _seeds(rows)
    screen = Screen((seed.instruction for seed in seeds), method.max_similarity)
    number = barren = 0
    while book.left > 0 and barren < BARREN_ROUNDS:
        draws = random_of(spec.seed, "round", number)
        calls = min(method.calls_per_round, -(-book.left // (TASKS - SHOWN)))
        shown = [draws.sample(seeds, min(SHOWN, len(seeds))) for _ in range(calls)]
        replies = yield [
            ask(_proposal(some), Sampling(method.temperature, method.max_tokens, seed_of(spec.seed, "propose", number, i)))
            for i, some in enumerate(shown)
        ]
        before = book.rows
        for some, reply in zip(shown, replies, strict=True):
            parents = tuple(seed.row for seed in some)
            with book.dropping(reply.text):
                for task in tasks(text_of(reply, whole=False), cut=reply.finish_reason == "length"):
                    with book.dropping(" / ".join(task)):
                        instruction, given, output = _whole(task)
                        screen.check(instruction)
                        book.keep(task_row(instruction, given, output, parents, "alpaca"))
        number += 1
        barren = barren + 1 if book.rows == before else 0


def tasks(text: str, cut: bool) -> list[tuple[str, str, str]]:
    """(instruction, input, output) of each task; empty strings where a part is missing.

    Raises:
        Reject: there is no task in the text.
    """
    parts = _FIELD.split(text)
    found: list[dict[str, str]] = []
    for name, value in zip((name.lower() for name in parts[1::2]), parts[2::2], strict=True):
        if name == "instruction" or not found:
            found.append({})
        found[-1].setdefault(name, value.strip().strip("#").strip())
    if not found:
        raise Reject("no task in the form asked for")
    if cut:
        found[-1].pop("output", None)
    return [(one.get("instruction", ""), one.get("input", ""), one.get("output", "")) for one in found]


def _whole(task: tuple[str, str, str]) -> tuple[str, str, str]:
    instruction, given, output = task
    if not instruction or not output:
        raise Reject("a part of the task is missing")
    given = "" if _NO_INPUT.fullmatch(given) else given
    if fold(given) == fold(output):
        raise Reject("output repeats the input")
    return " ".join(instruction.split()), given, output


def _seeds(rows: Sequence[Row]) -> list[Seed]:
    found: dict[str, Seed] = {}
    for row in rows:
        instruction, given = instruction_of(row)
        if instruction and row.answers:
            found.setdefault(fold(instruction), Seed(instruction, given, row.answers[0], name_of(row)))
    return list(found.values())


def _proposal(shown: list[Seed]) -> str:
    given = "\n###\n".join(
        f"{i}. Instruction: {seed.instruction}\n{i}. Input:\n{seed.given or '<noinput>'}\n{i}. Output:\n{seed.output}"
        for i, seed in enumerate(shown, 1)
    )
    return PROPOSE.format(tasks=TASKS, shown=len(shown), first=len(shown) + 1, demonstrations=given)
