"""The quickstart's claims, measured: `python benchmarks/quickstart.py [--seeds 0 1 2]`.

For each seed (of the data, of supervised tuning and of reinforcement learning) one whole run from an empty workspace: wall
time, peak memory of all its processes (sum of proportional set sizes), exact match of base, sft and align on held-out
prompts with 95 % intervals. Then the same command again (all cached), and `plumbline --help`. Writes
`benchmarks/results/quickstart.json` and `.md`. Exit code 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from side_by_side import write

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "plumbline.cli"]
FILE = str(ROOT / "manifests" / "samples" / "quickstart.yaml")
LIMITS = {"wallSeconds": 360, "peakMemoryGB": 8, "cachedSeconds": 10, "helpSeconds": 0.5}


class MemoryWatch(threading.Thread):
    """Peak of the summed PSS of every process of a session tree, sampled once a second."""

    def __init__(self, marker: str) -> None:
        super().__init__(daemon=True)
        self.marker, self.peak, self.over = marker, 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(1.0):
            total = 0
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if self.marker.encode() in (process / "environ").read_bytes():
                        lines = (process / "smaps_rollup").read_text().splitlines()
                        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
                except OSError:
                    continue
            self.peak = max(self.peak, total)


def run(arguments: list[str], marker: str = "") -> tuple[float, str]:
    """Seconds and standard output; a failure shows what the command said."""
    began = time.monotonic()
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, env=os.environ | {"PLUMBLINE_BENCHMARK": marker}
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return time.monotonic() - began, done.stdout


def measure(seed: int) -> dict[str, Any]:
    """One seed, from nothing to the served model and again."""
    with tempfile.TemporaryDirectory(prefix="plumbline-benchmark-") as folder:
        stages = ("data.curate", "sft.sft", "align.rlhf")
        options = [FILE, "--workspace", folder, *(x for s in stages for x in ("--set", f"stages.{s}.seed={seed}"))]
        watch = MemoryWatch(folder)
        watch.start()
        try:
            wall, out = run(["run", *options, "--json"], folder)
            watch.over.set()
            events = [json.loads(line) for line in out.splitlines()]
            cached, _ = run(["run", *options, "--json"])
        finally:
            run(["stop", *options])
    report = next(event for event in events if event["event"] == "report")
    return {
        "seed": seed,
        "wallSeconds": round(wall, 1),
        "peakMemoryGB": round(watch.peak / 1024**2, 2),
        "cachedSeconds": round(cached, 2),
        "stageSeconds": {e["stage"]: round(e["seconds"], 1) for e in events if e["event"] == "finished"},
        "scores": {row["model"]: {key: row[key] for key in ("score", "low", "high", "n")} for row in report["rows"]},
        "verdict": report["verdict"],
    }


def broken_claims(result: dict[str, Any]) -> list[str]:
    """Which claims a result does not bear out."""
    scores = result["scores"]
    found = [f"{name} {result[name]} > {limit}" for name, limit in LIMITS.items() if name in result and result[name] > limit]
    if scores["sft"]["low"] <= scores["base"]["high"]:
        found.append("sft does not beat base beyond the interval")
    if scores["align"]["low"] <= scores["sft"]["high"]:
        found.append("align does not beat sft beyond the interval")
    return found


def markdown(results: list[dict[str, Any]], help_seconds: float) -> str:
    lines = [
        "# Quickstart, measured",
        "",
        f"`python benchmarks/quickstart.py` on {os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}.",
        "Exact match on held-out prompts, 95 % Wilson intervals; memory is the peak of all processes' summed PSS.",
        "",
        "| seed | base | sft | align | wall | memory | again, cached |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        cells = [
            f"{100 * s['score']:.1f} % ({100 * s['low']:.1f} – {100 * s['high']:.1f})"
            for s in (result["scores"][name] for name in ("base", "sft", "align"))
        ]
        lines.append(
            f"| {result['seed']} | {' | '.join(cells)} | {result['wallSeconds']:.0f} s | {result['peakMemoryGB']} GB "
            f"| {result['cachedSeconds']} s |"
        )
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in results[0]["stageSeconds"].items())
    return "\n".join([*lines, "", f"Stages of the first: {stages}. `plumbline --help`: {help_seconds:.2f} s.", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    help_seconds = min(run(["--help"])[0] for _ in range(5))
    results = []
    for seed in options.seeds:
        results.append(measure(seed))
        print(json.dumps(results[-1]), flush=True)
    record = {"command": "python benchmarks/quickstart.py", "helpSeconds": round(help_seconds, 3), "runs": results}
    write("quickstart", record, markdown(results, help_seconds))
    broken = [f"seed {result['seed']}: {claim}" for result in results for claim in broken_claims(result)]
    if help_seconds > LIMITS["helpSeconds"]:
        broken.append(f"plumbline --help took {help_seconds:.2f} s")
    print("\n".join(broken) or "every claim holds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
