"""Decisions about all rows together: each drops candidates with a reason, and tells the data card what it found."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plumbline.api.curation.decontamination import DecontaminateSpec
from plumbline.api.curation.deduplication import DeduplicateSpec, MinHashSpec, SemanticSpec
from plumbline.data.candidates import Candidates
from plumbline.data.decontamination.benchmarks import BenchmarkFiles
from plumbline.data.decontamination.findings import COLUMN, Findings
from plumbline.data.deduplication.clusters import Duplicates, drop_repeats, ranks, split
from plumbline.data.deduplication.exact import exact_groups
from plumbline.data.deduplication.key import key_texts
from plumbline.data.deduplication.minhash import settings_of
from plumbline.data.deduplication.near import near_duplicates
from plumbline.data.deduplication.semantic import semantic_duplicates
from plumbline.data.measured import Measure, Progress, gather
from plumbline.data.preparation import BORDER, SEPARATOR
from plumbline.data.row import COLUMNS
from plumbline.errors import InvalidInput

CLUSTERS_SHOWN = 5
ROWS_SHOWN = 4
EXCERPT = 200

Say = Callable[[str], None]


def deduplicate(
    candidates: Candidates,
    spec: DeduplicateSpec,
    own: int,
    seed: int,
    embed: Measure | None,
    say: Say,
    progress: Progress,
    where: str,
) -> dict[str, Any]:
    """Drop rows that repeat others: by their exact key, by words, by meaning, each among what the one before left.

    Args:
        candidates: with the facts `key`, `compared` and, for MinHash, `bands`.
        spec: the block of the stage.
        own: parts from this one on are only compared with.
        seed: of k-means.
        embed: rows → `embedding`; needed where the spec has `semantic`.
        say: progress in words.
        progress: told how much of a step is done.
        where: field path of the block, for messages.

    Returns:
        By method: pairs compared, clusters by size, the largest with excerpts. And what was compared with.

    Raises:
        InvalidInput: of the sets to compare with no row can be.
    """
    card: dict[str, Any] = {"against": _against(candidates, own, f"{where}.against")} if spec.against else {}
    if spec.exact:
        found = _repeats(candidates, spec, own, lambda kept: exact_groups(candidates.fact("key")[kept]))
        card["exact"] = _dropped(candidates, found, "duplicate", "exact")
    if spec.minhash is not None:
        say("comparing near-duplicates")
        card["minhash"] = _near(candidates, spec, spec.minhash, own, progress)
    if spec.semantic is not None and embed is not None:
        say("comparing meanings")
        card["semantic"] = _semantic(candidates, spec, spec.semantic, own, seed, embed, progress)
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
            candidates.drop(rows, f"contaminated: {name}", "decontaminate")
    return found


def _against(candidates: Candidates, own: int, where: str) -> dict[str, Any]:
    """What became of the records that rows are only compared with."""
    numbers = np.flatnonzero(candidates.fact("part") >= own)
    codes, counts = np.unique(candidates.reason_of(numbers), return_counts=True)
    fates = dict(zip([None, *candidates.reasons], np.bincount(codes, counts, len(candidates.reasons) + 1), strict=True))
    rows = int(fates.pop(None))
    dropped = {reason: int(count) for reason, count in fates.items() if count and reason is not None}
    if not rows:
        told = ", ".join(f"{count:,} as '{reason}'" for reason, count in dropped.items()) or "there are none"
        raise InvalidInput(
            f"{where}: none of its {len(numbers):,} records can be compared ({told}); give data that could be among the "
            "stage's sources, or leave it out"
        )
    return {"records": len(numbers), "rows": rows, "dropped": dropped}


def _kinds(candidates: Candidates, kept: np.ndarray) -> np.ndarray | None:
    """What rows that repeat each other must share beside their texts: of KTO's rows the label, since a prompt comes with a
    good answer and a bad one."""
    return candidates.fact("label")[kept] if "label" in COLUMNS[candidates.form] else None


def _repeats(
    candidates: Candidates, spec: DeduplicateSpec, own: int, groups: Callable[[np.ndarray], np.ndarray]
) -> Duplicates:
    kept = candidates.kept()
    reference = candidates.fact("part")[kept] >= own
    rank = ranks(spec.keep, candidates.fact("characters")[kept], candidates.fact("score")[kept], reference)
    found, kinds = groups(kept), _kinds(candidates, kept)
    return _numbered(drop_repeats(found if kinds is None else split(found, kinds), rank, reference), kept)


def _numbered(found: Duplicates, kept: np.ndarray) -> Duplicates:
    """In numbers of candidates."""
    return Duplicates(kept[found.dropped], kept[found.instead])


def _near(candidates: Candidates, spec: DeduplicateSpec, block: MinHashSpec, own: int, progress: Progress) -> dict[str, Any]:
    settings = settings_of(block)
    counts = {"bands": settings.bands, "rows": settings.rows, "similarity": settings.similarity}

    def groups(kept: np.ndarray) -> np.ndarray:
        bands = candidates.fact("bands")[kept].view(np.uint64)
        lengths, border = candidates.fact("compared")[kept], _border(candidates, kept, settings.bands)
        found = near_duplicates(
            bands, lengths, lambda rows: _texts(candidates, kept[rows], spec), settings, border, progress
        )
        counts.update(compared=found.compared, similar=found.similar)
        return found.groups

    found = _repeats(candidates, spec, own, groups)
    return counts | _dropped(candidates, found, "near-duplicate", "minhash")


def _border(candidates: Candidates, kept: np.ndarray, bands: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in `kept` of the rows that have a second set of bands, ascending; and these."""
    found, seen = [], 0
    for table in candidates.tables([BORDER]):
        column = table[BORDER].combine_chunks()
        found.append(np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)) + seen)
        seen += len(column)
    rows = np.intersect1d(np.concatenate(found), kept)
    hashes = b"".join(candidates.take(rows, [BORDER])[BORDER].to_pylist())
    return np.searchsorted(kept, rows), np.frombuffer(hashes, np.uint64).reshape(-1, bands)


def _semantic(
    candidates: Candidates,
    spec: DeduplicateSpec,
    block: SemanticSpec,
    own: int,
    seed: int,
    measure: Measure,
    progress: Progress,
) -> dict[str, Any]:
    kept = candidates.kept()
    reference = candidates.fact("part")[kept] >= own
    rank = ranks(spec.keep, candidates.fact("characters")[kept], candidates.fact("score")[kept], reference)
    embedded = measure(rows for _, rows in candidates.chunks(kept))
    with tempfile.TemporaryDirectory(prefix="embeddings-", dir=candidates.folder) as scratch:
        vectors = gather(embedded, len(kept), Path(scratch), progress)["embedding"]
        found = semantic_duplicates(
            vectors, block.similarity, rank, block.clusters, seed, reference, _kinds(candidates, kept)
        )
    words = "means the same as another"
    return {"similarity": block.similarity} | _dropped(candidates, _numbered(found, kept), words, "semantic")


def _texts(candidates: Candidates, rows: np.ndarray, spec: DeduplicateSpec) -> list[str]:
    return [SEPARATOR.join(key_texts(row, spec.key)) for row in candidates.rows(rows)]


def _dropped(candidates: Candidates, found: Duplicates, reason: str, method: str) -> dict[str, Any]:
    """Drop them; the card's words on it."""
    candidates.drop(found.dropped, reason, f"deduplicate.{method}")
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
