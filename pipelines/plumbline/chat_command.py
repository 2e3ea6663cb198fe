"""`plumbline chat`: its arguments, and where the endpoint is: of a run file on this machine, of a run in a cluster, or a URL."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plumbline.kubectl.commands import add_cluster_options, is_run_file


def add_chat(commands: argparse._SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "chat",
        help="talk to a served model",
        description="Talk to what `plumbline run FILE` left serving here, to what a run in a cluster serves, or to any endpoint "
        "that speaks OpenAI's API. Ctrl-C ends an answer, Ctrl-D the conversation; /help lists commands.",
        epilog=epilog,
    )
    command.add_argument("run", nargs="?", metavar="FILE|RUN", help="AlignmentRun YAML, or the name of a run in the cluster")
    command.add_argument("--stage", metavar="STAGE", help="the serve stage of FILE, where it has several")
    command.add_argument("--workspace", metavar="URI", help="of FILE, instead of spec.workspace.uri")
    command.add_argument("--endpoint", metavar="URL", help="base URL, such as http://HOST:8000/v1, instead of a run's")
    asked = command.add_mutually_exclusive_group()
    asked.add_argument("--model", metavar="NAME", help="of those that are served; default: the run's")
    asked.add_argument("--compare", nargs=2, metavar=("A", "B"), help="ask two models the same")
    command.add_argument("--system", metavar="TEXT", default="", help="system message")
    command.add_argument("--temperature", type=_temperature, metavar="T", help="0 to 2; default: the endpoint's")
    command.add_argument("--max-tokens", type=_tokens, metavar="N", help="longest answer; default: the endpoint's")
    command.add_argument("--message", metavar="TEXT", help="ask this only; default: a conversation, or a question per line")
    command.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds the API key")
    add_cluster_options(command, argparse.SUPPRESS)
    command.set_defaults(command=_chat)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 2")
    return value


def _tokens(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


def _chat(options: argparse.Namespace) -> int:
    from plumbline.chat.client import Endpoint
    from plumbline.chat.terminal import Chat, Typed, converse
    from plumbline.errors import EXIT_INTERRUPTED, PlumblineError

    interactive = options.message is None and sys.stdin.isatty() and sys.stdout.isatty()
    sampling = {name: value for name in ("temperature", "max_tokens") if (value := getattr(options, name)) is not None}
    try:
        with _served(options) as (url, model):
            endpoint = Endpoint(url, _key(options.api_key_env))
            wanted = options.compare or [name for name in (options.model, model) if name][:1]
            models = wanted or endpoint.models()[:1]
            if not models:
                raise PlumblineError(f"{endpoint.url} serves no model")
            chat = Chat(endpoint, models, options.system, sampling, interactive=interactive)
            if interactive:
                chat.select(models)
                chat.note(f"talking to {' and '.join(models)} at {endpoint.url}; /help lists commands, Ctrl-D ends")
            converse(chat, Typed() if interactive else iter(sys.stdin if options.message is None else [options.message]))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


@contextmanager
def _served(options: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """Base URL and the model to talk to, None for the endpoint's first."""
    from plumbline.errors import InvalidInput

    name: str | None = options.run
    is_file = name is not None and is_run_file(name)
    if not is_file and (options.stage or options.workspace):
        raise InvalidInput("--stage and --workspace go with a run file; give one")
    if options.endpoint:
        yield options.endpoint, None
    elif name is None:
        raise InvalidInput("whom to talk to? Give a run file, the name of a run in the cluster, or --endpoint URL")
    elif is_file:
        yield _local(Path(name), options.workspace, options.stage)
    else:
        from plumbline.kubectl.cluster import Cluster
        from plumbline.kubectl.forward import endpoint, reachable

        with reachable(endpoint(Cluster(options.context, options.namespace).run(name)), options.context) as url:
            yield url, None


def _local(file: Path, workspace: str | None, stage: str | None) -> tuple[str, str]:
    """What `plumbline run` left serving on this machine."""
    from plumbline.errors import InvalidInput, PlumblineError
    from plumbline.local_endpoint import read_record
    from plumbline.run_file import load_run
    from plumbline.runner import endpoint_records

    run = load_run(file)
    records = {name: record for name, path in endpoint_records(run, workspace).items() if (record := read_record(path))}
    if stage is not None and stage not in records:
        known = [one.name for one in run.spec.stages if one.serve is not None]
        if stage not in known:
            raise InvalidInput(f"{file} has no serve stage '{stage}'; serve stages: {', '.join(known) or 'none'}")
    elif stage is None and len(records) > 1:
        raise InvalidInput(f"{file} has several endpoints; name one with --stage: {', '.join(records)}")
    record = records.get(stage) if stage else next(iter(records.values()), None)
    if record is None:
        where = f" --workspace {workspace}" if workspace else ""
        raise PlumblineError(
            f"{stage or run.metadata.name}: nothing is serving on this machine; start it with `plumbline run {file}{where}`"
        )
    return str(record["url"]), str(record["model"])


def _key(variable: str | None) -> str | None:
    from plumbline.errors import InvalidInput

    if variable is None:
        return None
    if variable not in os.environ:
        raise InvalidInput(f"--api-key-env {variable}: there is no such environment variable; set it to the API key")
    return os.environ[variable]
