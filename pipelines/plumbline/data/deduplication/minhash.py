"""MinHash signatures in bands (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from plumbline.api.curation.deduplication import MinHashSpec
from plumbline.data.deduplication.shingles import Shingling, count_words, mix, random_words, shingle

BLOCK_SHINGLES = 1 << 15
"""Shingles that are permuted at a time (4 bytes each), so that they stay in cache."""
MOST_PERMUTATIONS = 128
NOTHING = 0
"""The band hash of a text without shingles: it is like no other text."""
_SEED = 0xA0761D6478BD642F


@dataclass(frozen=True)
class MinHash:
    """Which texts count as near-duplicates, and how they are looked for.

    Attributes:
        similarity: Jaccard similarity of two sets of shingles from which on they are near-duplicates.
        bands: number of band hashes of a text; two texts are compared when any is equal.
        rows: minima in each.
        shingling: how texts become sets.
    """

    similarity: float = 0.8
    bands: int = 16
    rows: int = 6
    shingling: Shingling = field(default_factory=Shingling)

    def found(self, similarity: float) -> float:
        """The share of pairs with this similarity that are compared: 1 - (1 - s^rows)^bands."""
        return 1 - (1 - similarity**self.rows) ** self.bands


def settings_of(spec: MinHashSpec) -> MinHash:
    """The settings that a block of the spec asks for."""
    given = spec.bands and spec.rows and (spec.bands, spec.rows)
    bands, rows = given or choose_bands(spec.similarity, spec.recall)
    return MinHash(spec.similarity, bands, rows, Shingling(spec.ngram, spec.short_words, spec.short_ngram))


def choose_bands(similarity: float, recall: float) -> tuple[int, int]:
    """Bands and rows that compare at least `recall` of the pairs at exactly `similarity`, in at most 128 permutations.

    Of those that do, the most rows: the fewest pairs below the similarity are compared in vain.

    Raises:
        ValueError: no such choice; the similarity is too low, or the recall too high.
    """
    for rows in range(16, 0, -1):
        hit = similarity**rows
        bands = 1 if hit >= recall else math.ceil(math.log1p(-recall) / math.log1p(-hit))
        if bands * rows <= MOST_PERMUTATIONS:
            return bands, rows
    raise ValueError(
        f"similarity {similarity} is found with recall {recall} only by more than {MOST_PERMUTATIONS} permutations"
    )


def band_hashes(texts: Sequence[str], settings: MinHash) -> np.ndarray:
    """The band hashes of each text; two texts share one with probability s^rows, s being their Jaccard similarity.

    Returns:
        (n, bands) uint64; 0 in texts without shingles. The same whatever the batch.
    """
    hashes, offsets = shingle(texts, settings.shingling)
    return bands_of(minima(hashes, offsets, settings.bands * settings.rows), offsets, settings)


def border_hashes(texts: Sequence[str], settings: MinHash) -> tuple[np.ndarray, np.ndarray]:
    """The band hashes by characters of texts that have words enough to be compared by words, but so few that a near-duplicate
    may not.

    Returns:
        (k,) int64 which texts, ascending; (k, bands) uint64.
    """
    least = settings.shingling.short_words
    counts = count_words(texts)
    chosen = np.flatnonzero((counts >= least) & (counts < least / settings.similarity))
    by_characters = replace(settings, shingling=settings.shingling.of_characters)
    return chosen, band_hashes([texts[i] for i in chosen], by_characters)


def minima(hashes: np.ndarray, offsets: np.ndarray, permutations: int) -> np.ndarray:
    """The least permuted hash of each set that is not empty.

    Permutation k is x → a_k · x + b_k modulo 2^32, with a_k odd. Hashes that are evenly spread make it as good as a random one:
    the minima of two sets are equal with the probability of their Jaccard similarity.

    Args:
        hashes: (m,) uint32.
        offsets: (n + 1,) of the sets.
        permutations: how many.

    Returns:
        (permutations, sets not empty) uint32.
    """
    factors = (random_words(permutations, _SEED) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    shifts = (random_words(permutations, _SEED + 1) >> np.uint64(32)).astype(np.uint32)
    starts = offsets[:-1][np.diff(offsets) > 0]
    result = np.empty((permutations, len(starts)), np.uint32)
    cuts = np.unique(np.searchsorted(starts, np.arange(0, len(hashes) + BLOCK_SHINGLES, BLOCK_SHINGLES)))
    for first, last in itertools.pairwise(cuts):
        begin, end = starts[first], starts[last] if last < len(starts) else len(hashes)
        block, inside = hashes[begin:end], starts[first:last] - begin
        permuted = np.empty_like(block)
        for k in range(permutations):
            np.multiply(block, factors[k], out=permuted)
            np.add(permuted, shifts[k], out=permuted)
            np.minimum.reduceat(permuted, inside, out=result[k, first:last])
    return result


def bands_of(signatures: np.ndarray, offsets: np.ndarray, settings: MinHash) -> np.ndarray:
    """Signatures (bands · rows, sets not empty) as band hashes (n, bands) uint64."""
    rows = signatures.reshape(settings.bands, settings.rows, -1)
    weights = random_words(settings.rows, _SEED + 2) | np.uint64(1)
    hashes = np.full((len(offsets) - 1, settings.bands), NOTHING, np.uint64)
    filled = np.diff(offsets) > 0
    for band in range(settings.bands):
        sums = np.zeros(rows.shape[2], np.uint64)
        for row in range(settings.rows):
            sums += mix(rows[band, row].astype(np.uint64)) * weights[row]
        hashes[filled, band] = np.maximum(mix(sums), NOTHING + 1)
    return hashes
