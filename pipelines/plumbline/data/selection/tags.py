"""Complexity-first diverse sampling by tags (InsTag, Lu et al. 2023, arXiv 2308.07074, algorithm 1)."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from plumbline.data.selection.budget import Budget
from plumbline.data.selection.choice import Choice

UNTAGGED = "no tag"
_NO_WORD = re.compile(r"[\W_]+")


def clean_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags with case folded and other signs than letters and digits as single spaces, each once (InsTag's rule
    aggregation, without stemming; C++ and C# keep their signs)."""
    folded = (tag.casefold().replace("+", " plus ").replace("#", " sharp ") for tag in tags)
    return tuple(dict.fromkeys(clean for tag in folded if (clean := _NO_WORD.sub(" ", tag).strip())))


def frequent_tags(tags: Sequence[tuple[str, ...]], min_count: int) -> list[tuple[str, ...]]:
    """Each row's tags without those of fewer than `min_count` rows."""
    counts = Counter(tag for of_row in tags for tag in of_row)
    return [tuple(tag for tag in of_row if counts[tag] >= min_count) for of_row in tags]


def choose_tags(tags: Sequence[tuple[str, ...]], tokens: np.ndarray, budget: Budget) -> Choice:
    """In rounds: rows with most tags first, of equal ones the first, each if it has a tag that no row of this round has.

    Within a round the next row is the earliest one left among the rows of tags that are still open, so a queue of tags
    finds it without going through all rows again.

    Args:
        tags: (n) of each row, each tag once.
        tokens: (n,) of each row.
        budget: how much to take.
    """
    counts = np.array([len(of_row) for of_row in tags], np.int64)
    order = np.argsort(-counts, kind="stable")
    holders: dict[str, list[int]] = {}  # tag → places in the order, descending, so that the earliest is popped first
    for place in range(int((counts > 0).sum()) - 1, -1, -1):
        for tag in tags[order[place]]:
            holders.setdefault(tag, []).append(place)
    gone = bytearray(len(tags))
    room, left = budget.rows, budget.tokens
    taken: list[int] = []
    while room and holders:
        queue = [(places[-1], tag) for tag, places in holders.items()]
        heapq.heapify(queue)
        covered: set[str] = set()
        while queue and room:
            place, tag = heapq.heappop(queue)
            if tag in covered:
                continue
            places = holders[tag]
            if gone[place]:
                places.pop()
                if places:
                    heapq.heappush(queue, (places[-1], tag))
                else:
                    del holders[tag]
                continue
            row = int(order[place])
            gone[place] = True
            if tokens[row] > left:
                heapq.heappush(queue, (place, tag))
                continue
            taken.append(row)
            covered.update(tags[row])
            room, left = room - 1, left - int(tokens[row])
    return Choice(np.sort(np.array(taken, np.int64)), {UNTAGGED: np.flatnonzero(counts == 0)})
