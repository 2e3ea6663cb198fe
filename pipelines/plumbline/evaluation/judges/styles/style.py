"""What a judge is shown, and what makes a style."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from plumbline.data.row import Chat, Message
from plumbline.evaluation.judges.pairwise import Verdict
from plumbline.evaluation.judges.rating import REASONING, request_of

Answers = tuple[str, ...]
"""What one model answered, turn by turn."""


@dataclass(frozen=True)
class Case:
    """What models were asked, as a judge is shown it.

    Attributes:
        prompt: the turns before the first answer.
        turns: user turns that follow, each after an answer.
        references: a good answer to each turn; empty where there is none.
        rubric: what counts, completing the sentence "Rate …"; None: accuracy, helpfulness and completeness.
        context: what the instruction is about, where it is kept apart from it (Alpaca's `input`).

    Raises:
        ValueError: the references are not one a turn.
    """

    prompt: Chat
    turns: tuple[str, ...] = ()
    references: Answers = ()
    rubric: str | None = None
    context: str = ""

    def __post_init__(self) -> None:
        if self.references:
            self.told(self.references)

    def through(self, turn: int) -> Case:
        """The same up to the answer of a turn (1: the first), which is then the one that is judged."""
        return replace(self, turns=self.turns[: turn - 1], references=self.references[:turn])

    @property
    def instruction(self) -> str:
        """What was asked before the first answer, without the context."""
        return request_of(self.prompt)

    @property
    def request(self) -> str:
        """What was asked before the first answer."""
        return f"{self.instruction}\n\n{self.context}" if self.context else self.instruction

    @property
    def reference(self) -> str | None:
        """The reference answers, told as answers are."""
        return self.told(self.references) if self.references else None

    def told(self, answers: Answers) -> str:
        """An answer as it is shown: its text, or the conversation from the first answer on.

        Raises:
            ValueError: there is not one answer a turn.
        """
        if len(answers) != len(self.turns) + 1:
            raise ValueError(f"{len(self.turns) + 1} turns need as many answers; {len(answers)} are given")
        if not self.turns:
            return answers[0]
        later = [f"user: {turn}\nassistant: {answer}" for turn, answer in zip(self.turns, answers[1:], strict=True)]
        return "\n".join((f"assistant: {answers[0]}", *later))


@dataclass(frozen=True)
class Grading:
    """How a style grades one answer.

    Attributes:
        ask: case and answers → what the judge is asked.
        read: the grade in a reply, None where it has none that can be read. It closes the reply: one that was cut off has none.
        scale: the worst and the best grade.
    """

    ask: Callable[[Case, Answers], list[Message]]
    read: Callable[[str], float | None]
    scale: tuple[float, float]


@dataclass(frozen=True)
class Style:
    """How judges of a kind are asked and read.

    Attributes:
        compare: case, first and second answers → what the judge is asked.
        read: the verdict in a reply, told of the places; None where it has none that can be read, which is not a tie.
        opens: a verdict opens its reply, so that one that was cut off later still has it; else it closes the reply.
        grading: None for judges that only compare.
    """

    compare: Callable[[Case, Answers, Answers], list[Message]]
    read: Callable[[str], Verdict | None]
    opens: bool
    grading: Grading | None


def last_line(reply: str) -> str:
    """The line that a reply closes with, without what the model thought aloud."""
    return (REASONING.sub("", reply).strip().splitlines() or [""])[-1]


def without_headings(text: str, headings: Sequence[str]) -> str:
    """A text that cannot pass for a part of a prompt whose parts stand under `### HEADING:`; it keeps the words.

    For formats that a model was trained on, in which a mark of our own has no place.
    """
    return re.sub(rf"#{{2,}}[^\S\n]*(?=(?:{'|'.join(headings)})[^\S\n]*[:：(])", "", text, flags=re.IGNORECASE)
