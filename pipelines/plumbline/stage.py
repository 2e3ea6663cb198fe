"""The one program that every Ray job runs: `python -m plumbline.stage RUN.json STAGE`.

Exit codes: 0 done or cached, 1 worth another attempt, 2 permanent (wrong input), see `plumbline.errors`.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import signal
import sys
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path

from plumbline.api.base import BASE
from plumbline.artifacts import Artifact, ArtifactWriter
from plumbline.errors import EXIT_RETRYABLE, InvalidInput, PlumblineError, causes, disk_full, plain_cause
from plumbline.graph import Node
from plumbline.plan import Plan
from plumbline.progress import Reporter, file_sink


@dataclass(frozen=True)
class StageContext:
    """What a stage kind's `run(context, spec)` gets.

    Attributes:
        plan: the whole run, resolved.
        node: this stage and its wiring.
        inputs: role → artifacts, checked; a role filled by the base model has none.
        output: where to write files, metrics and details.
        checkpoints: folder URI that survives a killed attempt; removed once the artifact is whole.
        report: progress to the outside.
    """

    plan: Plan
    node: Node
    inputs: dict[str, list[Artifact]]
    output: ArtifactWriter
    checkpoints: str
    report: Reporter

    def input(self, role: str) -> Artifact | None:
        """The one artifact of a role, or None where the base model or nothing fills it."""
        artifacts = self.inputs.get(role, [])
        return artifacts[0] if artifacts else None


def run_stage(plan: Plan, name: str, report: Reporter, attempt: int | None = None) -> Artifact:
    """Do one stage, or find it done.

    Raises:
        PlumblineError: with a sentence for people.
        Fenced: a later attempt has taken over.
    """
    node = plan.graph[name]
    workspace, fingerprint = plan.workspace, plan.fingerprints[name]
    done = plan.artifact(name)
    if done is not None:
        return done
    workspace.check_writable()
    checkpoints = f"{workspace.uri}/checkpoints/{fingerprint}"
    with workspace.exclusive(fingerprint, lambda: report.say("waiting for another run that makes this artifact")):
        artifact = plan.artifact(name)
        if artifact is None:
            holder = uuid.uuid4().hex
            workspace.acquire(fingerprint, holder, attempt)
            inputs = {
                role: [_input(plan, name, parent) for parent in names if parent != BASE]
                for role, names in node.inputs.items()
            }
            program = importlib.import_module(str(node.spec.program))
            with workspace.create(
                kind=node.kind, fingerprint=fingerprint, stage=name, type=node.output, inputs=inputs, holder=holder
            ) as writer:
                program.run(StageContext(plan, node, inputs, writer, checkpoints, report), node.spec)
            artifact = plan.artifact(name)
            assert artifact is not None
        workspace.remove("checkpoints", fingerprint)
    return artifact


def _input(plan: Plan, stage: str, parent: str) -> Artifact:
    artifact = plan.artifact(parent)
    if artifact is None:
        raise PlumblineError(
            f"stage '{stage}' needs the artifact of '{parent}', which is not there yet; run '{parent}' first"
        )
    artifact.local()  # fetches and checks it now, rather than in the middle of the work
    return artifact


def die_with_parent(parent: int | None) -> None:
    """Let the kernel end this process when the driver that started it is gone, however it went (Linux).

    Args:
        parent: the driver's process id; if it is gone already, this process ends at once. None: live on without it.
    """
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL if parent is not None else 0)
        if parent is not None and os.getppid() != parent:
            sys.exit("error: the driver that started this is gone")


def follow_driver() -> None:
    """`die_with_parent`, if a driver started this process."""
    parent = os.environ.pop("PLUMBLINE_DIE_WITH_PARENT", None)
    if parent is not None:
        die_with_parent(int(parent))


def sentence(error: BaseException) -> tuple[str, int]:
    """An error as (words for people, exit code)."""
    known = plain_cause(error)
    if known is not None:
        return str(known), known.exit_code
    for cause in causes(error):
        if disk_full(cause):
            filename = getattr(cause, "filename", None)
            where = f" at {filename}" if filename else ""
            return f"no space left on the device{where}; make room and run again, finished stages are kept", EXIT_RETRYABLE
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else 'no message'}", EXIT_RETRYABLE


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m plumbline.stage", description="Run one stage of an AlignmentRun.")
    parser.add_argument("run", type=Path, help="RUN.json, written by a driver")
    parser.add_argument("stage", help="name of the stage")
    parser.add_argument("--attempt", type=int, help="attempt number; a higher one fences lower ones")
    parser.add_argument("--progress", type=Path, help="append progress events to this JSON-lines file")
    options = parser.parse_args(arguments)
    follow_driver()
    try:
        sink = file_sink(options.progress) if options.progress else lambda event: print(event, flush=True)
        plan = Plan.load(options.run)
        if options.stage not in [node.name for node in plan.graph.nodes]:
            names = ", ".join(node.name for node in plan.graph.nodes)
            raise InvalidInput(f"{options.run} has no stage '{options.stage}'; stages: {names}")
        run_stage(plan, options.stage, Reporter(options.stage, sink), options.attempt)
    except Exception as error:
        words, code = sentence(error)
        if plain_cause(error) is None:
            traceback.print_exc()
        print(f"error: {words}", file=sys.stderr, flush=True)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
