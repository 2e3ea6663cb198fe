"""`prompt` and `completion`: OpenAI's old fine-tuning files, T0's templates as Self-Instruct writes them, TRL."""

from __future__ import annotations

from typing import Any

from plumbline.data.chat import answer_turn, build_prompt, said_by, text_of
from plumbline.data.row import Row

FIELDS = "prompt, completion"

END_MARKERS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "</s>")


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has a prompt and a completion."""
    return "prompt" in record and "completion" in record


def convert(record: dict[str, Any]) -> Row:
    """The prompt as a user turn and the completion as its answer, without the end marker that is part of these files.

    Raises:
        Reject: an empty prompt or completion, or one that is not text.
    """
    completion = record.get("completion")
    if isinstance(completion, str):
        completion = text_of(completion)
        while completion.endswith(END_MARKERS):
            completion = completion[: completion.rindex("<")].rstrip()
    return Row({"messages": build_prompt(said_by("user", record.get("prompt"))) + answer_turn(completion)})
