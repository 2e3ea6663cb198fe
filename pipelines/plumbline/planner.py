"""The plan Job of a cluster: `python -m plumbline.planner --generation G --attempt N`.

PLUMBLINE_RUN holds the AlignmentRun. What is outside is resolved, artifacts that are there are found, and all of it goes into
the run's ConfigMap. Exit codes: 0 done, 1 worth another attempt, 2 permanent (the run is wrong).
"""

from __future__ import annotations

import argparse
import base64
import binascii
import gzip
import json
import os
import sys
from collections.abc import Mapping

from plumbline.api.report import PlannedStage, PlanReport, plan_key, run_key
from plumbline.api.run import AlignmentRun
from plumbline.errors import InvalidInput, complain
from plumbline.plan import Plan, check_libraries, make_plan
from plumbline.run_file import validate_run
from plumbline.state import VARIABLE, State, failure_of, result_of

RUN = "PLUMBLINE_RUN"
COMPRESSED = "gz:"
MAX_BYTES = 768 * 1024  # of the 1 MiB that a ConfigMap holds; the rest is for the stages' reports


def read_run(environment: Mapping[str, str]) -> AlignmentRun:
    """The run in PLUMBLINE_RUN: JSON, or `gz:` and the base64 of its gzip.

    Raises:
        InvalidInput: there is none.
        InvalidRun: with every problem of the run.
    """
    text: str | bytes = environment.get(RUN, "")
    try:
        if isinstance(text, str) and text.startswith(COMPRESSED):
            text = gzip.decompress(base64.b64decode(text.removeprefix(COMPRESSED), validate=True))
        document = json.loads(text)
    except (ValueError, OSError, EOFError, binascii.Error) as error:
        raise InvalidInput(f"{RUN} holds no AlignmentRun: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInput(f"{RUN} holds no AlignmentRun, but a {type(document).__name__}")
    return validate_run(document)


def planned(plan: Plan) -> dict[str, PlannedStage]:
    """Every stage with its fingerprint and, where it is there, its artifact."""
    stages = {}
    for node in plan.graph.nodes:
        artifact = plan.artifact(node.name) if node.kind != "serve" else None
        stages[node.name] = PlannedStage(
            fingerprint=plan.fingerprints[node.name], result=result_of(artifact) if artifact else None
        )
    return stages


def reports(generation: int, attempt: int) -> dict[str, str]:
    """What goes into the ConfigMap when all is well.

    Raises:
        InvalidRun: the run is wrong, or something that it names does not exist.
        PlumblineError: something cannot be reached.
    """
    plan = make_plan(read_run(os.environ))
    plan.workspace.check_writable()
    stages = planned(plan)
    images = {stage.name: stage.cluster.image for stage in plan.run.spec.stages if stage.cluster}
    # A stage with an image of its own looks for its libraries itself.
    todo = [node for node in plan.graph.nodes if not stages[node.name].result and not images.get(node.name)]
    check_libraries(plan, todo)
    for name, stage in stages.items():
        print(f"{name:<30} {stage.fingerprint} {'cached' if stage.result else 'to do'}", flush=True)
    found = PlanReport(attempt=attempt, stages=stages)
    values = {
        run_key(generation): json.dumps(plan.to_json(), separators=(",", ":")),
        plan_key(generation): found.model_dump_json(by_alias=True, exclude_none=True),
    }
    size = sum(len(text.encode()) for text in values.values())
    if size > MAX_BYTES:
        raise InvalidInput(
            f"the run and its plan take {size // 1024} KiB and {MAX_BYTES // 1024} fit into a ConfigMap; "
            "shorten its Pod templates, or split the run"
        )
    return values


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m plumbline.planner", description="Plan one generation of a run.")
    parser.add_argument("--generation", type=int, required=True, help="metadata.generation of the run")
    parser.add_argument("--attempt", type=int, required=True, help="attempt number; a lower one gives way")
    options = parser.parse_args(arguments)
    key = plan_key(options.generation)
    try:
        state = State.from_environment()
        if state is None:
            raise InvalidInput(f"{VARIABLE} does not name the run's ConfigMap")
        code = 0
        try:
            values = reports(options.generation, options.attempt)
        except Exception as error:
            code = complain(error)
            failed = PlanReport(attempt=options.attempt, error=failure_of(error))
            values = {key: failed.model_dump_json(by_alias=True, exclude_none=True)}
        state.insist(key, options.attempt, values)
    except Exception as error:
        return complain(error)
    return code


if __name__ == "__main__":
    sys.exit(main())
