"""Sampling beside training against one after the other: `python benchmarks/one_step_off.py [--repeats 3]`.

The loop of `rlhf` with a rollout actor of Ray, which has one core, and the trainer, which has another: `staleness: 1` against `staleness: 0`, on the
built-in model, GRPO with 32 prompts × 8 answers, and as many passes over them as make training about as long as sampling. Both take turns
in one process, on the same actor; a ratio is one of the same turn, of the steps after the first four. The time is the wall's: this one needs two idle cores.
Writes `benchmarks/results/one_step_off.json` and `.md`; exit code 1 if the claim does not hold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import judge, machine, ratio

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
LIMIT, WARM, PROMPTS, GROUP, ANSWER = 1.3, 4, 32, 8, 48
NAMES = {0: "synchronous", 1: "one step off"}


def measure(actors: list[Any], staleness: int, steps: int, epochs: int) -> dict[str, float]:
    """Seconds of a step, and for which share of it training waited: medians; answer tokens of a step."""
    from plumbline.api.stages.rlhf import RlhfOptimizerSpec, RlhfSpec, SamplingSpec
    from plumbline.rollout.engine import Request, Sampling
    from plumbline.rollout.pool import RolloutPool
    from support.reinforce import LONGEST, reinforce

    spec = RlhfSpec(
        staleness=staleness, steps=steps, prompts_per_step=PROMPTS, group_size=GROUP, epochs_per_step=epochs,
        max_length=LONGEST + ANSWER, sampling=SamplingSpec(max_tokens=ANSWER),
        optimizer=RlhfOptimizerSpec(learning_rate=1e-12),  # both loops sample and learn the same answers
    )  # fmt: skip
    marks: list[float] = []
    shares: list[float] = []
    tokens: list[float] = []

    def report(step: int, steps: int, metrics: dict[str, float]) -> None:
        marks.append(time.perf_counter())
        shares.append(metrics["rolloutShare"])
        tokens.append(metrics["answerTokens"] * PROMPTS * GROUP)

    def pool(config: dict[str, Any], prompt: tuple[int, ...]) -> RolloutPool:
        canary = Request("canary", prompt, Sampling(max_tokens=16))
        return RolloutPool(actors, config, canary, max_failures=3, stall_seconds=600, say=print)

    with tempfile.TemporaryDirectory() as store:
        reinforce(spec, Path(store), pool=pool, report=report)
    seconds = [after - before for before, after in zip(marks[WARM:], marks[WARM + 1 :], strict=False)]
    return {
        "secondsPerStep": statistics.median(seconds),
        "waiting": statistics.median(shares[WARM + 1 :]),
        "answerTokens": statistics.mean(tokens[WARM + 1 :]),
    }


def main() -> int:
    """Measure, write, and judge."""
    import ray
    import torch

    from plumbline.external import TINY
    from plumbline.models.reference import ModelReference
    from plumbline.rollout.pool import rollout_pool
    from support.reinforce import LONGEST, taught

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=1, help="passes over a step's answers")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    torch.set_num_threads(1)
    taught()
    runs: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    with rollout_pool(
        ModelReference(TINY), workers=1, trainers=1, answers=PROMPTS * GROUP, max_length=LONGEST + ANSWER, colocated=False
    ) as (actors, _):
        for _ in range(options.repeats):
            for staleness, found in runs.items():
                found.append(measure(actors, staleness, options.steps, options.epochs))
                print(NAMES[staleness], found[-1], flush=True)
    ray.shutdown()
    times, spread = ratio(*([one["secondsPerStep"] for one in found] for found in runs.values()))
    table = [
        {"loop": NAMES[staleness], **{key: round(statistics.median(one[key] for one in found), 3) for key in found[0]}}
        for staleness, found in runs.items()
    ]
    here = machine()
    words = f"Sampling beside training\n\n{options.steps} steps, {options.epochs} passes, medians of {options.repeats} turns; {here}"
    claim = f"with one core for sampling and one for training, one step off is {times:.2f} ({spread}) times as fast as synchronous (at least {LIMIT})"
    columns = ("loop", "seconds per step", "share of a step that training waits", "answer tokens of a step")
    same = table[0]["answerTokens"] == table[1]["answerTokens"]
    claims = [(times >= LIMIT, claim), (same, "both sample and learn the same number of tokens")]
    return judge("one_step_off", words, columns, table, claims, machine=here)


if __name__ == "__main__":
    sys.exit(main())
