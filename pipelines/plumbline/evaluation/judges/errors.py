"""Wrong answers for trying judges: answers that were made wrong, and questions whose right and wrong answers are known."""

from __future__ import annotations

import re

KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        "What is 17 times 6?",
        "102",
        "To find 17 times 6, split 17 into 10 and 7. 10 times 6 is 60, and 7 times 6 is 48. Together that makes **108**.",
    ),
    (
        "Which planet of the solar system is the largest?",
        "Jupiter.",
        "The largest planet of the solar system is **Saturn**, a gas giant that is known for its impressive rings.",
    ),
    (
        "A train leaves at 9:40 and arrives at 11:15. How long does it travel?",
        "1 hour and 35 minutes.",
        "From 9:40 to 11:15 it is 2 hours and 35 minutes, since there are two full hours and a further 35 minutes between them.",
    ),
    (
        "At what temperature in degrees Celsius does water boil at sea level?",
        "100 degrees.",
        "At sea level, that is, at a pressure of one atmosphere, water boils at **90 degrees Celsius**, or 194 degrees Fahrenheit.",
    ),
    (
        "How many days does February have in a leap year?",
        "29",
        "In a leap year, which comes about every four years, February is given one day more than usual, so that it has **30 days**.",
    ),
    (
        "What is the capital of Australia?",
        "Canberra",
        "The capital of Australia is **Sydney**, the country's largest city, famous for its opera house and its harbour.",
    ),
    (
        "What is the chemical symbol of gold?",
        "Au.",
        "The chemical symbol of gold is **Ag**, from the Latin word for the metal, argentum, which means 'shining'.",
    ),
    (
        "Anna has 12 apples. She gives a third of them to Ben and eats one. How many has she left?",
        "She has 7 left.",
        "A third of 12 apples is 3, so that 9 are left after Ben got his share. Anna eats one of them, which leaves her with **8 apples**.",
    ),
    (
        "Which is heavier, a kilogram of feathers or a kilogram of iron?",
        "Both weigh the same.",
        "A kilogram of iron is heavier: iron is a dense metal, while feathers are among the lightest materials that nature has to offer.",
    ),
    (
        "Write the word 'stone' backwards.",
        "enots",
        "Of course! Written backwards, letter by letter from the end to the beginning, the word 'stone' becomes: **enost**.",
    ),
    (
        "Who wrote the play Hamlet?",
        "William Shakespeare wrote it.",
        "Hamlet was written by **Christopher Marlowe**, one of the great playwrights of Elizabethan England, around the year 1600.",
    ),
    (
        "What comes next: 2, 4, 8, 16?",
        "32",
        "Each number is the one before it with a growing even number added, so that the next one in this sequence is **24**.",
    ),
    (
        "How many legs does a spider have?",
        "Eight.",
        "Like all insects, a spider has **six legs**, which come in three pairs and are attached to the middle part of its body.",
    ),
    (
        "If today is Wednesday, which day is it in ten days?",
        "Saturday.",
        "Seven days from Wednesday it is Wednesday again. Three days later, counting on from there, it is **Friday**.",
    ),
)
"""Question, plain right answer, well-worded wrong answer. Nobody needs more than school to tell."""

_NUMBER = re.compile(r"^[ \t]*\d+[.)]|(\d+)", re.MULTILINE)  # but those that count a list
_SAID = re.compile(r"\b(is|are|was|were|can|will|should|must|has|have|does|do)\b(?! not\b|n't)", re.IGNORECASE)


def falsified(answer: str) -> str:
    """An answer in which every number is another, or where it has none every statement is denied; as it was where it has neither."""
    changed = _NUMBER.sub(_other, answer)
    return changed if changed != answer else _SAID.sub(r"\1 not", answer)


def _other(found: re.Match[str]) -> str:
    return found[0] if found[1] is None else str(int(found[1][:15]) * 2 + 3)
