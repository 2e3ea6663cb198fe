"""Single answers with a verdict (KTO, Ethayarajh et al. 2024): `label` and `messages`, or `prompt` and `completion`."""

from __future__ import annotations

from typing import Any

from plumbline.data.chat import answer_turn, build_chat, build_prompt, said_by, turns_of
from plumbline.data.row import Reject, Row

FIELDS = "label (true or false, 1 or 0) with messages, or with prompt and completion"

_WORDS = {"true": True, "false": False}
_NUMBERS = {"1": True, "0": False, "1.0": True, "0.0": False}


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has an answer and a verdict."""
    has_answer = "messages" in record or ("prompt" in record and "completion" in record)
    return has_answer and _plain(record.get("label")) in _WORDS


def convert(record: dict[str, Any]) -> Row:
    """The prompt, the answer and whether it is good.

    Raises:
        Reject: no verdict, an empty prompt or answer, an unknown role, roles that do not alternate.
    """
    label = verdict(record)
    if "messages" in record:
        chat = build_chat(turns_of(record["messages"]))
        return Row({"prompt": chat[:-1], "completion": chat[-1:], "label": label})
    prompt = build_prompt(said_by("user", record.get("prompt")))
    return Row({"prompt": prompt, "completion": answer_turn(record.get("completion")), "label": label})


def verdict(record: dict[str, Any]) -> bool:
    """What `label` says.

    Raises:
        Reject: neither yes nor no.
    """
    label = label_of(record)
    if label is None:
        raise Reject("no verdict", f"label: {record.get('label')!r}"[:40])
    return label


def label_of(record: dict[str, Any]) -> bool | None:
    """What `label` says; None where that is neither yes nor no."""
    return (_WORDS | _NUMBERS).get(_plain(record.get("label")))


def _plain(label: Any) -> str:
    """CSV has verdicts in words. 1 and 0 may be classes: they are verdicts only where labels are asked for."""
    return str(label).strip().lower() if isinstance(label, bool | int | float | str) else ""
