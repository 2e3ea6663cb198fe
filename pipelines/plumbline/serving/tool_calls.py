"""Calls of tools in answers of the Hermes and Qwen form: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

Source: https://github.com/NousResearch/Hermes-Function-Calling. What only looks like a call stays text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from plumbline.serving.text import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Call:
    """A call. `arguments` is the text of a JSON object."""

    name: str
    arguments: str


class ToolCallReader:
    """Tells calls from text while an answer arrives. Space before a call, and at the end after one, is no text.

    Args:
        parallel: whether several calls are wanted; else all that comes after the first is left out.
    """

    def __init__(self, parallel: bool = True) -> None:
        self._parallel = parallel
        self._held = ""  # text that may be, or is, the beginning of a call, and the space before it
        self.calls = 0

    def push(self, text: str) -> list[str | Call]:
        """What is certain now: pieces of text and whole calls, in order."""
        return self._read(self._held + text, ended=False)

    def flush(self) -> list[str | Call]:
        """What was held back, now that nothing more comes; a last call may lack its end."""
        return self._read(self._held, ended=True)

    def _read(self, text: str, *, ended: bool) -> list[str | Call]:
        found: list[str | Call] = []
        self._held = ""
        while text and not (self.calls and not self._parallel):
            start = text.find(OPEN)
            if start < 0:
                said, self._held = (text, "") if ended else _certain(text)
                if said.strip() or not (self.calls and ended):
                    found += [said] if said else []
                break
            end = text.find(CLOSE, start)
            if end < 0 and not ended:
                said = text[:start].rstrip()
                found += [said] if said else []
                self._held = text[len(said) :]
                break
            stop, after = (end, end + len(CLOSE)) if end >= 0 else (len(text), len(text))
            call = read_call(text[start + len(OPEN) : stop])
            if call is None:
                found.append(text[:after])
            else:
                self.calls += 1
                found += [said] if (said := text[:start].rstrip()) else []
                found.append(call)
            text = text[after:]
        return found


def read_call(text: str) -> Call | None:
    """The call that the text between the marks is, None if it is none. `parameters` is what some models write for `arguments`."""
    try:
        value = json.loads(text)
        if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        (name + written).encode()  # JSON can name half a character, which cannot be sent
    except (ValueError, RecursionError):
        return None
    return Call(name, written) if isinstance(arguments, dict) else None


def _certain(text: str) -> tuple[str, str]:
    """Text that belongs to no call, and the rest: what may begin one, and the space before that."""
    said = text[: len(text) - overlap(text, OPEN)].rstrip()
    return said, text[len(said) :]
