"""Tables of the report, and figures by group with their charts: HTML text, escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.charts import bars_chart, radar_chart, win_matrix
from plumbline.evaluation.results import TaskScore, WinRates
from plumbline.evaluation.statistics import Estimate

SHOWN_GROUPS = 15  # more are folded
DRAWN_GROUPS = 60  # more are only told


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: set[int]) -> str:
    """A table of cells that are HTML already; the columns in `numbers` are set to the right."""

    def cells(row: Sequence[str], tag: str) -> str:
        number = ' class="number"'
        return "".join(f"<{tag}{number if i in numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(row))

    lines = [f"<tr>{cells(head, 'th')}</tr>", *(f"<tr>{cells(row, 'td')}</tr>" for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def interval(e: Estimate) -> str:
    """A figure with its interval."""
    return f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


def groups(scores: Sequence[TaskScore]) -> str:
    """The scores by group, a chart and a table for each task and grouping."""
    parts = []
    for task in dict.fromkeys(score.task for score in scores):
        of = [score for score in scores if score.task == task]
        for grouping in dict.fromkeys(name for score in of for name in score.groups):
            parts.append(f"<h3>{escape(task)} by {escape(grouping)}</h3>" + _by_group(of, grouping))
    return "<h2>Groups</h2>" + "\n".join(parts) if parts else ""


def _by_group(scores: Sequence[TaskScore], grouping: str) -> str:
    series = {score.model: score.groups[grouping] for score in scores if grouping in score.groups}
    names = sorted({name for of in series.values() for name in of})
    rows = []
    for name in names:
        found = [of.get(name) for of in series.values()]
        items = max(e.n for e in found if e is not None)
        rows.append([escape(name), str(items), *("–" if e is None else interval(e) for e in found)])
    macros = (score.macro[grouping] for score in scores if grouping in score.macro)
    rows.append(["<b>macro</b>", "", *(f"<b>{interval(e)}</b>" for e in macros)])
    shown = table([escape(grouping), "items", *map(escape, series)], rows, numbers=set(range(1, 2 + len(series))))
    if len(names) <= DRAWN_GROUPS:
        ordered = {model: {name: of[name] for name in names if name in of} for model, of in series.items()}
        shown = bars_chart(ordered, f"{scores[0].task}-{grouping}") + shown
    opened = " open" if len(names) <= SHOWN_GROUPS else ""
    return f"<details{opened}><summary>{len(names)} groups</summary>{shown}</details>"


def skills(task: TaskSpec, scores: Sequence[TaskScore]) -> str:
    """The skills of FLASK as a radar."""
    series = {score.model: score.variants for score in scores if score.task == task.name and score.variants}
    if task.benchmark != "flask" or not series:
        return ""
    return f"<h3>Skills of {escape(task.name)}</h3>" + radar_chart(series, task.name)


def win_rates(found: WinRates) -> str:
    """How often the row wins against the column."""
    rows = [
        [f"<b>{escape(model)}</b>", *("" if rate is None else interval(rate) for rate in row)]
        for model, row in zip(found.models, found.rates, strict=True)
    ]
    head = ["row wins against", *(escape(model) for model in found.models)]
    shown = win_matrix(found.models, found.rates, found.task) + table(head, rows, numbers=set(range(1, len(head))))
    return f"<h3>Win rates on {escape(found.task)}</h3>{shown}"
