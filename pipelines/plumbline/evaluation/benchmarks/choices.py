"""Choosing between given answers: by log-likelihood, or by the letter in a written reply."""

from __future__ import annotations

import math
import re
import string

from plumbline.evaluation.benchmarks.benchmark import Item, Score, likelihoods

LETTERS = string.ascii_uppercase
_JOINED = "[^\\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|['’-]"


def values_of(reply: str, count: int) -> list[float] | None:
    """The log-likelihood of each of `count` choices; None where the reply holds others than so many numbers."""
    try:
        values = likelihoods(reply)
    except (ValueError, TypeError):  # such as the empty reply to a prompt that is too long
        return None
    return values if len(values) == count and all(value < math.inf for value in values) else None  # nor NaN


def likeliest(values: list[float]) -> int | None:
    """The place of the highest value. Of equal ones none is a choice: a model that finds all the same would get credit for the first."""
    best = max(values)
    return values.index(best) if values.count(best) == 1 else None


def shares(values: list[float]) -> list[float] | None:
    """exp of the log-likelihoods, normalised to sum to 1; None where all are impossible."""
    best = max(values)
    if best == -math.inf:
        return None
    weights = [math.exp(value - best) for value in values]
    return [weight / sum(weights) for weight in weights]


def written_letter(reply: str, count: int) -> str | None:
    """The first of the first `count` capital letters that stands alone in the reply, or None. "I think …" is no choice; beside Chinese a
    letter stands alone."""
    letter = rf"(?<!{_JOINED})(?!I[ \t]+[a-z])[{LETTERS[:count]}](?!{_JOINED})"
    named = re.search(rf"(?:answer|choice|option)(?: is|:)[^A-Za-z\n]{{0,5}}({letter})", reply)
    # "A good question" names no choice; "A is right" does.
    found = re.search(rf"(?!A[ \t]+(?!is\b|was\b|and\b|or\b)[a-z])({letter})", reply)
    return named.group(1) if named else found.group(1) if found else None


def chosen_letter(reply: str, item: Item, count: int) -> str | None:
    """The letter of the likeliest choice, or the letter in a written reply where the item has no choices; None where there is none."""
    if not item.choices:
        return written_letter(reply, count)
    values = values_of(reply, count)
    best = None if values is None else likeliest(values)
    return None if best is None else LETTERS[best]


def score_letter(reply: str, item: Item, count: int) -> Score:
    """1 if the letter chosen is the item's reference."""
    letter = chosen_letter(reply, item, count)
    return Score(float(letter == item.reference), letter)
