"""One row on its way from a record to a dataset: content in one of six forms, and where it comes from. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict

Form = Literal["messages", "pairs", "rankings", "labels", "judgments", "text"]
"""What rows hold, in the columns that TRL reads: a chat; a prompt with a chosen and a rejected answer; a prompt with scored
answers; a prompt with one answer and whether it is good (KTO), or that and a judgment in words (CUT); plain text."""

COLUMNS: dict[Form, tuple[str, ...]] = {
    "messages": ("messages",),
    "pairs": ("prompt", "chosen", "rejected"),
    "rankings": ("prompt", "completions", "scores"),
    "labels": ("prompt", "completion", "label"),
    "judgments": ("prompt", "completion", "label", "judgment"),
    "text": ("text",),
}


class Message(TypedDict):
    """One turn; `role` is system, user or assistant."""

    role: str
    content: str


Chat = list[Message]
Content = dict[str, Any]
"""Values of a form's columns: chats, lists of chats (`completions`), floats (`scores`), a bool (`label`), a string (`text`, `judgment`)."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row that has not been dropped.

    Attributes:
        content: by column of the form.
        instruction: the bare instruction, where the record keeps an input or context apart from it.
        licence: as the source states it.
        language: ISO 639-1, where the record or a filter says it.
        category: the record's own (dolly's `category`, Super-NaturalInstructions' `Categories`), or `programming`.
        operations: what was done to it, in order: `turns` (some dropped), `html`, `split:2`, `redact:email`, …
        parents: ids of the rows that it was made from.
        teacher: the model that wrote the answer.
        score: reward, rating or judgment; higher is better.
    """

    content: Content
    instruction: str | None = None
    record_id: str | None = None
    licence: str | None = None
    language: str | None = None
    category: str | None = None
    operations: tuple[str, ...] = field(default=())
    parents: tuple[str, ...] = field(default=())
    teacher: str | None = None
    score: float | None = None

    def did(self, operation: str, **changes: Any) -> Row:
        """This row after an operation that changed it."""
        return replace(self, operations=(*self.operations, operation), **changes)

    @property
    def prompts(self) -> list[str]:
        """Texts of user turns, in order."""
        return [turn["content"] for turn in self._shared() if turn["role"] == "user"]

    @property
    def answers(self) -> list[str]:
        """Texts of the answers: all assistant turns of a chat, the alternatives of a preference, or the text itself."""
        if "text" in self.content:
            return [self.content["text"]]
        if "messages" in self.content:
            return [turn["content"] for turn in self.content["messages"] if turn["role"] == "assistant"]
        return [turn["content"] for chat in self._alternatives() for turn in chat]

    @property
    def texts(self) -> list[str]:
        """Every text of the row, in order."""
        if "text" in self.content:
            return [self.content["text"]]
        turns = [turn["content"] for chat in (self._shared(), *self._alternatives()) for turn in chat]
        return [*turns, self.content["judgment"]] if "judgment" in self.content else turns

    def mapped(self, change: Callable[[str], str]) -> Content:
        """The content with every text changed."""

        def chat(turns: Chat) -> Chat:
            return [{"role": turn["role"], "content": change(turn["content"])} for turn in turns]

        def value(name: str, old: Any) -> Any:
            match name:
                case "text" | "judgment":
                    return change(old)
                case "completions":
                    return [chat(one) for one in old]
                case "scores" | "label":
                    return old
                case _:
                    return chat(old)

        return {name: value(name, old) for name, old in self.content.items()}

    def _shared(self) -> Chat:
        chat: Chat = self.content.get("messages") or self.content.get("prompt") or []
        return chat

    def _alternatives(self) -> Iterator[Chat]:
        for name in ("chosen", "rejected", "completion"):
            if name in self.content:
                yield self.content[name]
        yield from self.content.get("completions", ())


class Reject(Exception):
    """A record, or a row, that is dropped.

    Attributes:
        reason: a fixed phrase of a few words; drops are counted by it.
        detail: what exactly, for the examples in the data card.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)
