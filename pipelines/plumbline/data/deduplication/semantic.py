"""Rows that mean the same (SemDeDup, Abbas et al. 2023): near neighbours among the embeddings of a k-means cluster."""

from __future__ import annotations

import numpy as np

from plumbline.data.deduplication.clusters import Duplicates

BLOCK_SIMILARITIES = 1 << 24
"""Cosines that are held at a time (64 MB)."""
ROUNDING = 1e-5
"""Of cosines in float32, so that what is the same reaches a similarity of 1."""
ROWS_PER_CLUSTER = 1000
SAMPLE_PER_CLUSTER = 64
"""Rows a cluster that k-means is fitted on."""


def semantic_duplicates(
    embeddings: np.ndarray,
    similarity: float,
    rank: np.ndarray,
    clusters: int | None = None,
    seed: int = 0,
    reference: np.ndarray | None = None,
    kinds: np.ndarray | None = None,
) -> Duplicates:
    """Rows whose embedding is too near to that of a row that stays.

    Each dropped row is at least `similarity` near to the row that stays in its place, which is stricter than SemDeDup: there a row also goes
    because of one that goes itself. Pairs in different clusters are not seen.

    Args:
        embeddings: (n, d) of length 1; may be memory-mapped. A row of zeros is near to nothing.
        similarity: cosine from which on two rows mean the same.
        rank: (n,) from `ranks`: the row of lesser rank stays.
        clusters: of k-means; not given: one for 1,000 rows.
        seed: of k-means.
        reference: (n,) bool: rows that always stay.
        kinds: (n,) bool: rows of different kinds are not compared.
    """
    labels = _clusters(embeddings, clusters or max(1, round(len(embeddings) / ROWS_PER_CLUSTER)), seed)
    labels = labels if kinds is None else 2 * labels + kinds
    instead = np.full(len(embeddings), -1)
    order = np.lexsort((rank, labels))
    for rows in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        _drop_within(embeddings, rows, similarity, instead, reference)
    dropped = np.flatnonzero(instead >= 0)
    return Duplicates(dropped, instead[dropped])


def _drop_within(
    embeddings: np.ndarray, rows: np.ndarray, similarity: float, instead: np.ndarray, reference: np.ndarray | None
) -> None:
    """In order of rank, each row that is still there drops the later ones near it. Writes to `instead`.

    What is dropped is compared no more, so that a cluster of like rows costs little however large it is.
    """
    vectors = np.asarray(embeddings[rows], np.float32)
    while len(rows):
        height = max(1, BLOCK_SIMILARITIES // len(rows))
        near = vectors[:height] @ vectors.T >= similarity - ROUNDING
        for i in np.flatnonzero(np.count_nonzero(near, axis=1) > 1):
            if instead[rows[i]] >= 0:
                continue
            others = rows[i + 1 :][near[i, i + 1 :]]
            others = others[instead[others] < 0]
            instead[others if reference is None else others[~reference[others]]] = rows[i]
        left = instead[rows] < 0
        left[:height] = False
        rows, vectors = rows[left], vectors[left]


def _clusters(embeddings: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The nearest of k centroids for each row, (n,) int64; fitted on a sample, in one thread, so that it is repeatable."""
    if count == 1 or len(embeddings) <= count:
        return np.zeros(len(embeddings), np.int64)
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    size = min(len(embeddings), count * SAMPLE_PER_CLUSTER)
    sample = np.sort(np.random.default_rng(seed).choice(len(embeddings), size, replace=False))
    with threadpool_limits(1):
        fitted = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=4096).fit(
            np.asarray(embeddings[sample], np.float32)
        )
    centroids = fitted.cluster_centers_.astype(np.float32)
    bias = (centroids**2).sum(axis=1) / 2
    height = max(1, BLOCK_SIMILARITIES // count)
    blocks = (np.asarray(embeddings[i : i + height], np.float32) for i in range(0, len(embeddings), height))
    return np.concatenate([np.argmax(block @ centroids.T - bias, axis=1) for block in blocks])
