"""`plumbline score`: what stored outputs of a model are worth on a benchmark."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plumbline.evaluation.scoring.scored import Scored

BENCHMARKS = ("gsm8k", "humaneval", "ifeval", "mmlu")


def add_score(commands: argparse._SubParsersAction, epilog: str) -> None:  # type: ignore[type-arg]
    """Add the command."""
    text = "score stored outputs of a model on a benchmark"
    command = commands.add_parser("score", help=text, description=text.capitalize() + ".", epilog=epilog)
    command.add_argument("benchmark", choices=BENCHMARKS, help="which one")
    command.add_argument("file", metavar="FILE", help="what the model said: JSON, JSON lines or CSV, plain or compressed")
    command.add_argument(
        "--problems", metavar="FILE", help="the benchmark's own file, where FILE does not hold the questions"
    )
    command.add_argument("--json", action="store_true", help="JSON for programs, with every sample and why it failed")
    command.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="humaneval: for the tests of one sample (default: 3)"
    )
    command.add_argument(
        "--allow-unsandboxed",
        action="store_true",
        help="humaneval: run the model's programs even if this host cannot isolate them",
    )
    command.set_defaults(command=_score)


def _score(options: argparse.Namespace) -> int:
    from plumbline.errors import InvalidInput

    for name, value in (("FILE", options.file), ("--problems", options.problems)):
        if value == "":
            raise InvalidInput(f"{name} is empty; give a file")
    if options.timeout is not None and not 0 < options.timeout < float("inf"):
        raise InvalidInput(f"--timeout {options.timeout:g} is no time that tests could take; give seconds above 0")
    found = _scored(options)
    if options.json:
        models = [
            {
                "model": one.model or None,
                "metrics": {name: vars(estimate) for name, estimate in one.metrics.items()},
                "counts": one.counts,
                "groups": {name: vars(estimate) for name, estimate in one.groups.items()},
                "samples": [vars(sample) for sample in one.samples],
            }
            for one in found
        ]
        print(json.dumps({"benchmark": options.benchmark, "file": options.file, "models": models}))
        return 0
    for one in found:
        _print(one, groups=options.benchmark in ("ifeval", "mmlu"))
    return 0


def _scored(options: argparse.Namespace) -> list[Scored]:
    if options.benchmark == "humaneval":
        from plumbline.evaluation.scoring.humaneval import SECONDS, score_humaneval

        try:
            return score_humaneval(
                options.file, options.problems, options.timeout or SECONDS, options.allow_unsandboxed, _progress
            )
        finally:
            if sys.stderr.isatty():
                print("\r\033[K", end="", file=sys.stderr, flush=True)
    if options.benchmark == "gsm8k":
        from plumbline.evaluation.scoring.gsm8k import score_gsm8k as score
    elif options.benchmark == "ifeval":
        from plumbline.evaluation.scoring.ifeval import score_ifeval as score
    else:
        from plumbline.evaluation.scoring.mmlu import score_mmlu as score
    return score(options.file, options.problems)


def _progress(done: int, programs: int) -> None:
    """One line that is written over on a terminal, else a line every tenth of the way."""
    if sys.stderr.isatty():
        print(f"\r{done} of {programs} programs run", end="", file=sys.stderr, flush=True)
    elif done == programs or done * 10 // programs > (done - 1) * 10 // programs:
        print(f"{done} of {programs} programs run", file=sys.stderr, flush=True)


def _print(one: Scored, groups: bool) -> None:
    from plumbline.evaluation.scoring.records import printable

    if one.model:
        print(printable(f"{one.model}:"))
    width = max(map(len, one.metrics))
    for name, estimate in one.metrics.items():
        print(
            f"{name:<{width}}  {100 * estimate.value:6.2f} %   (95 %: {100 * estimate.low:.2f} – {100 * estimate.high:.2f} %, n = {estimate.n})"
        )
    for words, count in one.counts.items():
        print(f"  {words}: {count}")
    if groups:
        for name, estimate in one.groups.items():
            print(f"    {printable(name):<46} {100 * estimate.value:6.2f} %   of {estimate.n}")
