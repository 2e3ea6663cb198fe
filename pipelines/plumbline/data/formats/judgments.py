"""Single answers with what somebody wrote about them (CUT, Xu et al. 2023, arXiv 2312.14591): what is wrong, or that all is well."""

from __future__ import annotations

from typing import Any

from plumbline.data.chat import answer_turn, build_prompt, instruction_prompt, said_by, text_of
from plumbline.data.formats.kto import label_of, verdict
from plumbline.data.row import Reject, Row

FIELDS = "judgment (or judgement, critique, feedback), label (true or false, 1 or 0), and prompt, completion or instruction, output"

_NAMES = ("judgment", "judgement", "critique", "feedback")


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has an answer, a verdict and a judgment."""
    answered = ("prompt" in record and "completion" in record) or ("instruction" in record and "output" in record)
    return answered and label_of(record) is not None and any(isinstance(record.get(name), str) for name in _NAMES)


def convert(record: dict[str, Any]) -> Row:
    """The prompt, the answer, whether it is good, and the judgment.

    Raises:
        Reject: no verdict or judgment, an empty prompt or answer.
    """
    label = verdict(record)
    judgment = next((text for name in _NAMES if record.get(name) and (text := text_of(record[name]))), "")
    if not judgment:
        raise Reject("no judgment")
    instruction = None
    if "prompt" in record:
        prompt, answer = build_prompt(said_by("user", record["prompt"])), record.get("completion")
    else:
        prompt, answer = (
            build_prompt([("user", instruction_prompt(record["instruction"], record.get("input")))]),
            record.get("output"),
        )
        instruction = text_of(record["instruction"])
    content = {"prompt": prompt, "completion": answer_turn(answer), "label": label, "judgment": judgment}
    return Row(content, instruction)
