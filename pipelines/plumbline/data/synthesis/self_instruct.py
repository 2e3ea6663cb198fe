"""Self-Instruct (Wang et al. 2022, arXiv 2212.10560): a pool of tasks grows from demonstrations drawn out of it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.data.normalise import fold
from plumbline.data.row import Reject, Row
from plumbline.data.synthesis.book import Book
from plumbline.data.synthesis.program import Program, Sampling, ask, random_of, seed_of, text_of
from plumbline.data.synthesis.replies import Parts, input_of, items, part, parts, records
from plumbline.data.synthesis.screening import Screen
from plumbline.data.synthesis.seeds import Demonstration, demonstrations, name_of

FROM_SEEDS, FROM_MACHINE = 6, 2  # demonstrations of a call (the paper's)
NEW = 8  # tasks that a call is asked for: items 9 to 16
INSTANCES = 5  # of one task at most (the paper's)
INSTANCE_PENALTY = 1.5  # presence penalty where instances are drawn (the paper's)

PROPOSE = """\
Below is the beginning of a list of tasks for a language model. Continue it with items {first} to {last}.
Vary subject, kind of task, wording and length; some tasks are questions, others requests. A task must be doable with text alone. \
Write one item a line, with its number, and nothing else.

{demonstrations}"""

CLASSIFY = """\
Is the task a classification: is its answer always one of a small fixed set of labels? Reply with Yes or No only.

Task: Decide whether the review is favourable, unfavourable or mixed.
Classification: Yes
Task: Write a letter that asks the landlord to repair the heating.
Classification: No
Task: Does the second sentence follow from the first? Answer true or false.
Classification: Yes
Task: List three uses for an old newspaper.
Classification: No
Task: Which of these four words does not belong with the others?
Classification: No
Task: Sort the message into one of: billing, delivery, complaint, praise.
Classification: Yes

Task: {instruction}
Classification:"""

INPUT_FIRST = """\
Write up to {count} different examples of the task below: first an input that the task could come with, then the right output. \
If the task is complete without an input, write "none" as the input and give one example only. Use exactly this form:

Example
Input: (the input)
Output: (the output)

Task: {instruction}"""

OUTPUT_FIRST = """\
The task below is a classification. Write one example for each of its labels, at most {count}: first the label, then an input for \
which it is right. Use exactly this form:

Example
Output: (the label)
Input: (the input)

Task: {instruction}"""

_EXAMPLE = re.compile(r"^[#*\t ]*example[\t ]*\d*[:.*\t ]*$", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class Task:
    """A task on its way: what it was made from, and whether it is a classification."""

    instruction: str
    parents: tuple[str, ...]
    classification: bool = False


def self_instruct(spec: SynthesizeSpec, rows: Sequence[Row], book: Book) -> Program:
    """Propose, screen, classify, write instances; what gives rows is shown to later rounds."""
    method = spec.self_instruct
    assert method is not None
    seeds = demonstrations(rows)
    machine: list[Demonstration] = []
    screen = Screen((seed.instruction for seed in seeds), method.max_similarity)
    for number in book.rounds() if seeds else ():
        draws = random_of(spec.seed, "round", number)
        shown = [_draw(seeds, machine, draws) for _ in range(min(method.calls_per_round, -(-book.left // NEW)))]
        replies = yield [
            ask(
                _proposal(some),
                Sampling(
                    method.temperature,
                    method.max_tokens,
                    seed_of(spec.seed, "propose", number, i),
                    method.top_p,
                    method.presence_penalty,
                ),
            )
            for i, some in enumerate(shown)
        ]
        found: list[Task] = []
        for some, reply in zip(shown, replies, strict=True):
            with book.dropping(reply.text):
                for instruction in items(text_of(reply, whole=False), cut=reply.finish_reason == "length"):
                    with book.dropping(instruction):
                        if not instruction:
                            raise Reject("cut off")
                        screen.check(instruction)
                        found.append(Task(instruction, tuple(one.row for one in some)))

        greedy = Sampling(0.0, method.max_tokens, spec.seed)
        replies = yield [ask(CLASSIFY.format(instruction=task.instruction), greedy) for task in found]
        tasks: list[Task] = []
        for task, reply in zip(found, replies, strict=True):
            with book.dropping(task.instruction):
                tasks.append(replace(task, classification=yes_or_no(text_of(reply))))

        greedy = Sampling(0.0, method.max_tokens, spec.seed, 1.0, min(INSTANCE_PENALTY, method.presence_penalty))
        replies = yield [ask(_instances_prompt(task), greedy) for task in tasks]
        for task, reply in zip(tasks, replies, strict=True):
            with book.dropping(task.instruction):
                first = _keep_instances(book, task, text_of(reply, whole=False), reply.finish_reason == "length")
                if first is not None:
                    machine.append(Demonstration(task.instruction, first))


def yes_or_no(text: str) -> bool:
    """The verdict.

    Raises:
        Reject: the text begins with neither word.
    """
    word = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    if word is None:
        raise Reject("unreadable verdict", text[:80])
    return word[1].lower() == "yes"


def examples(text: str) -> list[Parts]:
    """The parts of each example, with or without lines that announce them.

    Raises:
        Reject: there is no example.
    """
    found = [one for example in _EXAMPLE.split(text) for one in records(parts(example, "input", "output"))]
    if not found:
        raise Reject("no example in the form asked for")
    return found


def screened(found: list[tuple[str, str]], book: Book) -> Iterator[tuple[str, str]]:
    """The instances that pass Self-Instruct's filters, at most `INSTANCES`; others are counted in the book.

    Raises:
        Reject: one input has two outputs: which is right cannot be known.
    """
    outputs: dict[str, str] = {}
    for given, output in found:
        if output and outputs.setdefault(fold(given), fold(output)) != fold(output):
            raise Reject("one input with different outputs", given)
    seen: set[str] = set()
    for given, output in found:
        with book.dropping(f"{given} / {output}"):
            if not output:
                raise Reject("empty output")
            if fold(given) == fold(output):
                raise Reject("output repeats the input")
            if given.endswith(":") or output.endswith(":"):
                raise Reject("ends with a colon")
            if fold(given) in seen:
                raise Reject("repeated instance")
            if len(seen) == INSTANCES:
                raise Reject("more instances than asked for")
            seen.add(fold(given))
            yield given, output


def _draw(seeds: list[Demonstration], machine: list[Demonstration], draws: random.Random) -> list[Demonstration]:
    """Six seeds and two of our own; seeds alone while there are too few of our own."""
    own = draws.sample(machine, min(FROM_MACHINE, len(machine)))
    some = [*own, *draws.sample(seeds, min(FROM_SEEDS + FROM_MACHINE - len(own), len(seeds)))]
    draws.shuffle(some)
    return some


def _proposal(shown: list[Demonstration]) -> str:
    lines = "\n".join(f"{i}. {one.instruction}" for i, one in enumerate(shown, 1))
    return PROPOSE.format(first=len(shown) + 1, last=len(shown) + NEW, demonstrations=lines)


def _instances_prompt(task: Task) -> str:
    form = OUTPUT_FIRST if task.classification else INPUT_FIRST
    return form.format(count=INSTANCES, instruction=task.instruction)


def _keep_instances(book: Book, task: Task, text: str, cut: bool) -> str | None:
    """Make rows of a task's instances; the id of the first, None where there is none."""
    written = examples(text)
    if cut:
        book.drop(Reject("cut off"), _shown(written.pop()))
    found = []
    for example in written:
        with book.dropping(_shown(example)):
            found.append((input_of(part(example, "input")), part(example, "output")))
    first = None
    for given, output in screened(found, book):
        with book.dropping(f"{task.instruction} / {given} / {output}"):
            row = book.keep(task_row(task.instruction, given, output, task.parents, "selfInstruct", task.classification))
            first = first or name_of(row)
    return first


def _shown(example: Parts) -> str:
    return " / ".join(text for _, text in example)


def task_row(
    instruction: str, given: str, output: str, parents: tuple[str, ...], operation: str, classification: bool = False
) -> Row:
    """A chat of one instruction with its input below a blank line, and the output."""
    prompt = f"{instruction}\n\n{given}" if given else instruction
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": output}]
    category = "classification" if classification else None
    return Row({"messages": chat}, instruction, category=category, operations=(operation,), parents=parents)
