"""Reading what a teacher wrote in the form that it was asked for. No pattern passes the end of a line, so rubbish of a
million empty lines is read as fast as anything else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import zip_longest

from plumbline.data.row import Reject

# "9. ", "9) ", "**9.** ", and "9." or "9、" before a letter, as Chinese has it; not "9.5".
_ITEM = re.compile(r"^[#*\t ]*\d+[.)、．]\**(?:[\t ]+|(?=[^\s\d]))", re.MULTILINE)
_NO_INPUT = frozenset(("none", "no input", "noinput", "n/a", "not needed", "无"))
_MARKS = "<>()[]{}*_.\"'` \t\n"

Parts = list[tuple[str, str]]
"""Labelled parts in their order: (label in lower case, text)."""


def items(text: str, cut: bool) -> list[str]:
    """The items of a numbered list, each on one line.

    Args:
        text: holds the list.
        cut: the text was cut off: its last item becomes empty.

    Raises:
        Reject: there is no numbered list.
    """
    _, *found = _ITEM.split(text)
    if not found:
        raise Reject("no numbered list")
    lines = [_plain(" ".join(item.split())) for item in found]
    return [*lines[:-1], ""] if cut else [line for line in lines if line]


def parts(text: str, *labels: str) -> Parts:
    """The text after each label and its colon.

    Where labels come with the number of their item ("4. Output:"), one without is text, as in an example within an answer;
    where one alone does ("4. Instruction:", then "Output:"), this holds for that one.
    """
    label = rf"^[#*\t ]*(\d+[.)][*\t ]*)?({'|'.join(labels)})(?:[\t ]+\d+)?[*\t ]*[:：]\**"
    found = list(re.finditer(label, text, re.MULTILINE | re.IGNORECASE))
    numbered = {one[2].lower() for one in found if one[1]}
    found = [one for one in found if one[1] or (len(numbered) < 2 and one[2].lower() not in numbered)]
    return [
        (one[2].lower(), text[one.end() : after.start() if after else None].strip())
        for one, after in zip_longest(found, found[1:])
    ]


def records(found: Iterable[tuple[str, str]], first: str | None = None) -> list[Parts]:
    """Parts that belong together: a record begins with each part of the label `first`, by default of the label that it began with."""
    groups: list[Parts] = []
    for label, text in found:
        if not groups or label == (first or groups[-1][0][0]):
            groups.append([])
        groups[-1].append((label, text))
    return groups


def part(record: Parts, label: str) -> str:
    """The text of a part; empty where it is missing.

    Raises:
        Reject: it comes twice: where its text ends cannot be known.
    """
    texts = [text for name, text in record if name == label]
    if len(texts) > 1:
        raise Reject("a part comes twice", label)
    return texts[0] if texts else ""


def input_of(text: str) -> str:
    """The input of a task; empty where it says in words that there is none."""
    return "" if text.casefold().strip(_MARKS) in _NO_INPUT else text


def _plain(line: str) -> str:
    """The line without the marks that set all of it in bold."""
    bare = line.removeprefix("**").removesuffix("**")
    return line if "**" in bare else bare.strip()
