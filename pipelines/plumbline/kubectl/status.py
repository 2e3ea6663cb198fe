"""`status`: what a run does, in a page that people can read."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from plumbline.display import KEY_METRICS
from plumbline.errors import EXIT_GATE, EXIT_RETRYABLE, InvalidInput, PlumblineError
from plumbline.kubectl.cluster import Cluster, Run

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

POLL = 2.0  # seconds between two looks
PATIENCE = 120.0  # seconds for which a watch waits for an API server that does not answer
SHOWN_EVENTS = 8
BAR = 12  # characters
WIDTH = 200  # of a page that goes into a file or a pipe
MARKS = {
    "Succeeded": "[green]✔[/]",
    "Cached": "[green]≡[/]",
    "Running": "[cyan]▶[/]",
    "Failed": "[red]✘[/]",
    "Blocked": "[red]·[/]",
    "Waiting": "[yellow]▷[/]",
    "Suspended": "[yellow]⏸[/]",
}


def show(cluster: Cluster, name: str, watch: bool, as_json: bool) -> int:
    """Print a run; with `watch`, again at every change until it has ended. Returns the exit code."""
    run = cluster.run(name)
    events = cluster.events(run)
    if watch and sys.stdout.isatty() and not as_json:
        return _live(cluster, run, events)
    while True:
        if as_json:
            print(json.dumps(_plain(cluster, run) | {"events": events}), flush=True)
        else:
            console().print(page(run, events))
            sys.stdout.flush()
        if not watch:
            return 0
        if ended(run):
            return outcome(run)
        seen = run.get("status")
        while run.get("status") == seen:
            run, events = _look(cluster, name)


def show_all(cluster: Cluster, as_json: bool) -> int:
    """Print all runs of the namespace, a line each."""
    from rich.markup import escape
    from rich.table import Table

    runs = cluster.runs()
    if as_json:
        print(json.dumps([_plain(cluster, run) for run in runs], indent=1))
        return 0
    if not runs:
        print(f"no runs in namespace '{cluster.namespace}'")
        return 0
    table = Table(box=None, pad_edge=False)
    for title in ("NAME", "PHASE", "STAGE", "PROGRESS", "GATE", "ENDPOINT", "AGE"):
        table.add_column(title, no_wrap=True)
    for run in runs:
        status = run.get("status") or {}
        cells = [status.get(field) or "" for field in ("phase", "currentStage", "progress", "gate", "endpoint")]
        age = ago(run["metadata"].get("creationTimestamp"))
        table.add_row(run["metadata"]["name"], *(escape(cell) for cell in cells), age)
    console().print(table)
    return 0


def console() -> Console:
    """As wide as the terminal; a file or pipe gets lines that are not broken."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def conditions(run: Run) -> dict[str, dict[str, Any]]:
    """The run's conditions by type."""
    return {one["type"]: one for one in (run.get("status") or {}).get("conditions") or []}


def holds(run: Run, condition: str) -> bool:
    return conditions(run).get(condition, {}).get("status") == "True"


def ended(run: Run) -> bool:
    return holds(run, "Complete") or holds(run, "Failed")


def outcome(run: Run) -> int:
    """The exit code that says how a run ended."""
    if (run.get("status") or {}).get("gate") in ("Failed", "Inconclusive"):
        return EXIT_GATE
    return EXIT_RETRYABLE if holds(run, "Failed") else 0


def _plain(cluster: Cluster, run: Run) -> dict[str, Any]:
    return {"run": run["metadata"]["name"], "namespace": cluster.namespace, "status": run.get("status") or {}}


def _live(cluster: Cluster, run: Run, events: list[dict[str, str]]) -> int:
    from rich.live import Live

    with Live(page(run, events), console=console(), auto_refresh=False) as live:
        while not ended(run):
            run, events = _look(cluster, run["metadata"]["name"])
            live.update(page(run, events), refresh=True)
    return outcome(run)


def _look(cluster: Cluster, name: str) -> tuple[Run, list[dict[str, str]]]:
    """The run a little later; an API server that restarts meanwhile is waited for."""
    deadline = time.monotonic() + PATIENCE
    while True:
        time.sleep(POLL)
        try:
            run = cluster.run(name)
            return run, cluster.events(run)
        except InvalidInput:
            raise
        except PlumblineError:
            if time.monotonic() > deadline:
                raise


def page(run: Run, events: list[dict[str, str]]) -> RenderableType:
    """The whole page of a run."""
    from rich.console import Group
    from rich.markup import escape

    status = run.get("status") or {}
    meta = run["metadata"]
    head = f"[bold]{meta['name']}[/]  {escape(status.get('phase') or 'not seen by the operator yet')}"
    head += f"  [dim]namespace {meta['namespace']} · generation {meta.get('generation')}"
    head += f" · {ago(meta.get('creationTimestamp'))} old[/]"
    if status and status.get("observedGeneration") != meta.get("generation"):
        head += "\n[yellow]the operator has not seen the latest edit yet[/]"
    parts: list[RenderableType] = [head]
    plan = status.get("plan") or {}
    if plan and not plan.get("done"):
        parts.append(
            escape(f"planning, attempt {plan.get('attempt')}: {plan.get('message') or plan.get('reason') or 'at work'}")
        )
    parts.append(_stages(status.get("stages") or []))
    facts = {title: status.get(field) for title, field in (("gate", "gate"), ("endpoint", "endpoint"), ("report", "report"))}
    parts += [f"{title:<9} {escape(value)}" for title, value in facts.items() if value]
    if conditions(run):
        parts += ["", _conditions(run)]
    if events:
        parts += ["", _events(events[-SHOWN_EVENTS:])]
    return Group(*parts)


def _stages(stages: list[dict[str, Any]]) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("", "stage", "kind", "phase", "attempt", "time", ""):
        table.add_column(title, justify="right" if title in ("attempt", "time") else "left")
    for stage in stages:
        attempt = str(stage["attempt"]) if stage.get("attempt") else ""
        cells = [stage["name"], stage["kind"], stage["phase"], attempt, duration(stage), stage_words(stage)]
        table.add_row(MARKS.get(stage["phase"], "[dim]·[/]"), *(escape(cell) for cell in cells))
    return table


def stage_words(stage: dict[str, Any]) -> str:
    """`██████░░░░░░ 40/80 · 1 m 20 s left · loss 0.41`, or why it waits or failed."""
    parts = []
    progress = stage.get("progress")
    if progress and stage["phase"] == "Running":
        step, total = progress.get("step", 0), progress.get("total")
        if total:
            full = min(BAR, BAR * step // total)
            parts.append(f"{'█' * full}{'░' * (BAR - full)} {step}/{total}")
        else:
            parts.append(str(step))
        if progress.get("etaSeconds") is not None:
            parts.append(f"{span(progress['etaSeconds'])} left")
    metrics = stage.get("metrics") or {}
    shown = next((name for name in (*KEY_METRICS, *metrics) if name in metrics), None)
    if shown and stage["phase"] in ("Running", "Succeeded", "Cached"):
        parts.append(f"{shown} {metrics[shown]}")
    said = stage.get("message") or (stage.get("reason") if stage["phase"] in ("Waiting", "Failed", "Blocked") else None)
    if said:
        parts.append(said)
    return " · ".join(parts)


def _conditions(run: Run) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    answers = {"True": "yes", "False": "no"}
    for name, one in conditions(run).items():
        table.add_row(name, answers.get(one["status"], "?"), escape(one.get("message") or one.get("reason") or ""))
    return table


def _events(events: list[dict[str, str]]) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for event in events:
        style = "yellow" if event["type"] == "Warning" else None
        table.add_row(f"{ago(event['time'])} ago", event["reason"], escape(event["message"]), style=style)
    return table


def duration(stage: dict[str, Any]) -> str:
    """How long a stage took, or has been at it."""
    start, end = stage.get("startTime"), stage.get("endTime")
    if not start:
        return ""
    return span((_time(end) if end else datetime.now(UTC)).timestamp() - _time(start).timestamp())


def ago(moment: str | None) -> str:
    return span(time.time() - _time(moment).timestamp()) if moment else "?"


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} m"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _time(moment: str) -> datetime:
    return datetime.fromisoformat(moment)
