"""Records that look like data for training but lack something: said at once, and what would help."""

from __future__ import annotations

import re
from typing import Any

_ANSWER_NUMBER = re.compile(r"(answer|response|output|completion|reply)[ _]?[0-9a-b]", re.IGNORECASE)
_PROMPTS = {"prompt", "instruction", "question", "query", "conversations", "goal"}


def why_refused(record: dict[str, Any]) -> str | None:
    """Why a record of no known format cannot be used, or None where nothing is known of it."""
    names = {str(name).lower() for name in record}
    if names == {"text"} and re.match(r'\s*\{\s*"', str(record["text"])):
        return "the text is JSON; let the file's name end in .jsonl"
    if {"message_id", "parent_id", "text"} <= names:
        return "these are OpenAssistant messages one by one; give the file of whole trees (*.trees.jsonl.gz)"
    answers = [str(name) for name in record if _ANSWER_NUMBER.fullmatch(str(name))]
    if len(answers) >= 2:
        return (
            f"these are answers side by side ({', '.join(answers[:4])}) without chosen and rejected; "
            "write the better one as chosen and the other as rejected, or have them judged first"
        )
    if names & _PROMPTS and not names & {"output", "response", "completion", "answer", "target"}:
        return "these are prompts without answers; have them answered by a synthesize stage (method: distill)"
    return None


def is_prediction(record: dict[str, Any]) -> bool:
    """Whether the record is a model's answer beside the reference: evaluation output, of which neither is asked for."""
    return "response" in record and "target" in record
