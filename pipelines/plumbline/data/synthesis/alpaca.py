"""Alpaca's variant of Self-Instruct (Taori et al. 2023): whole tasks in one call, three demonstrations, cheaper by far."""

from __future__ import annotations

import re
from collections.abc import Sequence

from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.data.normalise import fold
from plumbline.data.row import Reject, Row
from plumbline.data.synthesis.book import Book
from plumbline.data.synthesis.program import Program, Sampling, ask, random_of, seed_of, text_of
from plumbline.data.synthesis.replies import Parts, input_of, part, parts, records
from plumbline.data.synthesis.screening import Screen
from plumbline.data.synthesis.seeds import Demonstration, demonstrations
from plumbline.data.synthesis.self_instruct import task_row

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

_SEPARATOR = re.compile(r"^#{3,}[\t ]*$", re.MULTILINE)


def alpaca(spec: SynthesizeSpec, rows: Sequence[Row], book: Book) -> Program:
    """Propose whole tasks, screen their instructions."""
    method = spec.alpaca
    assert method is not None
    seeds = [one for one in demonstrations(rows) if one.output]
    screen = Screen((seed.instruction for seed in seeds), method.max_similarity)
    for number in book.rounds() if seeds else ():
        draws = random_of(spec.seed, "round", number)
        calls = min(method.calls_per_round, -(-book.left // (TASKS - SHOWN)))
        shown = [draws.sample(seeds, min(SHOWN, len(seeds))) for _ in range(calls)]
        replies = yield [
            ask(_proposal(some), Sampling(method.temperature, method.max_tokens, seed_of(spec.seed, "propose", number, i)))
            for i, some in enumerate(shown)
        ]
        for some, reply in zip(shown, replies, strict=True):
            parents = tuple(seed.row for seed in some)
            with book.dropping(reply.text):
                for task in tasks(text_of(reply, whole=False), cut=reply.finish_reason == "length"):
                    with book.dropping(" / ".join(text for _, text in task)):
                        instruction, given, output = _whole(task)
                        screen.check(instruction)
                        book.keep(task_row(instruction, given, output, parents, "alpaca"))


def tasks(text: str, cut: bool) -> list[Parts]:
    """The parts of each task; where the text was cut off, the last has no output.

    Raises:
        Reject: there is no task in the text.
    """
    found = [
        (label, _SEPARATOR.split(value, 1)[0].strip()) for label, value in parts(text, "instruction", "input", "output")
    ]
    if not found:
        raise Reject("no task in the form asked for")
    *whole, last = records(found, first="instruction")
    return [*whole, [one for one in last if one[0] != "output"] if cut else last]


def _whole(task: Parts) -> tuple[str, str, str]:
    instruction, given, output = (part(task, label) for label in ("instruction", "input", "output"))
    if not instruction or not output:
        raise Reject("a part of the task is missing")
    given = input_of(given)
    if fold(given) == fold(output):
        raise Reject("output repeats the input")
    return " ".join(instruction.split()), given, output


def _proposal(shown: list[Demonstration]) -> str:
    given = "\n###\n".join(
        f"{i}. Instruction: {seed.instruction}\n{i}. Input:\n{seed.given or '<noinput>'}\n{i}. Output:\n{seed.output}"
        for i, seed in enumerate(shown, 1)
    )
    return PROPOSE.format(tasks=TASKS, shown=len(shown), first=len(shown) + 1, demonstrations=given)
