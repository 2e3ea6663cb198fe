"""Which rank works on which rows of a step: every row is tokenised once, and the ranks get like numbers of tokens."""

from __future__ import annotations

from collections.abc import Callable

from plumbline.training.batch import Sequence
from plumbline.training.world import World

Unit = list[Sequence]
"""The sequences of a row, which share a micro-batch."""


def encode_rows(world: World, rows: list[int], encode: Callable[[int], Unit | None]) -> list[Unit | None]:
    """The unit of each row, the same on every rank; each rank encodes its share of them."""
    own = [encode(row) for row in rows[world.rank :: world.size]]
    for row, unit in zip(rows[world.rank :: world.size], own, strict=True):
        for sequence in unit or []:
            sequence.row = row
    everyone = world.gather(own)
    return [everyone[place % world.size][place // world.size] for place in range(len(rows))]


def own_share(world: World, units: list[Unit]) -> list[Unit]:
    """This rank's units, in their order; together the ranks have each once."""
    return [units[i] for i in balanced([sum(len(s.ids) for s in unit) for unit in units], world.size)[world.rank]]


def balanced(sizes: list[int], parts: int) -> list[list[int]]:
    """Places of the sizes for each part, so that sums are alike: the largest first, to whom has least (Graham 1969)."""
    shares: list[list[int]] = [[] for _ in range(parts)]
    sums = [0] * parts
    for place in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = min(range(parts), key=lambda part: (sums[part], len(shares[part])))
        shares[least].append(place)
        sums[least] += sizes[place]
    return [sorted(share) for share in shares]
