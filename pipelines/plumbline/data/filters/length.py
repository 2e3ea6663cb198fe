"""How long prompts and answers are."""

from __future__ import annotations

from plumbline.api.curation.filters import LengthSpec, RangeSpec
from plumbline.data.filters.words import count_words, learned
from plumbline.data.row import Reject, Row


def check_length(row: Row, spec: LengthSpec) -> Row:
    """Drop a row with a length outside its range. What a row has not (a text has no prompt) is not checked.

    Raises:
        Reject: by the first range that does not hold.
    """
    prompts, answers = row.prompts, learned(row)
    if prompts:
        _check(spec.prompt_words, sum(map(count_words, prompts)) if spec.prompt_words else 0, "prompt", "words")
        _check(spec.prompt_characters, sum(map(len, prompts)), "prompt", "characters")
        _check(spec.turns, len(prompts), "chat", "user turns")
    if answers:
        _check(spec.answer_words, sum(map(count_words, answers)) if spec.answer_words else 0, "answer", "words")
        _check(spec.answer_characters, sum(map(len, answers)), "answer", "characters")
    if prompts and answers and spec.ratio:
        ratio = sum(map(len, answers)) / max(1, sum(map(len, prompts)))
        if not spec.ratio.holds(ratio):
            raise Reject("answer out of proportion", f"{ratio:.3g} times as long as the prompt")
    return row


def _check(accepted: RangeSpec | None, value: int, what: str, unit: str) -> None:
    if accepted is not None and not accepted.holds(value):
        short = accepted.min is not None and value < accepted.min
        raise Reject(f"{what} too {'short' if short else 'long'}", f"{value} {unit}")
