"""The cluster commands: their arguments, and what they do. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumbline.kubectl.cluster import Cluster, Run

Command = Callable[[argparse.Namespace], int]


def add_cluster_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """kubectl takes these before and after the command, and so do we."""
    parser.add_argument("-n", "--namespace", default=default, help="of runs in a cluster; default: that of the context")
    parser.add_argument("--context", default=default, help="of the kubeconfig; default: the current one")


def is_run_file(run: str) -> bool:
    """Whether what a command is given is a run's file; all else is the name of a run in a cluster."""
    return "/" in run or run.endswith((".yaml", ".yml", ".json"))


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the commands to the parser of `plumbline`."""

    def add(name: str, function: Command, text: str, run: str | None = None) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog)
        command.add_argument("run", metavar="RUN", nargs=run, help="name of an AlignmentRun in the cluster")
        add_cluster_options(command, argparse.SUPPRESS)
        command.set_defaults(command=_interruptible(function))
        return command

    status = add("status", _status, "how a run in the cluster is, or all runs", run="?")
    status.add_argument("-w", "--watch", action="store_true", help="go on until the run has ended; the exit code says how")
    status.add_argument("--json", action="store_true", help="JSON for programs")
    logs = add("logs", _logs, "what a stage prints; default: the one at work, or the one that failed")
    logs.add_argument("stage", metavar="STAGE", nargs="?", help="name of the stage")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the stage ends, from attempt to attempt")
    report = add("report", _report, "scores and verdict of an evaluation")
    report.add_argument("stage", metavar="STAGE", nargs="?", help="an evaluate stage; default: the last that is done")
    report.add_argument("-o", "--output", type=Path, metavar="FILE", help="copy the report's page here")
    add("suspend", functools.partial(_suspend, True), "stop a run at its last checkpoint and free what it holds")
    add("resume", functools.partial(_suspend, False), "let a suspended run go on")
    retry = add("retry", _retry, "try a failed stage again")
    retry.add_argument("stage", metavar="STAGE", help="name of the stage")


def _interruptible(function: Command) -> Command:
    """Ctrl-C is how people leave these commands: nothing to explain."""

    def run(options: argparse.Namespace) -> int:
        from plumbline.errors import EXIT_INTERRUPTED

        try:
            return function(options)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED

    return run


def _cluster(options: argparse.Namespace) -> Cluster:
    from plumbline.kubectl.cluster import Cluster

    return Cluster(options.context, options.namespace)


def _status(options: argparse.Namespace) -> int:
    from plumbline.errors import InvalidInput
    from plumbline.kubectl import status

    if options.run is not None:
        return status.show(_cluster(options), options.run, options.watch, options.json)
    if options.watch:
        raise InvalidInput("--watch needs the name of a run")
    return status.show_all(_cluster(options), options.json)


def _logs(options: argparse.Namespace) -> int:
    cluster = _cluster(options)
    run = cluster.run(options.run)
    name = options.stage or _stage_of_interest(run)
    if name is None:
        pod = cluster.pod(run, component="plan")
    else:
        stage = _stage(run, name)
        if options.follow:
            return _follow(cluster, run, name)
        pod = cluster.pod(run, stage=name, node="head")
    if pod is not None:
        _copy(cluster.logs(pod, options.follow))
        return 0
    if name is None:
        plan = (run.get("status") or {}).get("plan") or {}
        print(f"no Pod plans '{options.run}' now; {plan.get('message') or 'nothing has begun yet'}")
        return 0
    print("\n".join(_last_words(cluster, run, stage)))
    return 0


def _follow(cluster: Cluster, run: Run, name: str) -> int:
    """What a stage prints, one attempt after the other, until it has ended."""
    from plumbline.kubectl.cluster import NotFound, NotStarted
    from plumbline.kubectl.status import POLL, ended

    shown: list[str | None] = []
    while True:
        stage = _stage(run, name)
        over = ended(run) or stage["phase"] in ENDED  # known before the Pod is looked for, so that no attempt is missed
        pod = cluster.pod(run, stage=name, node="head")
        if pod is not None and pod.metadata is not None and pod.metadata.uid not in shown:
            with suppress(NotFound, NotStarted):
                _copy(cluster.logs(pod, follow=True))
                shown.append(pod.metadata.uid)
        if over:
            if not shown:
                print("\n".join(_last_words(cluster, run, stage)))
            return 0
        time.sleep(POLL)
        run = cluster.run(run["metadata"]["name"])


def _copy(pieces: Iterator[bytes]) -> None:
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def _stage_of_interest(run: Run) -> str | None:
    """The stage that failed, else the one at work, else the last that began; None where only planning has."""
    status = run.get("status") or {}
    if status.get("plan") and not status["plan"].get("done"):
        return None
    stages: list[dict[str, Any]] = status.get("stages") or []
    failed = [stage["name"] for stage in stages if stage["phase"] == "Failed"]
    began = [stage["name"] for stage in stages if stage.get("startTime")]
    current = status.get("currentStage")
    return failed[0] if failed else current or (began[-1] if began else None)


def _last_words(cluster: Cluster, run: Run, stage: dict[str, Any]) -> Iterator[str]:
    """What is known of a stage without a Pod."""
    yield f"stage '{stage['name']}' ({stage['phase']}) has no Pod now"
    if stage.get("message"):
        yield stage["message"]
    report = cluster.report(run, stage["name"])
    if report is not None:
        said = report.error.message if report.error else report.message
        if said and said != stage.get("message"):
            yield f"its last word, in attempt {report.attempt}: {said}"
        if report.result:
            yield f"its artifact: {report.result.artifact}"


def _report(options: argparse.Namespace) -> int:
    from rich.markup import escape
    from rich.table import Table

    from plumbline.errors import InvalidInput, PlumblineError
    from plumbline.kubectl.status import conditions, console

    run = _cluster(options).run(options.run)
    if options.stage:
        stage = _stage(run, options.stage)
        if stage["kind"] != "evaluate":
            raise InvalidInput(f"stage '{options.stage}' is of kind {stage['kind']}; only evaluate stages make reports")
    else:
        done = [one for one in _stages(run) if one["kind"] == "evaluate" and one.get("artifact")]
        if not done:
            raise PlumblineError(f"run '{options.run}' has no report yet")
        stage = done[-1]
    if not stage.get("artifact"):
        raise PlumblineError(f"stage '{stage['name']}' has no report yet; it is {stage['phase']}")
    table = Table(box=None, pad_edge=False)
    for title in ("task", "model", "score"):
        table.add_column(title)
    metrics: dict[str, str] = stage.get("metrics") or {}
    for name, value in metrics.items():
        task, slash, model = name.partition("/")
        if slash:
            table.add_row(escape(task), escape(model), escape(value))
    page = console()
    page.print(table)
    gate = conditions(run).get("GatePassed", {}).get("message")
    page.print(f"verdict: {metrics.get('verdict', 'none')}{f' ({gate})' if gate else ''}", markup=False, soft_wrap=True)
    page.print(f"report: {stage['artifact']}", markup=False, soft_wrap=True)
    if options.output:
        _copy_report(stage["artifact"], options.output)
        page.print(f"copied to {options.output}", markup=False, soft_wrap=True)
    return 0


def _copy_report(artifact: str, file: Path) -> None:
    import fsspec

    from plumbline.errors import PlumblineError, one_line

    try:
        with fsspec.open(f"{artifact}/report.html", "rb") as source:
            content = source.read()
    except Exception as error:  # each store has errors of its own
        raise PlumblineError(
            f"{artifact}/report.html cannot be read from this machine ({one_line(error)}); "
            "it needs the workspace's credentials, or the volume that the stages mount"
        ) from error
    file.write_bytes(content)


def _suspend(wanted: bool, options: argparse.Namespace) -> int:
    from plumbline.errors import InvalidInput
    from plumbline.kubectl.status import ended

    cluster = _cluster(options)
    run = cluster.run(options.run)
    if bool(run["spec"].get("suspend")) == wanted:
        print(f"{options.run}: {'suspended' if wanted else 'not suspended'} already")
        return 0
    if wanted and ended(run):
        raise InvalidInput(f"run '{options.run}' has ended ({run['status'].get('phase')}); there is nothing to suspend")
    cluster.patch(options.run, {"spec": {"suspend": wanted}})
    what = "suspended; what it has done is kept" if wanted else "goes on from its last checkpoint"
    print(f"{options.run}: {what}")
    return 0


def _retry(options: argparse.Namespace) -> int:
    from plumbline.api import labels
    from plumbline.errors import InvalidInput

    cluster = _cluster(options)
    run = cluster.run(options.run)
    stage = _stage(run, options.stage)
    if stage["phase"] != "Failed":
        why = f": {stage['message']}" if stage.get("message") else ""
        raise InvalidInput(f"stage '{options.stage}' is {stage['phase']}{why}; only a stage that is Failed is tried again")
    attempt = str(stage.get("attempt", 0))
    cluster.patch(options.run, {"metadata": {"annotations": {f"{labels.RETRY}{options.stage}": attempt}}})
    print(f"{options.run}: '{options.stage}' is tried again after attempt {attempt}")
    return 0


def _stages(run: Run) -> list[dict[str, Any]]:
    return list((run.get("status") or {}).get("stages") or [])


def _stage(run: Run, name: str) -> dict[str, Any]:
    """A stage's status; one that the operator has not seen yet is Pending."""
    from plumbline.errors import InvalidInput
    from plumbline.kubectl.cluster import near

    for stage in _stages(run):
        if stage["name"] == name:
            return stage
    stages = {stage["name"]: next((kind for kind in stage if kind not in NO_KIND), "") for stage in run["spec"]["stages"]}
    if name not in stages:
        raise InvalidInput(f"run '{run['metadata']['name']}' has no stage '{name}'; {near(name, list(stages))}")
    return {"name": name, "kind": stages[name], "phase": "Pending"}


ENDED = ("Succeeded", "Cached", "Failed", "Blocked", "Suspended")
"""Phases in which no attempt is under way, nor follows by itself."""
NO_KIND = ("name", "inputs", "cluster")
"""Fields of a stage in the spec that are not its kind."""
