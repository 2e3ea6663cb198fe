"""Every algorithm of `rlhf` on `builtin://skills`: `python benchmarks/reinforcement.py [--algorithms …] [--seeds 0 1 2]`.

The loop of the stage without Ray, in one thread: sampled reward at the first step, and how much processor time it takes until the mean of
four steps is 0.3 higher. The model is the built-in one with a LoRA that 40 steps of supervised tuning have taught the form of the answers.
Writes `benchmarks/results/reinforcement.json` and `.md`, in which algorithms that were not asked for stay as they are. Exit code 1 where the rise is not reached within 60 seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import RESULTS, lines_of, machine, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
LIMIT, STEPS = 60.0, 150


class Reached(Exception):
    """High enough."""


def measure(algorithm: str, seed: int) -> dict[str, Any]:
    """Reward at first and at the end, steps and processor seconds."""
    from support.reinforce import RISE, WINDOW, reinforce, spec_of, taught

    rewards: list[float] = []
    taught()
    began = time.process_time()

    def report(step: int, steps: int, metrics: dict[str, float]) -> None:
        rewards.append(metrics["reward"])
        over = time.process_time() - began > LIMIT
        if over or (len(rewards) > WINDOW and statistics.mean(rewards[-WINDOW:]) >= rewards[0] + RISE):
            raise Reached

    with contextlib.suppress(Reached):
        reinforce(spec_of(algorithm, seed, steps=STEPS), Path(tempfile.mkdtemp()), report=report)
    rise = statistics.mean(rewards[-WINDOW:]) - rewards[0]
    return {
        "algorithm": algorithm, "seed": seed, "first": round(rewards[0], 3), "rise": round(rise, 3), "steps": len(rewards),
        "seconds": round(time.process_time() - began, 1), "holds": rise >= RISE,
    }  # fmt: skip


def main() -> int:
    """Measure, write, and judge."""
    import torch

    from plumbline.api.stages.rlhf import ALGORITHMS
    from support.reinforce import RISE

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = []
    for algorithm in options.algorithms:
        for seed in options.seeds:
            table.append(measure(algorithm, seed))
            print(table[-1], flush=True)
    here = machine()
    known = json.loads(path.read_text())["table"] if (path := RESULTS / "reinforcement.json").exists() else []
    kept = [row for row in known if row["algorithm"] in set(ALGORITHMS) - set(options.algorithms)]
    table = sorted(kept + table, key=lambda row: (list(ALGORITHMS).index(row["algorithm"]), row["seed"]))
    words = f"Sampled reward rises by {RISE} within {LIMIT:g} seconds of one thread; {here}"
    page = f"# Reinforcement learning on builtin://skills\n\n{words}\n\n{lines_of(list(table[0]), table)}"
    write("reinforcement", {"machine": here, "table": table}, page)
    return 0 if all(row["holds"] for row in table) else 1


if __name__ == "__main__":
    sys.exit(main())
