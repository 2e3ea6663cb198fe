"""10,000 pairwise judgments rated on one core: `python benchmarks/ratings.py`.

Drawn judgments (seeded) of 20 models, a fifth ties. Bradley–Terry with 1,000 bootstrap resamples by `plumbline.evaluation.ratings`, all
resamples at once with Newton's method; beside it the usual way, L-BFGS on the counted results of one resample after the other (SciPy),
which also gives the ratings to compare with. Then Elo over as many resampled orders, and the whole command, `plumbline rate`, from the
file to the JSON. CPU seconds, the least of three runs; one thread. Writes `benchmarks/results/ratings.json` and `.md`. Exit code 1 if a
rating differs by a hundredth of a point, or Bradley–Terry or the command takes 5 seconds.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # before NumPy comes in

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from side_by_side import judge, machine

from plumbline.evaluation.ratings.battles import Arena, Battle
from plumbline.evaluation.ratings.bradley_terry import CENTRE, POINTS, bradley_terry
from plumbline.evaluation.ratings.elo import elo

JUDGMENTS, MODELS, ROUNDS = 10_000, 20, 1_000
BUDGET = 5.0
NEAR = 0.01
RUNS = 3


def judgments() -> list[Battle]:
    draw = np.random.default_rng(0)
    strength = draw.normal(size=MODELS)
    found = []
    for _ in range(JUDGMENTS):
        one, other = draw.choice(MODELS, 2, replace=False)
        won = draw.random() < expit(strength[one] - strength[other])
        found.append(Battle(f"model-{one:02}", f"model-{other:02}", 0.5 if draw.random() < 0.2 else float(won)))
    return found


def one_after_the_other(arena: Arena) -> tuple[dict[str, float], float]:
    """Ratings, and the CPU seconds of all resamples."""
    rows, counts = np.unique(np.column_stack((arena.first, arena.second, arena.outcome)), axis=0, return_counts=True)
    first, second, outcome = rows[:, 0].astype(int), rows[:, 1].astype(int), rows[:, 2]

    def fit(weight: Any) -> Any:
        def loss(theta: Any) -> tuple[float, Any]:
            logit = theta[first] - theta[second]
            slope = weight * (expit(logit) - outcome)
            lost = outcome * np.logaddexp(0, -logit) + (1 - outcome) * np.logaddexp(0, logit)
            grown = np.bincount(first, slope, MODELS) - np.bincount(second, slope, MODELS)
            return float((weight * lost).sum()), grown

        return minimize(loss, np.zeros(MODELS), jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-7}).x

    theta = fit(counts.astype(float))
    ratings = dict(zip(arena.models, CENTRE + POINTS * (theta - theta.mean()), strict=True))
    began = time.process_time()
    for weight in np.random.default_rng(0).multinomial(len(arena), counts / len(arena), size=ROUNDS):
        fit(weight.astype(float))
    return ratings, time.process_time() - began


def least(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of the quickest of some runs, and what it gave."""
    runs = []
    for _ in range(RUNS):
        began = time.process_time()
        found = work()
        runs.append((time.process_time() - began, found))
    return min(runs, key=lambda run: run[0])


def command(file: Path) -> float:
    """CPU seconds of the command in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = ["rate", "--format", "battles", "--json", "--bootstrap", str(ROUNDS), str(file)]
    subprocess.run([sys.executable, "-m", "plumbline.cli", *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    battles = judgments()
    arena = Arena.of(battles)
    ours, ratings = least(lambda: bradley_terry(arena, ROUNDS, 0))
    elo_seconds, _ = least(lambda: elo(arena, ROUNDS, 0))
    expected, looped = one_after_the_other(arena)
    apart = float(max(abs(one.rating - expected[one.model]) for one in ratings))
    winners = {1.0: "model_a", 0.0: "model_b", 0.5: "tie"}
    with tempfile.TemporaryDirectory(prefix="plumbline-benchmark-") as folder:
        file = Path(folder) / "battles.jsonl"
        rows = ({"model_a": one.first, "model_b": one.second, "winner": winners[one.outcome]} for one in battles)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        whole = min(command(file) for _ in range(RUNS))
    table = [
        {"work": f"Bradley–Terry and {ROUNDS:,} resamples, plumbline", "seconds": round(ours, 2)},
        {"work": f"the same, L-BFGS for one resample after the other, {ROUNDS:,} resamples", "seconds": round(looped, 2)},
        {"work": f"Elo over {ROUNDS:,} resampled orders, plumbline", "seconds": round(elo_seconds, 2)},
        {"work": "`plumbline rate`: reading, win rates, both ratings, JSON", "seconds": round(whole, 2)},
    ]
    claims = [
        (ours < BUDGET, f"Bradley–Terry with {ROUNDS:,} resamples takes under {BUDGET:g} CPU seconds ({ours:.2f})"),
        (whole < BUDGET, f"and so does the whole command ({whole:.2f})"),
        (apart < NEAR, f"its ratings are L-BFGS's, within {NEAR:g} points ({apart:.4f})"),
    ]
    head = f"{JUDGMENTS:,} pairwise judgments of {MODELS} models rated\n\nCPU seconds on one core, the least of {RUNS} runs (L-BFGS: of one)."
    facts = {**machine(), "judgments": JUDGMENTS, "models": MODELS, "resamples": ROUNDS}
    return judge("ratings", head, ("work", "CPU seconds"), table, claims, **facts)


if __name__ == "__main__":
    sys.exit(main())
