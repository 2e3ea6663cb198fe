"""Reading lists and labelled parts out of what teachers write."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from plumbline.data.row import Reject
from plumbline.data.synthesis.alpaca import tasks
from plumbline.data.synthesis.replies import input_of, items, part, parts, records
from plumbline.data.synthesis.self_instruct import examples
from plumbline.data.synthesis.textbook import exercise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sure!\n9. Name a tree\n  that is tall\n10) Name a bush", ["Name a tree that is tall", "Name a bush"]),
        ("1. **Tides**\n**2.** Waves\n3. **Salt** and why", ["Tides", "Waves", "**Salt** and why"]),
        ("1.列出三种水果\n2、解释光合作用", ["列出三种水果", "解释光合作用"]),
        ("1. Compute 2**3\n2. Round\n3.5 to a whole number", ["Compute 2**3", "Round 3.5 to a whole number"]),
        ("1. a\n2.\n3. b", ["a 2.", "b"]),
    ],
)
def test_numbered_lists(text: str, expected: list[str]) -> None:
    assert items(text, cut=False) == expected
    assert items(text, cut=True) == [*expected[:-1], ""]


def test_no_list() -> None:
    with pytest.raises(Reject, match="no numbered list"):
        items("I would rather not. In 2024.", cut=False)


def test_a_label_within_an_answer_is_text_where_labels_have_numbers() -> None:
    text = "4. Instruction: Show a function\n4. Output:\nRun it:\nInput: 5\nOutput: 25\n5. **Instruction:** Next\n5. Output：C#\n###\n6."
    first, second = tasks(text, cut=False)
    assert first == [("instruction", "Show a function"), ("output", "Run it:\nInput: 5\nOutput: 25")]
    assert second == [("instruction", "Next"), ("output", "C#")]
    assert tasks("1. Instruction: Add\nInput: 1, 2\nOutput: 3\n2. Instruction: Halve", cut=False) == [
        [("instruction", "Add"), ("input", "1, 2"), ("output", "3")],
        [("instruction", "Halve")],
    ]


def test_a_part_that_comes_twice_is_rejected_as_its_text_is_in_doubt() -> None:
    [record] = records(parts("Input: f\nOutput: it prints\nOutput: 25", "input", "output"))
    assert part(record, "input") == "f"
    with pytest.raises(Reject, match="a part comes twice"):
        part(record, "output")
    assert part(record, "exercise") == ""


def test_examples_with_and_without_the_lines_between_them() -> None:
    expected = [[("input", "a"), ("output", "b")], [("input", "c"), ("output", "d")]]
    assert examples("**Example 1:**\nInput: a\nOutput: b\n\nExample\nInput: c\nOutput: d") == expected
    assert examples("Input: a\nOutput: b\nInput: c\nOutput: d") == expected
    assert examples("Input 1: a\nOutput 1: b\nInput 2: c") == [expected[0], [("input", "c")]]  # no output: seen, and counted


@pytest.mark.parametrize("text", ["none", "None.", "<noinput>", "(No input)", "n/a", "*not needed*", "", "无"])
def test_words_for_no_input(text: str) -> None:
    assert input_of(text) == ""


@pytest.mark.parametrize("text", ["+", "[]", "?", "🙂", "Na", "none of them", "{}"])
def test_short_inputs_are_inputs(text: str) -> None:
    assert input_of(text) == text


@pytest.mark.parametrize("filler", ["\n", "*", " ", "* \n", "#\n"])
@pytest.mark.parametrize(
    "read",
    [
        lambda junk: items(f"1. a{junk}x", cut=False),
        lambda junk: examples(f"Input: a{junk}x\nOutput: b{junk}x"),
        lambda junk: tasks(f"Instruction: a{junk}x\nOutput: c{junk}x", cut=False),
        lambda junk: exercise(f"Exercise: a{junk}x\nSolution: b{junk}x"),
        lambda junk: input_of(f"{junk}x"),
    ],
    ids=["items", "examples", "tasks", "exercise", "input"],
)
def test_a_long_run_of_rubbish_takes_no_longer_than_text(read: Callable[[str], Any], filler: str) -> None:
    start = time.process_time()
    read(filler * 100_000)
    assert time.process_time() - start < 3  # hours, where a pattern begins again at every line
