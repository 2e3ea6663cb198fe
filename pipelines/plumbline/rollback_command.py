"""`plumbline rollback`: back to the model that served before, or to another one that the release record knows."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from plumbline.kubectl.commands import add_cluster_options, is_run_file

PATIENCE = 120.0  # seconds for a controller to obey
POLL = 0.2


def add_rollback(commands: argparse._SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "rollback",
        help="serve the model before again",
        description="End a release, or serve the model again that served before it; what is left is not served again until it is "
        "asked for with --to, or the run's model changes.",
        epilog=epilog,
    )
    command.add_argument("run", metavar="FILE|RUN", help="AlignmentRun YAML, or the name of a run in the cluster")
    command.add_argument("--stage", metavar="STAGE", help="the serve stage, where there are several")
    command.add_argument("--to", metavar="FINGERPRINT", help="of the serve stage or of its model: serve this one, at once")
    command.add_argument("--workspace", metavar="URI", help="of FILE, instead of spec.workspace.uri")
    add_cluster_options(command, argparse.SUPPRESS)
    command.set_defaults(command=_rollback)


def _rollback(options: argparse.Namespace) -> int:
    if is_run_file(options.run):
        return _in_workspace(options)
    return _in_cluster(options)


def _in_workspace(options: argparse.Namespace) -> int:
    """Leave the request in the workspace, and wait for the endpoint to obey."""
    from plumbline.artifacts import Workspace
    from plumbline.errors import InvalidInput, PlumblineError
    from plumbline.run_file import load_run
    from plumbline.serving.release.policy import target
    from plumbline.serving.release.record import Records

    run = load_run(Path(options.run))
    stages = [stage.name for stage in run.spec.stages if stage.serve is not None]
    stage = _stage(options.stage, stages, options.run)
    workspace = Workspace(options.workspace or run.spec.workspace.uri).uri
    records = Records(workspace, run.metadata.name, stage)
    record = records.read()
    if record is None:
        raise InvalidInput(f"stage '{stage}' has served nothing from {workspace} yet; there is nothing to go back to")
    wanted = target(record, options.to)
    if wanted is None and options.to is None:
        raise InvalidInput(f"{record.words()}; nothing served before it that was not rolled back; name one with --to")
    if wanted is None:
        known = dict.fromkeys(one.fingerprint for one in (record.stable, record.previous, record.candidate) if one)
        raise InvalidInput(f"--to {options.to}: the record knows {', '.join(known)}; for another model change the run")
    if wanted.fingerprint == record.stable.fingerprint and not record.releasing:
        print(f"{stage}: {record.words()} already")
        return 0
    asked = records.ask(options.to)
    deadline = time.monotonic() + PATIENCE
    while record is not None and (record.obeyed < asked.id or record.phase == "loading"):
        if time.monotonic() > deadline:
            raise PlumblineError(
                f"stage '{stage}': the endpoint has not obeyed within {PATIENCE:g} s; the request stays, and is obeyed once it serves"
            )
        time.sleep(POLL)
        record = records.read()
    if record is not None and record.stable.fingerprint != wanted.fingerprint:
        raise PlumblineError(f"stage '{stage}': {record.words()}")
    print(f"{stage}: {record.words() if record else 'its record is gone'}")
    return 0


def _in_cluster(options: argparse.Namespace) -> int:
    """Leave the request at the run; the operator hands it on to the programs that serve."""
    from plumbline.api import labels
    from plumbline.api.report import Rollback
    from plumbline.kubectl.cluster import Cluster

    cluster = Cluster(options.context, options.namespace)
    run = cluster.run(options.run)
    stages = [stage["name"] for stage in run["spec"]["stages"] if "serve" in stage]
    stage = _stage(options.stage, stages, f"run '{options.run}'")
    asked = Rollback.make(options.to).model_dump_json(exclude_none=True)
    cluster.patch(options.run, {"metadata": {"annotations": {f"{labels.ROLLBACK}{stage}": asked}}})
    print(f"{options.run}: '{stage}' is asked to go back; it learns of it within a minute or two, and its message says so")
    return 0


def _stage(wanted: str | None, stages: list[str], where: str) -> str:
    from plumbline.errors import InvalidInput

    if wanted in stages:
        return wanted
    known = ", ".join(stages) or "none"
    if wanted is not None:
        raise InvalidInput(f"--stage {wanted}: no such serve stage in {where}; serve stages: {known}")
    if len(stages) != 1:
        raise InvalidInput(f"{where} has {len(stages)} serve stages; name one with --stage: {known}")
    return stages[0]
