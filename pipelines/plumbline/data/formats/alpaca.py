"""Stanford Alpaca (Taori et al. 2023): `instruction`, optional `input`, `output`; also LLaMA-Factory's `history`, `system`.

Code Alpaca, GPT-4-LLM and WizardLM's and WizardCoder's evolved instructions are written in the same fields.
"""

from __future__ import annotations

from typing import Any

from plumbline.data.chat import build_chat, history_turns, instruction_prompt, text_of
from plumbline.data.row import Reject, Row

FIELDS = "instruction, output, optional input, history, system"


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has an instruction and one output."""
    return "instruction" in record and "output" in record and not isinstance(record["output"], list)


def convert(record: dict[str, Any]) -> Row:
    """One user turn (instruction, blank line, input) and the answer.

    Raises:
        Reject: an empty instruction or answer, or a field that is not text.
    """
    for name in ("instruction", "output"):
        if name not in record:
            raise Reject("missing field", name)
    earlier = history_turns(record.get("history"), record.get("system"))
    prompt = instruction_prompt(record["instruction"], record.get("input"))
    chat = build_chat([*earlier, ("user", prompt), ("assistant", record["output"])])
    return Row({"messages": chat}, instruction=text_of(record["instruction"]))
