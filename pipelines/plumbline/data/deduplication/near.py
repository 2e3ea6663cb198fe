"""Near-duplicates: rows that share a band hash are compared by the exact Jaccard similarity of their shingles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from plumbline.data.deduplication.clusters import merge
from plumbline.data.deduplication.minhash import NOTHING, MinHash
from plumbline.data.deduplication.shingles import Shingling, offsets_of, shingle, spans

REACH = 8
"""Within a bucket a row is compared with the next 8 in order of length, unless they are in one group already. So every pair of a
bucket of 9 is covered, and a bucket of any size costs at most 8 comparisons a row."""
CHUNK_CHARACTERS = 1 << 22
LEAST_CHARACTERS = 256
"""What a pair counts for at least, so that a chunk of tiny texts is bounded too."""

TextOf = Callable[[np.ndarray], Sequence[str]]
"""The texts of some rows: (k,) int64, ascending → k texts, the same that went into the band hashes."""


@dataclass(frozen=True)
class Near:
    """What was found.

    Attributes:
        groups: (n,) int64: the least row of each row's group of near-duplicates.
        compared: pairs whose similarity was computed.
        similar: pairs among them at or above the threshold.
    """

    groups: np.ndarray
    compared: int
    similar: int


def near_duplicates(
    bands: np.ndarray,
    lengths: np.ndarray,
    text_of: TextOf,
    settings: MinHash,
    border: tuple[np.ndarray, np.ndarray] | None = None,
    progress: Callable[[int, int], object] = lambda done, of: None,
) -> Near:
    """Connected components of the rows that are similar enough.

    Two rows are compared by characters where one of them has few words. Works band by band in O(n) memory beside `bands`. The
    result depends on nothing but the texts and their order.

    Args:
        bands: (n, bands) uint64, from `band_hashes`.
        lengths: (n,) characters of the texts.
        text_of: fetches texts.
        settings: the threshold and the shingles.
        border: from `border_hashes`, of all texts.
        progress: told how many bands are done, of how many.
    """
    n, groups, refused = len(bands), np.arange(len(bands)), [np.empty(0, np.int64)]
    border_rows, border_bands = border or (np.empty(0, np.int64), bands[:0])
    # A row of the border is entered twice: as all are, and by its characters.
    row_of = np.append(np.arange(n), border_rows)
    compared = similar = 0
    for band in range(bands.shape[1]):
        hashes = np.append(bands[:, band], border_bands[:, band])
        entries, bucket = _unsettled(hashes, groups[row_of], lengths[row_of])
        for distance in range(1, REACH + 1):
            met = _neighbours(entries, bucket, groups[row_of], distance)
            met = met[(met < n).any(axis=1)]  # two of the border are compared by words
            pairs, by_characters = np.sort(row_of[met], axis=1), (met >= n).any(axis=1)
            keys = pairs[:, 0] * len(bands) + pairs[:, 1]
            new = ~np.logical_or.reduce([_among(keys, earlier) for earlier in refused])
            pairs, keys, by_characters = pairs[new], keys[new], by_characters[new]
            if not len(pairs):
                continue
            alike = np.empty(len(pairs), bool)
            for which, how in ((~by_characters, settings.shingling), (by_characters, settings.shingling.of_characters)):
                if which.any():
                    alike[which] = similarities(pairs[which], lengths, text_of, how) >= settings.similarity
            groups = merge(groups, pairs[alike])
            refused.append(np.sort(keys[~alike]))
            compared, similar = compared + len(pairs), similar + int(alike.sum())
        refused = [np.sort(np.concatenate(refused))]
        progress(band + 1, bands.shape[1])
    return Near(groups, compared, similar)


def similarities(pairs: np.ndarray, lengths: np.ndarray, text_of: TextOf, how: Shingling) -> np.ndarray:
    """The Jaccard similarity of each pair's sets of shingles, at most about 4 million characters at a time.

    Args:
        pairs: (p, 2) rows.
        lengths: (n,) characters of all rows.
        text_of: fetches texts.
        how: the shingles.

    Returns:
        (p,) float64.
    """
    load = np.cumsum(np.maximum(lengths[pairs].sum(axis=1), LEAST_CHARACTERS))
    cuts = np.flatnonzero(np.diff(load // CHUNK_CHARACTERS)) + 1
    return np.concatenate([_jaccard(part, text_of, how) for part in np.split(pairs, cuts)])


def _unsettled(hashes: np.ndarray, groups: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entries of the buckets that hold more than one group, by bucket and length; and their buckets."""
    order = np.argsort(hashes)
    value, group = hashes[order], groups[order]
    apart = (value[1:] == value[:-1]) & (group[1:] != group[:-1]) & (value[1:] != NOTHING)
    rows = np.sort(order[_among(value, value[1:][apart])])
    order = np.lexsort((lengths[rows], hashes[rows]))  # stable: rows of equal length stay in order
    return rows[order], hashes[rows[order]]


def _neighbours(rows: np.ndarray, bucket: np.ndarray, groups: np.ndarray, distance: int) -> np.ndarray:
    """Pairs of entries so far apart in one bucket, and not in one group: (p, 2)."""
    first, second = rows[:-distance], rows[distance:]
    asked = (bucket[:-distance] == bucket[distance:]) & (groups[first] != groups[second])
    return np.stack([first[asked], second[asked]], axis=1)


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Whether each value is in a sorted array."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    return ascending[np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)] == values


def _jaccard(pairs: np.ndarray, text_of: TextOf, how: Shingling) -> np.ndarray:
    rows, ends = np.unique(pairs, return_inverse=True)
    ends = ends.reshape(-1, 2)
    hashes, offsets = shingle(text_of(rows), how)
    # One 64-bit key holds the set and the shingle: one sort finds what is repeated within each set, and within each pair.
    keys = np.sort(np.repeat(np.arange(len(rows), dtype=np.uint64) << np.uint64(32), np.diff(offsets)) | hashes)
    keys = keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys
    sizes = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(rows))
    starts, members = offsets_of(sizes)[:-1], keys & np.uint64(0xFFFFFFFF)

    flat = ends.ravel()
    number = np.repeat(np.arange(len(flat), dtype=np.uint64) >> np.uint64(1), sizes[flat])
    both = np.sort((number << np.uint64(32)) | members[spans(starts[flat], sizes[flat])])
    common = (both[1:][both[1:] == both[:-1]] >> np.uint64(32)).astype(np.int64)
    shared = np.bincount(common, minlength=len(pairs))
    union = sizes[ends].sum(axis=1) - shared
    return shared / np.maximum(union, 1)
