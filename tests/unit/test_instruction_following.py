"""Answers and continuations: how instructions are cut, and what the tone classifier learns of a run's own chats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from plumbline.builtin import skills
from plumbline.errors import InvalidInput
from plumbline.evaluation import instruction_following
from plumbline.evaluation.instruction_following import FEWEST, cut_instruction, train_tone
from support.rows import read


def exchanges(count: int) -> Iterator[tuple[str, str]]:
    return ((task.prompt, task.answer) for task in skills.tasks(count, split="train", seed=3))


@pytest.mark.parametrize(
    "text",
    [
        "Write a short story about two friends, who meet again after many years.",
        "List three fruits. Then say which of them you like best and why.",
        "请写一个关于两个多年后重逢的朋友的短篇小说。",
    ],
)
def test_cuts_lie_within_a_sentence(text: str) -> None:
    draw = np.random.default_rng(0)
    cuts = {cut_instruction(text, draw) for _ in range(100)}
    assert len(cuts) > 3
    for cut in cuts:
        assert cut is not None
        begin, rest = cut
        assert (begin + rest).replace(" ", "") == text.replace(" ", "")
        assert begin[-1] not in ".!?。！？"
        assert 0.2 * len(text) <= len(begin) <= 0.8 * len(text)


@pytest.mark.parametrize("text", ["", "Hello", "Hi. There!", "First.\nSecond."])
def test_what_has_no_place_within_a_sentence_is_not_cut(text: str) -> None:
    assert cut_instruction(text, np.random.default_rng(0)) is None


def test_tone_is_learnt_from_the_chats_themselves() -> None:
    tone = train_tone(exchanges(600), 0.95, 0, "sft")
    assert tone.accuracy > 0.99
    said = ["c b a", "17", "X Y Z", "in alphabetical order?", "a b c backwards.", "  ", ""]
    assert tone.answer_like(said).tolist() == [True] * 3 + [False] * 4
    assert tone.answer_like([]).tolist() == []
    again = train_tone(exchanges(600), 0.95, 0, "sft")
    assert np.array_equal(tone.weights, again.weights)


def test_no_more_is_read_than_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruction_following, "MOST", 150)
    endless = exchanges(1000)
    train_tone(endless, 0.95, 0, "sft")
    assert 800 < len(list(endless)) <= 850


def test_a_classifier_that_guesses_is_refused() -> None:
    words = ["red", "green", "blue", "black", "white"]
    draw = np.random.default_rng(0)
    alike = [(" ".join(draw.choice(words, 12)), " ".join(draw.choice(words, 6))) for _ in range(300)]
    with pytest.raises(InvalidInput, match=r"sft\.earlyStopping\.minAccuracy: .* [4-8]\d\.\d% .* 95\.0% is asked for"):
        train_tone(iter(alike), 0.95, 0, "sft.earlyStopping")


def test_too_few_instructions_are_refused() -> None:
    with pytest.raises(InvalidInput, match=rf"has 99 instructions that can be cut .* needs {FEWEST}"):
        train_tone(exchanges(99), 0.95, 0, "sft.earlyStopping")


def test_real_chats_are_told_as_well_as_the_paper_does(shared: Path) -> None:
    chats = (row.content["messages"] for row in read(shared / "alpaca" / "alpaca_data_shared.jsonl.gz")[:2000])
    tone = train_tone(((turns[0]["content"], turns[1]["content"]) for turns in chats), 0.95, 0, "sft.earlyStopping")
    assert tone.accuracy > 0.96
    assert tone.answer_like(["The capital of France is Paris.", "and explain why it matters"]).tolist() == [True, False]
