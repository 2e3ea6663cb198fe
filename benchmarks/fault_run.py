"""Reinforcement learning under fire: `python benchmarks/fault_run.py [--steps 100]`.

The real command on a run whose `rlhf` stage has two rollout actors: once undisturbed; once while its rollout actors are killed ten times, its training
worker three times and the driver with all of Ray twice (SIGKILL, spread over the steps; the same command goes on); and once while only
trainers and drivers are killed, which must end bit for bit as the undisturbed run. Says of each whether every step's figures are there once, whether every
prompt was learned from once and in its turn, and what it cost. Writes `benchmarks/results/fault_run.json` and `.md`; exit code 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import judge, machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
ACTORS, TRAINERS, DRIVERS = 10, 3, 2
PROMPTS = 8
RUN = """
apiVersion: plumbline.dev/v1alpha1
kind: AlignmentRun
metadata: {name: faults}
spec:
  model: {base: "builtin://tiny"}
  workspace: {uri: WORKSPACE}
  stages:
    - name: data
      curate: {sources: [{uri: "builtin://skills", limit: 2000}]}
    - name: align
      rlhf:
        steps: STEPS
        promptsPerStep: PROMPTS
        groupSize: 4
        maxLength: 96
        sampling: {maxTokens: 24}
        rewards: [{type: overlong, bufferTokens: 20}, {type: regex, pattern: "[aeiou]"}]  # the base knows no answer
        optimizer: {learningRate: 1.0e-3}
        checkpoint: {everySteps: 5}
        rollout: {workers: 2}
"""


def below(driver: int, name: str) -> list[int]:
    """Processes of this name among the driver's descendants."""
    parents, named = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if name in (process / "cmdline").read_text():
                named.append(int(process.name))
        except OSError:
            continue

    def descends(process: int) -> bool:
        while process in parents and process != driver:
            process = parents[process]
        return process == driver

    return sorted(filter(descends, named))


def schedule(steps: int, actors: int, trainers: int, drivers: int) -> list[tuple[int, str]]:
    """(step, what is killed after it): each kind spread evenly, and two or more steps between two kinds in a hundred."""
    numbers = (("actor", actors), ("trainer", trainers), ("driver", drivers))
    return sorted(
        (steps * (2 * i + 1) // (2 * number) + kind * steps // 40, what)
        for kind, (what, number) in enumerate(numbers)
        for i in range(number)
    )


def measure(folder: Path, steps: int, plan: list[tuple[int, str]]) -> dict[str, Any]:
    """Run to the end, killing on the way: what is in the artifact, and what happened."""
    from support.embedded import Runs

    folder.mkdir()
    runs = Runs(folder)
    file = runs.file(RUN.replace("STEPS", str(steps)).replace("PROMPTS", str(PROMPTS)))
    left, killed = list(plan), {"actor": 0, "trainer": 0, "driver": 0}
    began, code, seen = time.monotonic(), -1, 0
    while code != 0:
        process = runs.start(file, "--no-serve")
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] != "progress" or event["stage"] != "align" or "step" not in event:
                continue
            seen += 1
            if left and event["step"] >= left[0][0]:
                what = left[0][1]
                found = (
                    [process.pid]
                    if what == "driver"
                    else below(process.pid, "RolloutActor" if what == "actor" else "RayTrainWorker")
                )
                if not found:  # on its way back from the last kill: the next report's turn
                    continue
                os.kill(found[killed[what] % len(found)], signal.SIGKILL)
                killed[what] += 1
                left.pop(0)
        _, errors = process.communicate()
        code = process.returncode
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"the run failed ({code}):\n{errors[-3000:]}")
    manifest = next(
        path
        for path in folder.glob("workspace/artifacts/*/*/manifest.json")
        if json.loads(path.read_text())["stage"] == "align"
    )
    rows = [json.loads(line) for line in (manifest.parent / "metrics.jsonl").read_text().splitlines()]
    adapter = next(
        facts["sha256"] for name, facts in json.loads(manifest.read_text())["files"].items() if name.endswith(".safetensors")
    )
    return {
        **{f"{what}sKilled": number for what, number in killed.items()}, "stepsReported": seen, "seconds": round(time.monotonic() - began),
        "rows": rows, "adapter": adapter,
    }  # fmt: skip


def main() -> int:
    """Measure, write, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    steps = options.steps
    plans = {
        "undisturbed": [],
        "all are killed": schedule(steps, ACTORS, TRAINERS, DRIVERS),
        "trainers and drivers are killed": schedule(steps, 0, TRAINERS, DRIVERS),
    }
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, plan) in enumerate(plans.items()):
            runs[name] = measure(Path(folder) / str(number), steps, plan)
            print(name, {key: value for key, value in runs[name].items() if key != "rows"}, flush=True)
    claims = []
    whole = runs["undisturbed"]
    learned = sum(row.get("gradNorm", 0) > 0 for row in whole["rows"])
    rise = statistics.mean(row["reward"] for row in whole["rows"][-10:]) - whole["rows"][0]["reward"]
    claims.append(
        (
            2 * learned > steps and rise > 0.3,
            f"undisturbed: {learned} of {steps} steps had something to learn, and the reward rose by {rise:.2f}",
        )
    )
    for name, run in runs.items():
        rows = run["rows"]
        figures = {"reward", "answerTokens", "promptsSoFar", "promptsDrawn"}  # of a step without anything to learn too
        complete = [row["step"] for row in rows] == list(range(1, steps + 1)) and all(row.keys() >= figures for row in rows)
        claims.append((complete, f"{name}: the figures of {len(rows)} of {steps} steps are there once each"))
        once = [(row["promptsSoFar"], row["promptsDrawn"]) for row in rows] == [
            (PROMPTS * (i + 1), PROMPTS) for i in range(steps)
        ]
        claims.append(
            (once, f"{name}: {PROMPTS} new prompts were learned from in each step, {rows[-1]['promptsSoFar']:g} in all")
        )
    for name, plan in plans.items():
        wanted = [sum(what == kind for _, what in plan) for kind in ("actor", "trainer", "driver")]
        counts = [runs[name][f"{what}sKilled"] for what in ("actor", "trainer", "driver")]
        claims.append(
            (counts == wanted, f"{name}: {counts[0]} actors, {counts[1]} trainers and {counts[2]} drivers were killed")
        )
    fewer = runs["trainers and drivers are killed"]
    same = fewer["rows"] == whole["rows"] and fewer["adapter"] == whole["adapter"]
    claims.append(
        (same, "trainers and drivers are killed: figures and weights are those of the undisturbed run, bit for bit")
    )
    table = [{"run": name, **{key: value for key, value in run.items() if key not in ("rows", "adapter")}, "lastReward": round(run["rows"][-1]["reward"], 3)} for name, run in runs.items()]  # fmt: skip
    words = (
        f"Reinforcement learning while its parts are killed\n\n{steps} steps of {PROMPTS} prompts × 4 answers; {machine()}"
    )
    columns = ("run", "actors killed", "trainers killed", "drivers killed", "steps reported", "seconds", "last reward")
    return judge("fault_run", words, columns, table, claims, machine=machine())


if __name__ == "__main__":
    sys.exit(main())
