"""How long a replica takes until its models have answered: `python benchmarks/cold_start.py [--repeats 5]`.

A new process does what a replica of Ray Serve does: it imports the application and loads one copy of the built-in model, or three, as an
evaluation with two baselines does. For three, once with `load` of all, whose processes begin together, and once one by one. The ways take
turns, a ratio is one of the same turn. Writes `benchmarks/results/cold_start.json` and `.md`. Exit code 1 if a claim does not hold. The
machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from side_by_side import judge, machine, ratio

PROGRAM = """
import json, resource, sys
import plumbline.serving.application
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.serving.chat import ServedModel
from plumbline.serving.models import load

used = resource.getrusage(resource.RUSAGE_SELF)
served = [ServedModel(f"model-{i}", ModelReference(TINY), max_tokens=8) for i in range(int(sys.argv[1]))]
models = load(served, 4) if sys.argv[2] == "together" else [load([one], 4)[0] for one in served]
print(json.dumps({"cpu": used.ru_utime + used.ru_stime, "megabytes": used.ru_maxrss / 1024}), flush=True)
for model in models:
    model.engine.close()
"""
ONE, TOGETHER, ONE_BY_ONE = "1", "3, begun together", "3, one by one"
WAYS = {ONE: ("1", "together"), TOGETHER: ("3", "together"), ONE_BY_ONE: ("3", "one by one")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    imports: list[dict[str, float]] = []
    for _ in range(options.repeats):
        for way, arguments in WAYS.items():
            began = time.perf_counter()
            with subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                imports.append(json.loads(process.stdout.readline()))
                seconds[way].append(time.perf_counter() - began)
            print(way, f"{seconds[way][-1]:.1f} s", flush=True)
    table = [{"models": way, "seconds": round(statistics.median(found), 1)} for way, found in seconds.items()]
    saved, spread = ratio(seconds[TOGETHER], seconds[ONE_BY_ONE])
    claim = f"three models begun together are there in {saved:.2f} ({spread}) of the time of one by one (below 0.9)"
    cpu, megabytes = (statistics.median(one[name] for one in imports) for name in ("cpu", "megabytes"))
    here = machine()
    head = (
        "A replica's start, from its process to its models' first tokens\n\n"
        f"The imports of the replica itself: {cpu:.1f} s of the processor, {megabytes:.0f} MB.\n\n{here}"
    )
    return judge("cold_start", head, ("models", "seconds"), table, [(saved < 0.9, claim)], machine=here, seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
