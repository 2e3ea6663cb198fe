"""The `plumbline` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import traceback
from pathlib import Path

from plumbline.agreement_command import add_agreement
from plumbline.chat_command import add_chat
from plumbline.keys_command import add_keys
from plumbline.kubectl.commands import add_cluster_options, add_commands
from plumbline.people_command import add_people
from plumbline.rate_command import add_rate
from plumbline.rollback_command import add_rollback
from plumbline.score_command import add_score

EPILOG = "Exit codes: 0 done, 1 failed (try again), 2 wrong input, 3 gate not passed, 130 interrupted."


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(arguments)
    from plumbline.errors import EXIT_INTERRUPTED, PlumblineError

    try:
        return int(options.command(options))
    except BrokenPipeError:  # `plumbline crd | head`: who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more when it ends
        return 1
    except Exception as error:
        from plumbline.errors import sentence

        words, code = sentence(error)
        if not isinstance(error, PlumblineError | OSError):
            traceback.print_exc()  # a fault of ours: whoever reports it needs this
        if getattr(options, "json", False):
            print(json.dumps({"event": "error", "message": words, "exitCode": code}))
        print(f"error: {words}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print("interrupted; the same command continues from here", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    plugin = Path(sys.argv[0]).name.startswith("kubectl")
    parser = argparse.ArgumentParser(
        prog="kubectl plumbline" if plugin else "plumbline",
        description="One AlignmentRun becomes an aligned, evaluated and served language model.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=_version())
    add_cluster_options(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "run it on this machine, or on a Ray cluster")
    run.add_argument("--until", metavar="STAGE", help="only this stage and what it needs")
    run.add_argument("--ray-address", metavar="HOST:PORT", help="a running Ray cluster instead of an embedded one")
    run.add_argument("--no-serve", action="store_true", help="leave `serve` stages out")
    for command in (run, _command(commands, "plan", _plan, "show stages, wiring and what is cached")):
        command.add_argument("--json", action="store_true", help="JSON for programs")
    _command(commands, "stop", _stop, "stop the endpoints that a local run left serving")

    export = _command(commands, "export", _export, "write the model of a finished stage as a plain Hugging Face folder")
    export.add_argument("stages", nargs="+", metavar="STAGE", help="a stage that has made a model; with --adapters several")
    export.add_argument("--to", required=True, metavar="FOLDER", help="a local folder that is not there yet")
    export.add_argument("--adapters", action="store_true", help="the base, and the stages' adapters beside it, not merged")
    export.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights; default: as the base has them"
    )

    validate = commands.add_parser("validate", help="check run files; names every problem with its field path")
    validate.add_argument("files", nargs="+", type=Path, metavar="FILE")
    validate.set_defaults(command=_validate)

    crd = commands.add_parser("crd", help="print the CustomResourceDefinition")
    crd.add_argument("--docs", action="store_true", help="print the reference page instead")
    crd.set_defaults(command=_crd)
    add_agreement(commands, EPILOG)
    add_score(commands, EPILOG)
    add_rate(commands, EPILOG)
    add_people(commands, EPILOG)
    add_chat(commands, EPILOG)
    add_keys(commands, EPILOG)
    add_rollback(commands, EPILOG)
    add_commands(commands, EPILOG)
    return parser


def _command(commands: argparse._SubParsersAction, name: str, function: object, text: str) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    """A command that works on one run file."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text.capitalize() + ".", epilog=EPILOG
    )
    command.add_argument("file", type=Path, metavar="FILE", help="AlignmentRun YAML")
    command.add_argument("--workspace", metavar="URI", help="instead of spec.workspace.uri")
    command.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="change a field, such as stages.sft.sft.maxSteps=10"
    )
    command.set_defaults(command=function)
    return command


def _version() -> str:
    from plumbline import __version__

    return f"plumbline {__version__}"


def _make_plan(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from plumbline.errors import InvalidInput, InvalidRun
    from plumbline.plan import make_plan
    from plumbline.run_file import load_run

    run = load_run(options.file, options.set)
    if options.workspace == "":
        raise InvalidInput("--workspace is empty; give a folder or URI, or leave it out")
    try:
        return make_plan(run, options.workspace, getattr(options, "until", None))
    except InvalidRun as error:
        raise InvalidRun(error.problems, str(options.file)) from None


def _run(options: argparse.Namespace) -> int:
    from plumbline.display import open_display
    from plumbline.errors import GateNotPassed
    from plumbline.runner import Runner

    plan = _make_plan(options)
    held_back = None
    with open_display(list(plan.graph.nodes), options.json) as display:
        try:
            Runner(plan, display, options.ray_address).run(serve=not options.no_serve)
        except GateNotPassed as error:
            held_back = error  # the results are worth showing all the same
    where = f" --workspace {shlex.quote(options.workspace)}" if options.workspace else ""
    _summary(plan, options.json, f"{shlex.quote(str(options.file))}{where}")
    if held_back is not None:
        raise held_back
    return 0


def _summary(plan, as_json: bool, file: str) -> None:  # type: ignore[no-untyped-def]
    """The results at the end: scores with intervals, report, endpoint. `file` names the run to further commands."""
    from plumbline.evaluation.summary import summarise
    from plumbline.local_endpoint import read_record, record_path
    from plumbline.runner import report_copy, run_folder

    reports = [a for node in plan.graph.nodes if node.kind == "evaluate" and (a := plan.artifact(node.name)) is not None]
    endpoints = [
        record | {"current": record["fingerprint"] == plan.fingerprints[node.name]}
        for node in plan.graph.nodes
        if node.kind == "serve" and (record := read_record(record_path(run_folder(plan), node.name))) is not None
    ]
    summaries = [(artifact, summarise(artifact)) for artifact in reports]
    if as_json:
        for artifact, summary in summaries:
            rows = [vars(row) for row in summary.rows]
            print(json.dumps({"event": "report", "uri": artifact.uri, "rows": rows, "verdict": summary.verdict}))
        for record in endpoints:
            print(json.dumps({"event": "endpoint", **record}))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for artifact, summary in summaries:
        table = Table(title=f"Results of '{artifact.manifest['stage']}'", title_justify="left")
        for title in ("model", "task", "score", "95 % interval".replace("95", f"{100 * summary.confidence:g}"), "items"):
            table.add_column(title, justify="left" if title in ("model", "task") else "right")
        for row in summary.rows:
            table.add_row(
                row.model, row.task, f"{100 * row.score:.1f} %", f"{100 * row.low:.1f} – {100 * row.high:.1f} %", str(row.n)
            )
        console.print(table)
        console.print(summary.verdict, markup=False, highlight=False, soft_wrap=True)
        console.print(f"report: {report_copy(plan, artifact)}", markup=False, highlight=False, soft_wrap=True)
    for record in endpoints:
        age = "" if record["current"] else " (the model of an earlier run)"
        console.print(
            f"\nserving '{record['model']}'{age} at {record['url']}  (OpenAI API; stop with `plumbline stop {file}`)\n"
            f"  talk to it at {record['url'].removesuffix('v1')} in a browser, or with `plumbline chat {file}`",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        sample = record["sample"]
        console.print(f"  asked:    {sample['prompt']}\n  answered: {sample['answer']}", markup=False, highlight=False)


def _plan(options: argparse.Namespace) -> int:
    from plumbline.runner import is_done

    plan = _make_plan(options)
    rows = [
        {
            "stage": node.name,
            "kind": node.kind,
            "inputs": {role: list(names) for role, names in node.inputs.items()},
            "output": node.output.value,
            "fingerprint": plan.fingerprints[node.name],
            "cached": is_done(plan, node),
        }
        for node in plan.graph.nodes
    ]
    if options.json:
        print(json.dumps({"run": plan.name, "workspace": plan.workspace_uri, "stages": rows}, indent=1))
        return 0
    print(f"run {plan.name}   workspace {plan.workspace_uri}")
    for row in rows:
        wiring = ", ".join(f"{role} ← {'+'.join(names)}" for role, names in row["inputs"].items()) or "–"
        print(
            f"  {row['stage']:<16} {row['kind']:<16} {'cached' if row['cached'] else 'to do':<7} {row['fingerprint']}  {wiring}"
        )
    return 0


def _stop(options: argparse.Namespace) -> int:
    from plumbline.local_endpoint import stop
    from plumbline.run_file import load_run
    from plumbline.runner import endpoint_records

    run = load_run(options.file, options.set)
    stopped = [stage for stage, path in endpoint_records(run, options.workspace).items() if stop(path)]
    print("\n".join(f"{stage}: stopped" for stage in stopped) or f"{run.metadata.name}: nothing was serving")
    return 0


def _export(options: argparse.Namespace) -> int:
    from plumbline.errors import InvalidInput
    from plumbline.run_file import load_run

    names = [stage.name for stage in load_run(options.file, options.set).spec.stages]
    for stage in options.stages:
        if stage not in names:
            raise InvalidInput(f"{options.file} has no stage '{stage}'; stages: {', '.join(names)}")
        if options.stages.count(stage) > 1:
            raise InvalidInput(f"stage '{stage}' is named twice; name it once")
    if len(options.stages) > 1 and not options.adapters:
        raise InvalidInput("one model goes into a folder; name one stage, or add --adapters for several over one base")
    if "://" in options.to or not options.to:
        raise InvalidInput(f"--to '{options.to}': give a local folder, and upload it from there")
    plans = {stage: _make_plan(argparse.Namespace(**{**vars(options), "until": stage})) for stage in options.stages}

    from transformers.utils.logging import disable_progress_bar

    from plumbline.models.export import Finished, check_free, export_adapters, export_merged

    disable_progress_bar()
    to = Path(options.to).expanduser().resolve()
    check_free(to)
    models = [Finished.of(plan, stage) for stage, plan in plans.items()]
    count = export_adapters(models, to, options.dtype) if options.adapters else export_merged(models[0], to, options.dtype)
    size = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    print(f"{', '.join(options.stages)}: {count / 1e6:,.4g} M parameters, {size / 1e6:,.4g} MB in {to}")
    return 0


def _validate(options: argparse.Namespace) -> int:
    from plumbline.errors import EXIT_INVALID, PlumblineError
    from plumbline.run_file import load_run

    bad = 0
    for file in options.files:
        try:
            load_run(file)
        except PlumblineError as error:
            print(error, file=sys.stderr)
            bad += 1
        else:
            print(f"{file}: valid")
    return EXIT_INVALID if bad else 0


def _crd(options: argparse.Namespace) -> int:
    if options.docs:
        from plumbline.api import reference

        print(reference.render(), end="")
    else:
        import yaml

        from plumbline.api import crd

        print(
            f"# {crd.ORIGIN}\n{yaml.safe_dump(crd.render(), sort_keys=False, width=1000, default_flow_style=None)}", end=""
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
