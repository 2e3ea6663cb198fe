"""Several answers to one prompt with scores or in order of rank.

- UltraFeedback (Cui et al. 2023): `instruction` and `completions` [{`response`, scores}];
- LLaMA-Factory: `instruction` and `output`, a list of answers, the best first;
- our own artifacts: `prompt`, `completions`, `scores`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from plumbline.data.chat import Turns, answer_turn, build_prompt, history_turns, instruction_prompt, said_by, text_of
from plumbline.data.row import Chat, Reject, Row

FIELDS = "instruction and completions [{response, scores}] or a ranked output list; or prompt, completions, scores"


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has several answers and what ranks them."""
    if "prompt" in record:
        return all(isinstance(record.get(name), list) for name in ("completions", "scores"))
    if "instruction" not in record:
        return False
    match record.get("completions"):
        case [{"response": _}, *_]:
            return True
    return isinstance(record.get("output"), list)


def convert(record: dict[str, Any]) -> Row:
    """The prompt and its answers, best first. Answers that are empty, repeated or without a score are left out.

    Raises:
        Reject: an empty prompt, or fewer than two answers are left.
    """
    instruction = text_of(record["instruction"]) if isinstance(record.get("instruction"), str) else None
    return ranking(build_prompt(_prompt(record)), _answers(record), instruction)


def ranking(prompt: Chat, answers: Iterable[tuple[Any, float | None]], instruction: str | None = None) -> Row:
    """The row of a prompt and (answer, score) pairs; higher scores are better.

    Raises:
        Reject: fewer than two distinct answers have a text and a score.
    """
    found: dict[str, tuple[Chat, float]] = {}
    for value, score in answers:
        if score is None or value in (None, ""):
            continue
        turn = answer_turn(value)
        found.setdefault(turn[0]["content"], (turn, score))
    if len(found) < 2:
        raise Reject("fewer than two answers")
    ranked = sorted(found.values(), key=lambda pair: -pair[1])
    content = {"prompt": prompt, "completions": [turn for turn, _ in ranked], "scores": [score for _, score in ranked]}
    return Row(content, instruction)


def _prompt(record: dict[str, Any]) -> Turns:
    if "prompt" in record:
        return said_by("user", record["prompt"])
    if "instruction" not in record:
        raise Reject("missing field", "instruction")
    user = instruction_prompt(record["instruction"], record.get("input"))
    return [*history_turns(record.get("history"), record.get("system")), ("user", user)]


def _answers(record: dict[str, Any]) -> list[tuple[Any, float | None]]:
    output, completions, scores = (record.get(name) for name in ("output", "completions", "scores"))
    if isinstance(output, list):
        return [(answer, float(-rank)) for rank, answer in enumerate(output)]
    if not isinstance(completions, list):
        raise Reject("missing field", "completions")
    if isinstance(scores, list):
        if len(scores) != len(completions):
            raise Reject("ragged ranking", f"{len(completions)} answers with {len(scores)} scores")
        return [(answer, number(score)) for answer, score in zip(completions, scores, strict=True)]
    if not all(isinstance(completion, dict) for completion in completions):
        raise Reject("ragged ranking", "each completion needs a response and a score")
    return [(completion.get("response"), _score(completion)) for completion in completions]


def _score(completion: dict[str, Any]) -> float | None:
    """The mean of the aspects' ratings where it can be had: `overall_score` of the first release has 10 in place of 1."""
    fine = number(completion.get("fine-grained_score"))
    if fine is not None:
        return fine
    annotations = completion.get("annotations")
    aspects = annotations.values() if isinstance(annotations, dict) else []
    ratings = [number(aspect.get("Rating")) for aspect in aspects if isinstance(aspect, dict)]
    known = [rating for rating in ratings if rating is not None]
    return sum(known) / len(known) if known else number(completion.get("overall_score"))


def number(value: Any) -> float | None:
    """A finite number, or None; text may hold one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
