"""`builtin://skills`: a procedural generator of instruction tasks whose answers can be checked.

Eight small skills over letters and numbers. Each task can be written in three ways:

- `notation`: a plain completion line (``reverse k f q a = a q f k``), what a base model reads;
- `prose`: an English statement of the same fact, also for pre-training;
- `prompt` and `answer`: a chat instruction and its one right answer.

Letters are separated by spaces, so that a tokenizer sees each of them. Whether a task belongs to the train or
the held-out part follows from a hash of the skill and its arguments, never from a seed: no seed can leak.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

VERSION = "1"
"""Part of the fingerprint of every stage that reads `builtin://skills`; raise it when a task changes."""

Split = Literal["train", "heldout"]
HELDOUT_EVERY = 8  # one eighth of all arguments is held out


@dataclass(frozen=True)
class Skill:
    """One family of tasks.

    `sample` draws arguments, `solve` answers them; the templates are filled with the arguments by position, and
    `{answer}` in notation and prose.
    """

    name: str
    sample: Callable[[random.Random], tuple[str, ...]]
    solve: Callable[..., str]
    notation: str
    prose: tuple[str, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """One instruction with its right answer. `id` is stable: it names the skill, its arguments and the wording."""

    id: str
    skill: str
    prompt: str
    answer: str


def _letters(rng: random.Random, low: int, high: int, alphabet: str = string.ascii_lowercase) -> list[str]:
    return [rng.choice(alphabet) for _ in range(rng.randint(low, high))]


def _sequence(rng: random.Random) -> tuple[str, ...]:
    return (" ".join(_letters(rng, 3, 7)),)


def _distinct_sequence(rng: random.Random) -> tuple[str, ...]:
    return (" ".join(rng.sample(string.ascii_lowercase, rng.randint(3, 6))),)


def _letter_and_sequence(rng: random.Random) -> tuple[str, ...]:
    few = "".join(rng.sample(string.ascii_lowercase, 3))
    return (few[0], " ".join(_letters(rng, 4, 7, few)))


def _letter_to_drop(rng: random.Random) -> tuple[str, ...]:
    few = "".join(rng.sample(string.ascii_lowercase, 4))
    letters = _letters(rng, 3, 5, few[1:]) + [few[0]] * rng.randint(1, 2)
    rng.shuffle(letters)
    return (few[0], " ".join(letters))


def _number_and_sequence(rng: random.Random) -> tuple[str, ...]:
    letters = _letters(rng, 4, 7)
    return (str(rng.randint(1, 3)), " ".join(letters))


def _sum(rng: random.Random) -> tuple[str, ...]:
    return (str(rng.randint(0, 99)), str(rng.randint(0, 99)))


def _difference(rng: random.Random) -> tuple[str, ...]:
    low, high = sorted((rng.randint(0, 99), rng.randint(0, 99)))
    return (str(high), str(low))


SKILLS: dict[str, Skill] = {
    skill.name: skill
    for skill in (
        Skill(
            "reverse",
            _sequence,
            lambda x: " ".join(reversed(x.split())),
            "reverse {0} = {answer}",
            ("The letters {0} in reverse order are {answer}.", "Written backwards, {0} is {answer}."),
            (
                "Reverse the letters {0}.",
                "Write {0} backwards.",
                "What are the letters {0} in reverse order?",
                "Please turn {0} around.",
            ),
        ),
        Skill(
            "sort",
            _distinct_sequence,
            lambda x: " ".join(sorted(x.split())),
            "sort {0} = {answer}",
            ("The letters {0} in alphabetical order are {answer}.", "Sorted, {0} is {answer}."),
            (
                "Sort the letters {0}.",
                "Put {0} in alphabetical order.",
                "What are the letters {0} in alphabetical order?",
                "Please arrange {0} from first to last in the alphabet.",
            ),
        ),
        Skill(
            "count",
            _letter_and_sequence,
            lambda letter, x: str(x.split().count(letter)),
            "count {0} in {1} = {answer}",
            ("The letter {0} appears {answer} times in {1}.", "There are {answer} of the letter {0} in {1}."),
            (
                "How many times does the letter {0} appear in {1}?",
                "Count the letter {0} in {1}.",
                "How often is {0} found in {1}?",
                "Give the number of the letter {0} in {1}.",
            ),
        ),
        Skill(
            "add",
            _sum,
            lambda a, b: str(int(a) + int(b)),
            "{0} + {1} = {answer}",
            ("The sum of {0} and {1} is {answer}.", "Adding {0} and {1} gives {answer}."),
            ("What is {0} plus {1}?", "Add {0} and {1}.", "What is the sum of {0} and {1}?", "Please compute {0} + {1}."),
        ),
        Skill(
            "subtract",
            _difference,
            lambda a, b: str(int(a) - int(b)),
            "{0} - {1} = {answer}",
            ("The difference of {0} and {1} is {answer}.", "Taking {1} from {0} gives {answer}."),
            (
                "What is {0} minus {1}?",
                "Subtract {1} from {0}.",
                "What is the difference of {0} and {1}?",
                "Please compute {0} - {1}.",
            ),
        ),
        Skill(
            "upper",
            _sequence,
            lambda x: x.upper(),
            "upper {0} = {answer}",
            ("The letters {0} in capitals are {answer}.", "In upper case, {0} is {answer}."),
            (
                "Write {0} in capitals.",
                "Change {0} to upper case.",
                "What are the letters {0} in capitals?",
                "Please capitalise {0}.",
            ),
        ),
        Skill(
            "take",
            _number_and_sequence,
            lambda n, x: " ".join(x.split()[: int(n)]),
            "take {0} {1} = {answer}",
            ("The first {0} letters of {1} are {answer}.", "Of {1} the first {0} are {answer}."),
            (
                "Copy only the first {0} letters of {1}.",
                "What are the first {0} letters of {1}?",
                "Repeat {1} but stop after {0} letters.",
                "Please give the first {0} of {1}.",
            ),
        ),
        Skill(
            "drop",
            _letter_to_drop,
            lambda letter, x: " ".join(c for c in x.split() if c != letter),
            "drop {0} from {1} = {answer}",
            ("Without the letter {0}, {1} is {answer}.", "The letters {1} without {0} are {answer}."),
            (
                "Copy {1} without the letter {0}.",
                "Remove every {0} from {1}.",
                "What is left of {1} without {0}?",
                "Please leave out {0} from {1}.",
            ),
        ),
    )
}


def is_heldout(skill: str, arguments: tuple[str, ...]) -> bool:
    """Which part a task belongs to: a property of the task, not of a seed."""
    digest = hashlib.sha256("|".join((skill, *arguments)).encode()).digest()
    return digest[0] % HELDOUT_EVERY == 0


def draw(rng: random.Random, skill: Skill, split: Split) -> tuple[str, ...]:
    """Arguments of one task of `skill` from `split`."""
    while True:
        arguments = skill.sample(rng)
        if is_heldout(skill.name, arguments) == (split == "heldout"):
            return arguments


def tasks(count: int, *, split: Split, seed: int, skills: tuple[str, ...] = ()) -> Iterator[Task]:
    """Yield `count` distinct tasks, the skills taking turns.

    Args:
        count: how many.
        split: `train` or `heldout`; the two never share arguments, whatever the seeds.
        seed: chooses the tasks and their wordings.
        skills: names to draw from; empty means all of `SKILLS`.

    Raises:
        KeyError: a name in `skills` is none of `SKILLS`.
        ValueError: the skills do not have `count` distinct tasks.
    """
    chosen = [SKILLS[name] for name in skills] if skills else list(SKILLS.values())
    rng = random.Random(f"{split}:{seed}")
    seen: set[str] = set()
    misses = 0
    while len(seen) < count:
        skill = chosen[len(seen) % len(chosen)]
        arguments = draw(rng, skill, split)
        wording = rng.randrange(len(skill.prompts))
        identity = f"{skill.name}/{wording}/" + "|".join(arguments)
        if identity in seen:
            misses += 1
            if misses > 1000 + 20 * count:
                raise ValueError(f"builtin://skills has fewer than {count} distinct {split} tasks for these skills")
            continue
        seen.add(identity)
        yield Task(identity, skill.name, skill.prompts[wording].format(*arguments), skill.solve(*arguments))


def is_correct(reply: str, answer: str) -> bool:
    """Exact match, blind only to surrounding and repeated white space."""
    return " ".join(reply.split()) == answer


def corrupt(task: Task, rng: random.Random) -> str:
    """A wrong answer of the same form, for preference pairs: two places swapped, one changed or one lost."""
    tokens = task.answer.split()
    if task.answer.isdigit():
        value = int(task.answer)
        return str(rng.choice([v for v in range(max(0, value - 11), value + 12) if v != value]))
    for _ in range(20):
        wrong = list(tokens)
        match rng.randrange(3):
            case 0 if len(wrong) > 1:
                i, j = rng.sample(range(len(wrong)), 2)
                wrong[i], wrong[j] = wrong[j], wrong[i]
            case 1 if len(wrong) > 1:
                del wrong[rng.randrange(len(wrong))]
            case _:
                letters = string.ascii_uppercase if task.answer.isupper() else string.ascii_lowercase
                wrong[rng.randrange(len(wrong))] = rng.choice(letters)
        if wrong != tokens:
            return " ".join(wrong)
    return task.answer + " " + task.answer


def pretraining_documents(seed: int) -> Iterator[str]:
    """Endless plain-text documents for a base model: a few lines of notation or prose each, train part only."""
    rng = random.Random(f"pretrain:{seed}")
    skills = list(SKILLS.values())
    while True:
        lines = []
        for _ in range(rng.randint(1, 4)):
            skill = rng.choice(skills)
            arguments = draw(rng, skill, "train")
            form = skill.notation if rng.random() < 0.7 else rng.choice(skill.prose)
            lines.append(form.format(*arguments, answer=skill.solve(*arguments)))
        yield "\n".join(lines)
