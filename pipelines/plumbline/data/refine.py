"""Decisions about all rows together: each drops candidates with a reason, and tells the data card what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from plumbline.api.curation.decontamination import DecontaminateSpec
from plumbline.api.curation.deduplication import DeduplicateSpec, MinHashSpec, SemanticSpec
from plumbline.data.candidates import Candidates
from plumbline.data.decontamination.benchmarks import BenchmarkFiles
from plumbline.data.decontamination.findings import COLUMN, Findings
from plumbline.data.deduplication.clusters import Duplicates, drop_repeats, ranks
from plumbline.data.deduplication.exact import exact_groups
from plumbline.data.deduplication.key import key_texts
from plumbline.data.deduplication.minhash import settings_of
from plumbline.data.deduplication.near import near_duplicates
from plumbline.data.deduplication.semantic import semantic_duplicates
from plumbline.data.preparation import SEPARATOR
from plumbline.data.row import Row

CLUSTERS_SHOWN = 5
ROWS_SHOWN = 4
EXCERPT = 200

Say = Callable[[str], None]
Measure = Callable[[Iterator[list[Row]]], Iterator[dict[str, np.ndarray]]]
"""Chunks of rows → what models say of them: for each name → (rows of the chunk, …)."""


def deduplicate(
    candidates: Candidates, spec: DeduplicateSpec, own: int, seed: int, embed: Measure | None, say: Say
) -> dict[str, Any]:
    """Drop rows that repeat others: by their exact key, by words, by meaning, each among what the one before left.

    Args:
        candidates: with the facts `key`, `compared` and, for MinHash, `bands`.
        spec: the block of the stage.
        own: parts from this one on are only compared with.
        seed: of k-means.
        embed: rows → `embedding`; needed where the spec has `semantic`.
        say: progress in words.

    Returns:
        By method: pairs compared, clusters by size, the largest with excerpts.
    """
    card: dict[str, Any] = {}
    if spec.exact:
        found = _repeats(candidates, spec, own, lambda kept: exact_groups(candidates.fact("key")[kept]))
        card["exact"] = _dropped(candidates, found, "duplicate")
    if spec.minhash is not None:
        say("comparing near-duplicates")
        card["minhash"] = _near(candidates, spec, spec.minhash, own)
    if spec.semantic is not None and embed is not None:
        say("comparing meanings")
        card["semantic"] = _semantic(candidates, spec, spec.semantic, own, seed, embed)
    return card


def decontaminate(candidates: Candidates, spec: DecontaminateSpec, sets: Sequence[BenchmarkFiles], own: int) -> Findings:
    """Drop rows that hold a question of a benchmark, by the benchmark that each holds best.

    Args:
        candidates: with the column `contamination`, where there are sets.
        spec: the block of the stage.
        sets: what rows were compared with.
        own: parts from this one on are in no dataset.
    """
    found = Findings(sets, candidates.tables(["part", COLUMN]) if sets else (), own)
    if spec.action == "drop":
        for name, rows in found.rows_by_set().items():
            candidates.drop(rows, f"contaminated: {name}")
    return found


def _repeats(
    candidates: Candidates, spec: DeduplicateSpec, own: int, groups: Callable[[np.ndarray], np.ndarray]
) -> Duplicates:
    kept = candidates.kept()
    reference = candidates.fact("part")[kept] >= own
    rank = ranks(spec.keep, candidates.fact("characters")[kept], candidates.fact("score")[kept], reference)
    return _numbered(drop_repeats(groups(kept), rank, reference), kept)


def _numbered(found: Duplicates, kept: np.ndarray) -> Duplicates:
    """In numbers of candidates."""
    return Duplicates(kept[found.dropped], kept[found.instead])


def _near(candidates: Candidates, spec: DeduplicateSpec, block: MinHashSpec, own: int) -> dict[str, Any]:
    settings = settings_of(block)
    counts = {"bands": settings.bands, "rows": settings.rows, "similarity": settings.similarity}

    def groups(kept: np.ndarray) -> np.ndarray:
        bands = candidates.fact("bands")[kept].view(np.uint64)
        found = near_duplicates(
            bands, candidates.fact("compared")[kept], lambda rows: _texts(candidates, kept[rows], spec), settings
        )
        counts.update(compared=found.compared, similar=found.similar)
        return found.groups

    found = _repeats(candidates, spec, own, groups)
    return counts | _dropped(candidates, found, "near-duplicate")


def _semantic(
    candidates: Candidates, spec: DeduplicateSpec, block: SemanticSpec, own: int, seed: int, measure: Measure
) -> dict[str, Any]:
    kept = candidates.kept()
    embedded = measure(rows for _, rows in candidates.chunks(kept))
    vectors = np.concatenate([one["embedding"] for one in embedded])
    reference = candidates.fact("part")[kept] >= own
    rank = ranks(spec.keep, candidates.fact("characters")[kept], candidates.fact("score")[kept], reference)
    found = semantic_duplicates(vectors, block.similarity, rank, block.clusters, seed, reference)
    return {"similarity": block.similarity} | _dropped(candidates, _numbered(found, kept), "means the same as another")


def _texts(candidates: Candidates, rows: np.ndarray, spec: DeduplicateSpec) -> list[str]:
    return [SEPARATOR.join(key_texts(row, spec.key)) for row in candidates.rows(rows)]


def _dropped(candidates: Candidates, found: Duplicates, reason: str) -> dict[str, Any]:
    """Drop them; the card's words on it."""
    candidates.drop(found.dropped, reason)
    largest = [
        {
            "rows": len(cluster),
            "examples": [
                {"source": values["source"], "record": values["record"], "excerpt": excerpt}
                for values, excerpt in _shown(candidates, np.array(cluster[:ROWS_SHOWN]))
            ],
        }
        for cluster in found.largest(CLUSTERS_SHOWN)
    ]
    sizes = {str(size): count for size, count in sorted(found.sizes().items())}
    return {"dropped": len(found.dropped), "clusters": sizes, "largest": largest}


def _shown(candidates: Candidates, rows: np.ndarray) -> list[tuple[dict[str, Any], str]]:
    places = candidates.take(rows, ["source", "record"]).to_pylist()
    texts = [" / ".join(row.texts)[:EXCERPT] for row in candidates.rows(rows)]
    return list(zip(places, texts, strict=True))
