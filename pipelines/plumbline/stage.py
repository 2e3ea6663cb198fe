"""The one program that every Ray job runs: `python -m plumbline.stage RUN.json STAGE`.

With PLUMBLINE_STATE in the environment it reports to the run's ConfigMap (`plumbline.state`).
Exit codes: 0 done or cached, 1 worth another attempt, 2 permanent (wrong input), see `plumbline.errors`.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import signal
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from plumbline.api.base import BASE
from plumbline.artifacts import Artifact, ArtifactWriter
from plumbline.display import PlainLines
from plumbline.errors import InvalidInput, PlumblineError, complain
from plumbline.graph import Node
from plumbline.plan import Plan, check_libraries
from plumbline.pod_log import mirror_output
from plumbline.progress import Event, Reporter, Sink, file_sink
from plumbline.state import RUN_UID, StageReports, State, failure_of, result_of


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

    @property
    def where(self) -> str:
        """Field path of the stage's block, for messages."""
        names = [stage.name for stage in self.plan.run.spec.stages]
        return f"spec.stages[{names.index(self.node.name)}].{self.node.kind}"

    def input(self, role: str) -> Artifact | None:
        """The one artifact of a role, or None where the base model or nothing fills it."""
        artifacts = self.inputs.get(role, [])
        return artifacts[0] if artifacts else None


def run_stage(plan: Plan, name: str, report: Reporter, attempt: int | None = None, run: str | None = None) -> Artifact:
    """Do one stage, or find it done.

    Args:
        plan: the whole run, resolved.
        name: of the stage.
        report: progress to the outside.
        attempt, run: see `Workspace.acquire`.

    Raises:
        PlumblineError: with a sentence for people.
        Fenced: a later attempt has taken over.
    """
    node = plan.graph[name]
    workspace, fingerprint = plan.workspace, plan.fingerprints[name]
    done = plan.artifact(name)
    if done is not None:
        return done
    check_libraries(plan, [node])
    workspace.check_writable()
    checkpoints = f"{workspace.uri}/checkpoints/{fingerprint}"
    with workspace.exclusive(fingerprint, lambda: report.say("waiting for another run that makes this artifact")):
        artifact = plan.artifact(name)
        if artifact is None:
            holder = uuid.uuid4().hex
            workspace.acquire(fingerprint, holder, attempt, run)
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


def run_and_report(plan: Plan, name: str, shown: Sink, reports: StageReports, attempt: int | None) -> None:
    """`run_stage` in a cluster: its progress, and how it ends, go into the run's ConfigMap.

    Raises:
        PlumblineError: the stage failed, or its artifact is whole and could not be reported.
    """

    def sink(event: Event) -> None:
        shown(event)
        reports(event)

    try:
        artifact = run_stage(plan, name, Reporter(name, sink), attempt, os.environ.get(RUN_UID))
    except Exception as error:
        reports.failed(failure_of(error))
        raise
    reports.succeeded(result_of(artifact))
    print(f"{name}: done, {artifact.uri}", flush=True)


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
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL if parent is not None else 0)):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if parent is not None and os.getppid() != parent:
            sys.exit("error: the driver that started this is gone")


def follow_driver() -> None:
    """`die_with_parent`, if a driver started this process."""
    parent = os.environ.pop("PLUMBLINE_DIE_WITH_PARENT", None)
    if parent is not None:
        die_with_parent(int(parent))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m plumbline.stage", description="Run one stage of an AlignmentRun.")
    parser.add_argument("run", type=Path, help="RUN.json, written by a driver")
    parser.add_argument("stage", help="name of the stage")
    parser.add_argument("--attempt", type=int, help="attempt number; a higher one fences lower ones")
    parser.add_argument("--progress", type=Path, help="append progress events to this JSON-lines file")
    options = parser.parse_args(arguments)
    follow_driver()
    try:
        state = State.from_environment()
        if state is not None and os.environ.get("KUBERNETES_SERVICE_HOST"):
            mirror_output()
        plan = Plan.load(options.run)
        if options.stage not in [node.name for node in plan.graph.nodes]:
            names = ", ".join(node.name for node in plan.graph.nodes)
            raise InvalidInput(f"{options.run} has no stage '{options.stage}'; stages: {names}")
        shown = file_sink(options.progress) if options.progress else PlainLines(sys.stdout).event
        if state is None:
            run_stage(plan, options.stage, Reporter(options.stage, shown), options.attempt)
        else:
            attempt = options.attempt or 0
            reports = StageReports(state, options.stage, attempt, plan.fingerprints[options.stage])
            run_and_report(plan, options.stage, shown, reports, options.attempt)
    except Exception as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
