"""Answers that run on into the next generated task, and answers that were cut off."""

from __future__ import annotations

import re

# The list format that Alpaca's generation prompt asks for ("6. Instruction:"), and chat markers of Alpaca and FastChat.
_NEXT_TASK = re.compile(
    r"(?:^|\n)[^\S\n]*(?:\d{1,3}\s*\.[^\S\n]*Instruction[^\S\n]*:"
    r"|#{2,}[^\S\n]*(?:\d{1,3}\s*\.[^\S\n]*)?(?:Instruction|Human|User)\s*:)"
)
_FENCE = "```"

LEAST_ANSWER, LEAST_LINE = 200, 60
"""Characters; in shorter ones what looks cut is more often a short answer, a heading or a signature."""
_OPEN_END = re.compile(r"[\w,，、(（\[“\-–—$]$")
_ITEM = re.compile(r"\s*([-*•·+>#|]|\d{1,3}[.)]|[A-Za-z][.)]\s)")
_SENTENCE_END = re.compile(r"[^\W\d_A-Z]{2}[)\"'”’]*[.!?][\"')\]”’]*\s+\w|[。！？]\w")
_NO_PROSE = re.compile(r"[;{}=]|//|https?:\S+$|#\w+$|__$")
_UNFINISHED = re.compile(
    r"(?:[,，、(（\[“]|\b(?:a|an|the|of|to|in|on|at|by|for|with|from|and|or|but|that|which|who"
    r"|is|are|was|were|be|as|if|than|its|their))$",
    re.IGNORECASE,
)


def run_on(text: str) -> int | None:
    """Where an answer ends and the next generated task begins (13 of 42,000 Alpaca answers and more), or None.

    Returns:
        Length of the answer without what follows it and the rule before that; 0 where nothing comes before.
    """
    if "nstruction" not in text and "Human" not in text and "User" not in text:
        return None
    found = _NEXT_TASK.search(text)
    if found is None:
        return None
    before = text[: found.start()]
    lines = before.split("\n")
    while lines and not any(map(str.isalnum, lines[-1])):  # a rule between tasks: ##, ///, ***, ____
        lines.pop()
    kept = "\n".join(lines).rstrip()
    if _is_open(kept) and _FENCE in before[len(kept) :]:  # the rule was the end of a code block
        return before.index(_FENCE, len(kept)) + len(_FENCE)
    return len(kept)


def _is_open(text: str) -> bool:
    """Whether a code block is not closed."""
    is_open = False
    for line in map(str.strip, text.split("\n")) if _FENCE in text else ():
        if is_open:
            is_open = not (line.startswith(_FENCE) or line.endswith(_FENCE))
        else:
            is_open = line.startswith(_FENCE) and _FENCE not in line[len(_FENCE) :]
    return is_open


def is_cut_off(text: str) -> bool:
    """Whether an answer seems to have met a length limit: an open code block, or prose that stops within a sentence.

    A guess: prose means a last line that has a finished sentence before the unfinished one, or ends with a comma or
    with a word that something must follow (English). Lists, code, links and hash tags end as they like.
    """
    text = text.rstrip()
    if _is_open(text):
        return True
    last = text[text.rfind("\n") + 1 :]
    if len(text) < LEAST_ANSWER or len(last) < LEAST_LINE or not _OPEN_END.search(last) or _NO_PROSE.search(last):
        return False
    return bool(_UNFINISHED.search(last) or (_SENTENCE_END.search(last) and not _ITEM.match(last)))
