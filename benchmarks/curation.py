"""The whole `curate` stage from 10,000 to a million rows: `python benchmarks/curation.py --records FILE [--rows 10000 100000 1000000]`.

Alpaca-like records are repeated with seeded edits as in `deduplication.py` (copies near and far), and curated by `plumbline run`
with language, PII, repetition and refusal filters, MinHash deduplication and decontamination against a benchmark (`--benchmark`, GSM8K
JSONL). Time of the stage, peak memory of all processes (summed PSS, Ray and its object store included) and Ray's fixed cost (a stage of
100 rows) are reported. Writes `benchmarks/results/curation.json` and `.md`. Exit code 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from deduplication import COPIES, NEAR_SHARE, edited
from quickstart import MemoryWatch, run
from side_by_side import json_lines, write

LIMITS = {"growthFor10x": 10.5, "peakMemoryGB": 4.0}
FIXED_ROWS = 100
RUN = """
apiVersion: plumbline.dev/v1alpha1
kind: AlignmentRun
metadata: {{name: curation}}
spec:
  model: {{base: "builtin://tiny"}}
  workspace: {{uri: {workspace}}}
  stages:
    - name: data
      curate:
        sources: [{{uri: {records}}}]
        filters: {{language: {{keep: [en]}}, pii: {{}}, repetition: {{}}, refusals: {{}}}}
        deduplicate: {{key: chat, minhash: {{}}}}
        parallelism: 2
    - name: check
      evaluate: {{tasks: [{{name: sums, benchmark: {kind}{benchmark}}}]}}
"""


def write_records(source: Path, rows: int, target: Path) -> None:
    """Records of the source, then edited copies of their outputs."""
    import random

    loaded = list(json_lines(source))
    draw = random.Random(20)
    loaded = draw.sample(loaded, min(len(loaded), max(1, rows // (COPIES + 1))))
    with target.open("w", encoding="utf-8") as out:
        for number in range(rows):
            record = dict(loaded[number % len(loaded)])
            words = record["output"].split()
            if number >= len(loaded) and len(words) > 20:
                record["output"] = " ".join(edited(words, draw.random() < NEAR_SHARE, number, draw))
            elif number >= len(loaded):
                record["instruction"] += f" ({number})"
            out.write(json.dumps(record) + "\n")


def measure(source: Path, rows: int, benchmark: Path | None) -> dict[str, Any]:
    """One curation in a fresh workspace."""
    with tempfile.TemporaryDirectory(prefix="plumbline-benchmark-") as folder:
        records, file = Path(folder) / "records.jsonl", Path(folder) / "run.yaml"
        write_records(source, rows, records)
        kind, uri = ("gsm8k", f", uri: {benchmark}") if benchmark else ("skills", "")
        file.write_text(RUN.format(workspace=f"{folder}/workspace", records=records, kind=kind, benchmark=uri))
        watch = MemoryWatch(folder)
        watch.start()
        wall, out = run(["run", str(file), "--until", "data", "--json"], folder)
        watch.over.set()
        events = [json.loads(line) for line in out.splitlines()]
        finished = next(event for event in events if event["event"] == "finished")
        manifest = json.loads(next(Path(folder).glob("workspace/artifacts/curate/*/manifest.json")).read_text())
        return {
            "rows": rows,
            "megabytes": round(records.stat().st_size / 1e6, 1),
            "seconds": round(finished["seconds"], 1),
            "wallSeconds": round(wall, 1),
            "rowsPerSecond": round(rows / finished["seconds"]),
            "peakMemoryGB": round(watch.peak / 1024**2, 2),
            "kept": manifest["metrics"]["rows"],
        }


def claims(results: list[dict[str, Any]]) -> dict[str, bool]:
    """From the second smallest on, because the smallest is Ray's fixed cost."""
    sized = results[1:]
    growth = {
        f"{small['rows']:,} to {large['rows']:,} rows: time grows at most {LIMITS['growthFor10x'] / 10:g} times as much": (
            large["seconds"] / small["seconds"] <= LIMITS["growthFor10x"] / 10 * large["rows"] / small["rows"]
        )
        for small, large in itertools.pairwise(sized)
    }
    return growth | {f"at most {LIMITS['peakMemoryGB']:g} GB": sized[-1]["peakMemoryGB"] <= LIMITS["peakMemoryGB"]}


def page(results: list[dict[str, Any]], verdicts: dict[str, bool]) -> str:
    lines = [
        "# Curation, measured",
        "",
        f"`python benchmarks/curation.py` on {os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}: filters, "
        "MinHash deduplication and decontamination of edited Alpaca records; memory is the peak of all processes' summed PSS.",
        "",
        "| rows | MB | stage, s | rows/s | memory, GB | kept |",
        "|---|---|---|---|---|---|",
        *(
            f"| {one['rows']:,} | {one['megabytes']} | {one['seconds']} | {one['rowsPerSecond']:,} | {one['peakMemoryGB']} | {one['kept']:,} |"
            for one in results
        ),
        "",
        "The first line is the fixed cost of a stage: starting its program, Ray Data's first execution, and a data card.",
        "",
        *(f"- {'holds' if held else 'DOES NOT HOLD'}: {claim}" for claim, held in verdicts.items()),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True, help="Alpaca JSONL, also .gz")
    parser.add_argument("--benchmark", type=Path, help="GSM8K JSONL to decontaminate against")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    results = []
    for rows in [FIXED_ROWS, *options.rows]:
        results.append(measure(options.records, rows, options.benchmark))
        print(json.dumps(results[-1]), flush=True)
    verdicts = claims(results)
    write("curation", {"runs": results, "claims": verdicts}, page(results, verdicts))
    print("\n".join(f"{'ok  ' if held else 'FAIL'} {claim}" for claim, held in verdicts.items()))
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
