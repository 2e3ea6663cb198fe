"""`builtin://skills`: answers are right, parts are disjoint, and the same seed gives the same everywhere."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import subprocess
import sys
from collections import Counter

import pytest

from plumbline.builtin.skills import HELDOUT_EVERY, SKILLS, Task, corrupt, is_correct, pretraining_documents, tasks

SEEDS = (0, 1, 7, 12345)


def recompute(task: Task) -> str:
    """The right answer, from the words of the prompt alone."""
    text = task.prompt.rstrip(".?")
    letters = re.findall(r"(?:\b[a-z] )+[a-z]\b", text)[-1:]
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    sequence = letters[0].split() if letters else []
    match task.skill:
        case "add":
            return str(sum(numbers))
        case "subtract":
            return str(abs(numbers[0] - numbers[1]))
        case "reverse":
            return " ".join(sequence[::-1])
        case "sort":
            return " ".join(sorted(sequence))
        case "upper":
            return " ".join(letter.upper() for letter in sequence)
        case "take":
            return " ".join(sequence[: numbers[0]])
        case "count" | "drop":
            one = task.id.split("/")[2].split("|")
            letter, sequence = one[0], one[1].split()
            assert letter in re.findall(r"\b[a-z]\b", text)
            assert one[1] in text
            if task.skill == "count":
                return str(sum(c == letter for c in sequence))
            return " ".join(c for c in sequence if c != letter)
    raise AssertionError(f"no rule for {task.skill}")


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_are_right(skill: str) -> None:
    wordings = Counter()
    for split, seed in itertools.product(("train", "heldout"), SEEDS[:2]):
        for task in tasks(150, split=split, seed=seed, skills=(skill,)):  # type: ignore[arg-type]
            assert task.answer == recompute(task), task
            assert is_correct(f" {task.answer}\n", task.answer)
            wordings[task.id.split("/")[1]] += 1
    assert len(wordings) == len(SKILLS[skill].prompts), "every wording is drawn"


def test_train_and_heldout_are_disjoint_for_all_seeds() -> None:
    def arguments(split: str) -> set[tuple[str, str]]:
        return {(t.skill, t.id.split("/", 2)[2]) for s in SEEDS for t in tasks(800, split=split, seed=s)}  # type: ignore[arg-type]

    def prompts(split: str) -> set[str]:
        return {t.prompt for s in SEEDS for t in tasks(800, split=split, seed=s)}  # type: ignore[arg-type]

    assert not arguments("train") & arguments("heldout")
    assert not prompts("train") & prompts("heldout")


def test_pretraining_documents_hold_no_heldout_task() -> None:
    lines = {line for document in itertools.islice(pretraining_documents(3), 500) for line in document.splitlines()}
    assert len(lines) > 500
    for split, shared in (("heldout", False), ("train", True)):
        statements = set()
        for task in tasks(3000, split=split, seed=5, skills=("add", "subtract")):  # type: ignore[arg-type]
            skill, values = SKILLS[task.skill], task.id.split("/", 2)[2].split("|")
            statements |= {form.format(*values, answer=task.answer) for form in (skill.notation, *skill.prose)}
        assert bool(statements & lines) is shared


def test_about_one_task_in_eight_is_held_out() -> None:
    rng = random.Random(0)
    from plumbline.builtin.skills import is_heldout

    drawn = [is_heldout(name, skill.sample(rng)) for name, skill in SKILLS.items() for _ in range(500)]
    assert sum(drawn) / len(drawn) == pytest.approx(1 / HELDOUT_EVERY, abs=0.02)


def test_tasks_are_distinct_and_skills_take_turns() -> None:
    found = list(tasks(400, split="train", seed=0))
    assert len({task.id for task in found}) == 400
    assert [task.skill for task in found[:8]] == list(SKILLS)
    assert list(tasks(5, split="train", seed=0)) == found[:5]
    assert list(tasks(5, split="train", seed=1)) != found[:5]
    assert {task.skill for task in tasks(9, split="train", seed=0, skills=("add", "sort"))} == {"add", "sort"}


def test_more_tasks_than_there_are_is_an_error_not_a_loop() -> None:
    with pytest.raises(ValueError, match="fewer than 2700 distinct heldout tasks"):
        list(tasks(2700, split="heldout", seed=0, skills=("subtract",)))
    with pytest.raises(KeyError):
        next(tasks(1, split="train", seed=0, skills=("juggle",)))


@pytest.mark.parametrize("skill", SKILLS)
def test_a_corrupted_answer_is_never_the_answer_and_looks_like_one(skill: str) -> None:
    rng = random.Random(0)
    for task in tasks(300, split="train", seed=2, skills=(skill,)):
        for _ in range(5):
            wrong = corrupt(task, rng)
            assert not is_correct(wrong, task.answer)
            assert wrong
            assert wrong == " ".join(wrong.split())
            assert wrong.isdigit() == task.answer.isdigit()
            assert wrong.isupper() == task.answer.isupper()


@pytest.mark.parametrize("answer", ["0", "1", "a", "a a", "a a a a", "Z", "198"])
def test_awkward_answers_are_corrupted_too(answer: str) -> None:
    task = Task("x", "x", "?", answer)
    for seed in range(300):
        assert not is_correct(corrupt(task, random.Random(seed)), answer)


DIGEST = """
import hashlib, itertools, random
from plumbline.builtin.skills import corrupt, pretraining_documents, tasks
rng = random.Random(4)
found = [(t, corrupt(t, rng)) for t in tasks(200, split="train", seed=3)]
print(hashlib.sha256(repr((found, list(itertools.islice(pretraining_documents(3), 20)))).encode()).hexdigest())
"""


def test_every_process_draws_the_same() -> None:
    rng = random.Random(4)
    found = [(t, corrupt(t, rng)) for t in tasks(200, split="train", seed=3)]
    ours = hashlib.sha256(repr((found, list(itertools.islice(pretraining_documents(3), 20)))).encode()).hexdigest()
    for hash_seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ours
