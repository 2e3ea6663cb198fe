"""What rows and benchmarks have in common, over all rows: which rows to drop, and which questions occurred."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plumbline.api.curation.decontamination import DecontaminateSpec
from plumbline.data.decontamination.benchmarks import BenchmarkFiles
from plumbline.data.decontamination.index import HITS, Index
from plumbline.data.deduplication.shingles import offsets_of
from plumbline.data.rows import Annotation

COLUMN = "contamination"
FILE = "contamination.json"
"""Name of the report in the artifact of a dataset."""
SCHEMA_VERSION = 1


def checks(sets: Sequence[BenchmarkFiles], spec: DecontaminateSpec) -> tuple[Annotation, ...]:
    """The column of working tables that tells which questions a row holds; none where there is nothing to compare with."""
    if not sets:
        return ()
    index = Index.build((question for one in sets for question in one.items), spec)
    return (Annotation(pa.field(COLUMN, HITS), index.annotate),)


class Findings:
    """All hits: twelve bytes and a row number each.

    Args:
        sets: what rows were compared with, in the order in which the index was built.
        tables: of all rows in order, with the columns `contamination` and `part`.
        own: rows of parts from this one on are in no dataset, and do not count.
    """

    def __init__(self, sets: Sequence[BenchmarkFiles], tables: Iterable[pa.Table], own: int) -> None:
        self._sets = sets
        sizes = np.array([len(one.items) for one in sets], np.int64)
        self._set_of = np.repeat(np.arange(len(sets)), sizes)
        self._first = offsets_of(sizes)
        rows, items, covers, seen = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)], 0
        for table in tables:
            part = table["part"].to_numpy()
            column = table[COLUMN].combine_chunks()
            row = pc.list_parent_indices(column).to_numpy()
            hits = column.flatten()
            counted = part[row] < own
            rows.append(row[counted] + seen)
            items.append(hits.field("item").to_numpy()[counted].astype(np.int64))
            covers.append(hits.field("cover").to_numpy()[counted].astype(np.float64))
            seen += table.num_rows
        self._rows, self._items, self._covers = np.concatenate(rows), np.concatenate(items), np.concatenate(covers)

    def rows_by_set(self) -> dict[str, np.ndarray]:
        """Name of the benchmark → numbers of the rows that hold a question of it better than of any other, ascending."""
        order = np.lexsort((self._items, -self._covers, self._rows))
        rows, sets = self._rows[order], self._set_of[self._items[order]]
        best = np.append(True, rows[1:] != rows[:-1])[: len(rows)]
        return {one.name: rows[best & (sets == i)] for i, one in enumerate(self._sets)}

    def report(self, spec: DecontaminateSpec, kept: np.ndarray) -> dict[str, Any]:
        """`contamination.json`: the rule, and for each benchmark which questions occurred in how many rows.

        Args:
            spec: the rule.
            kept: (m,) numbers of the rows that are in the dataset.
        """
        stays = np.isin(self._rows, kept)
        return {
            "schemaVersion": SCHEMA_VERSION,
            "action": spec.action,
            "rule": spec.model_dump(mode="json", by_alias=True, include=RULE),
            "benchmarks": [self._benchmark(i, one, stays) for i, one in enumerate(self._sets)],
        }

    def _benchmark(self, ordinal: int, one: BenchmarkFiles, stays: np.ndarray) -> dict[str, Any]:
        mine = self._set_of[self._items] == ordinal
        rows, items, covers, stays = self._rows[mine], self._items[mine], self._covers[mine], stays[mine]
        touched, number = np.unique(items, return_inverse=True)
        best = np.zeros(len(touched))
        np.maximum.at(best, number, covers)
        counts, left = np.bincount(number, minlength=len(touched)), np.bincount(number[stays], minlength=len(touched))
        return {
            "name": one.name,
            "benchmark": one.benchmark,
            "uri": one.uri,
            "identity": one.identity,
            "items": len(one.items),
            "touched": len(touched),
            "left": int((left > 0).sum()),
            "rows": len(np.unique(rows)),
            "rowsLeft": len(np.unique(rows[stays])),
            "touchedItems": {
                one.items[item - self._first[ordinal]].id: {"cover": round(float(c), 3), "rows": int(n), "rowsLeft": int(k)}
                for item, c, n, k in zip(touched, best, counts, left, strict=True)
            },
        }


RULE = {"cover", "ngram", "characters", "code_tokens", "turns"}


def write_report(report: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write `contamination.json` into an artifact; what the data card shows of it: all but the single questions."""
    (folder / FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report | {"benchmarks": [{k: v for k, v in one.items() if k != "touchedItems"} for one in report["benchmarks"]]}
