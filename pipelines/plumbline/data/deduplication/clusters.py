"""Groups of rows that repeat each other, and which row of each stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Keep = Literal["first", "longest", "best"]


@dataclass(frozen=True)
class Duplicates:
    """Rows to drop.

    Attributes:
        dropped: (d,) int64, ascending.
        instead: (d,) int64: the row that stays in place of each.
    """

    dropped: np.ndarray
    instead: np.ndarray

    def sizes(self) -> dict[int, int]:
        """How many clusters there are of each size, the row that stays included."""
        _, drops = np.unique(self.instead, return_counts=True)
        sizes, clusters = np.unique(drops + 1, return_counts=True)
        return dict(zip(sizes.tolist(), clusters.tolist(), strict=True))

    def largest(self, count: int) -> list[list[int]]:
        """The rows of the largest clusters, each led by the row that stays; of equal ones the earlier first."""
        kept, drops = np.unique(self.instead, return_counts=True)
        chosen = kept[np.lexsort((kept, -drops))[:count]]
        return [[int(row), *self.dropped[self.instead == row].tolist()] for row in chosen]


def merge(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The groups after the groups of each pair became one (union-find, by connected components).

    Args:
        groups: (n,) int64: the least row of each row's group.
        pairs: (p, 2) rows.

    Returns:
        (n,) int64, in the same form.
    """
    if not len(pairs):
        return groups
    nodes, ends = np.unique(groups[pairs], return_inverse=True)
    ends = ends.reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(len(nodes), len(nodes)))
    count, part = connected_components(graph, directed=False)
    least = np.full(count, len(groups))
    np.minimum.at(least, part, nodes)
    renamed = np.arange(len(groups))
    renamed[nodes] = least[part]
    return renamed[groups]


def split(groups: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """The groups cut into rows of one kind each.

    Args:
        groups: (n,) int64: the least row of each row's group.
        kinds: (n,) of few values.

    Returns:
        (n,) int64, in the same form.
    """
    keys = np.stack([groups, kinds.astype(np.int64)], axis=1)
    _, least, number = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return least[number.ravel()]


def ranks(
    keep: Keep, lengths: np.ndarray, scores: np.ndarray | None = None, reference: np.ndarray | None = None
) -> np.ndarray:
    """How much each row is worth keeping: 0 is most.

    Args:
        keep: `first`: the earlier row. `longest`: the longer, then the earlier. `best`: the higher score, then the longer, then the
            earlier; a row without a score comes after all that have one.
        lengths: (n,) characters.
        scores: (n,) float, NaN where there is none; for `best`.
        reference: (n,) bool: rows of a set that others are compared against. They come first, because they always stay.

    Returns:
        (n,) int64, a permutation.
    """
    rows = np.arange(len(lengths))
    by: list[np.ndarray] = [rows]  # the last key counts most
    if keep in ("longest", "best"):
        by.append(-lengths)
    if keep == "best" and scores is not None:
        by.append(np.where(np.isnan(scores), np.inf, -scores))
    if reference is not None:
        by.append(~reference)
    rank = np.empty(len(rows), np.int64)
    rank[np.lexsort(by)] = rows
    return rank


def drop_repeats(groups: np.ndarray, rank: np.ndarray, reference: np.ndarray | None = None) -> Duplicates:
    """Of each group the row of least rank stays; reference rows always stay.

    Args:
        groups: (n,) int64: the least row of each row's group.
        rank: (n,) from `ranks`.
        reference: (n,) bool.
    """
    sizes = np.bincount(groups, minlength=len(groups))
    rows = np.flatnonzero(sizes[groups] > 1)
    rows = rows[np.lexsort((rank[rows], groups[rows]))]
    leads = np.flatnonzero(np.append(True, groups[rows][1:] != groups[rows][:-1])) if len(rows) else rows
    instead = np.repeat(rows[leads], sizes[groups[rows[leads]]])
    goes = rows != instead
    if reference is not None:
        goes &= ~reference[rows]
    rows, instead = rows[goes], instead[goes]
    order = np.argsort(rows)
    return Duplicates(rows[order], instead[order])
