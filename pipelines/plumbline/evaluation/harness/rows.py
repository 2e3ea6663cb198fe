"""The log that lm-evaluation-harness keeps of a task, and what it says of each item."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from plumbline.data.row import Message
from plumbline.evaluation.benchmarks.benchmark import Score, user
from plumbline.evaluation.client import TOO_LONG
from plumbline.evaluation.journal import Reply

Row = Mapping[str, Any]
"""One item by one filter: `doc_id`, `target`, `arguments` and `filtered_resps` of its requests, `filter`, and its `metrics` by name."""
INVALID = "[invalid]"
"""What the harness's filters give where a reply has no answer."""


@dataclass(frozen=True)
class Asked:
    """What one model made of a task.

    Attributes:
        rows: for each filter all items, in one order.
        replies: place of the item in that order → replies to its requests.
        chat: whether contexts are chats, as JSON.
        longest: tokens that were asked for at most.
    """

    rows: Sequence[Row]
    replies: Mapping[int, Sequence[Reply]]
    chat: bool
    longest: int


@dataclass(frozen=True)
class Answered:
    """One item with what every model made of it, by model."""

    prompt: list[Message]
    reference: str
    replies: Mapping[str, Reply]
    scores: Mapping[str, Score]


def metrics_of(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The metrics that are a number of 0 to 1 wherever they are told, those of all items first, and the others. `METRIC,FILTER` where the filter has a
    name."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for metric in row["metrics"]:
            values.setdefault(_name(metric, row), []).append(row[metric])
    fit = [name for name, of in values.items() if all(_is_share(value) for value in of)]
    most = max(map(len, values.values()), default=0)
    return sorted(fit, key=lambda name: len(values[name]) < most), [name for name in values if name not in fit]


def answered(told: Mapping[str, Asked], main: str, metrics: Sequence[str]) -> Iterator[Answered]:
    """The items in their order. An item that the main metric leaves out has no score.

    Args:
        told: by model, at least one.
        main: the metric that is the score.
        metrics: those that are told.
    """
    items = {model: _items(asked.rows) for model, asked in told.items()}
    first_model, first = next(iter(told.items()))
    for place, filters in enumerate(items[first_model]):
        row = filters[0]
        yield Answered(
            _prompt(row, first.chat),
            _reference(row),
            {model: _shown(asked.replies[place], items[model][place][0]) for model, asked in told.items()},
            {
                model: score
                for model, asked in told.items()
                if (score := _score(items[model][place], asked.replies[place], main, metrics)) is not None
            },
        )


def _items(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each item, one a filter."""
    by_filter: dict[str, list[Row]] = {}
    for row in rows:
        by_filter.setdefault(row["filter"], []).append(row)
    return [list(of) for of in zip(*by_filter.values(), strict=True)]


def _score(rows: Sequence[Row], replies: Sequence[Reply], main: str, metrics: Sequence[str]) -> Score | None:
    values = {
        name: float(row[metric]) for row in rows for metric in row["metrics"] if (name := _name(metric, row)) in metrics
    }
    value = values.pop(main, None)
    if value is None:
        return None
    if any(
        reply.finish_reason == TOO_LONG for reply in replies
    ):  # of choices without a likelihood the harness takes the first
        return Score(0.0, None, dict.fromkeys(values, 0.0))
    return Score(
        value, _extracted(next(row for row in rows if main in (_name(metric, row) for metric in row["metrics"]))), values
    )


def _name(metric: str, row: Row) -> str:
    return metric if row["filter"] == "none" else f"{metric},{row['filter']}"


def _is_share(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value) and 0 <= value <= 1


def _extracted(row: Row) -> str | None:
    if _is_choice(row):
        return _choice(row).strip()
    answer = row["filtered_resps"][0]
    told = str(answer[0] if isinstance(answer, list) and answer else answer).strip()
    return None if told in ("", INVALID) else told


def _is_choice(row: Row) -> bool:
    """Whether the replies are likelihoods, each with whether it is greedy."""
    answer = row["filtered_resps"][0]
    return isinstance(answer, tuple | list) and len(answer) == 2 and isinstance(answer[0], float)


def _choice(row: Row) -> str:
    """The likeliest continuation; where the contexts differ, with its context. Of a single one, how likely it is."""
    if len(row["filtered_resps"]) == 1:
        [(likelihood, greedy)], [(_, continuation, *_)] = row["filtered_resps"], row["arguments"]
        return f"{continuation} (log-likelihood {likelihood:.2f}, {'' if greedy else 'not '}what greedy sampling writes)"
    pairs = zip(row["filtered_resps"], row["arguments"], strict=True)
    asked = [(answer[0], arguments) for answer, arguments in pairs if arguments[0]]  # without a context: how likely at all
    _, (context, continuation, *_) = max(asked or [(0.0, row["arguments"][0])], key=lambda one: one[0])
    return str(continuation) if len({arguments[0] for _, arguments in asked}) < 2 else f"{context}{continuation}"


def _prompt(row: Row, chat: bool) -> list[Message]:
    context = str(row["arguments"][0][0])
    messages: list[Message] = json.loads(context) if chat else user(context)
    return messages


def _reference(row: Row) -> str:
    target = row["target"]
    if isinstance(target, int) and _is_choice(row) and 0 <= target < len(row["arguments"]):
        return str(row["arguments"][target][1]).strip()
    return target if isinstance(target, str) else json.dumps(target, ensure_ascii=False, default=str)


def _shown(replies: Sequence[Reply], row: Row) -> Reply:
    """A reply for people: what was written, or the choice."""
    return Reply(_choice(row), replies[0].finish_reason) if _is_choice(row) else replies[0]
