"""The report: report.json with every number, report.html for people, samples.jsonl with every reply.

The page is one file: no script, nothing fetched; a content policy in it holds browsers to that. All that comes from a
model or a file is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.charts import curve_chart, score_chart
from plumbline.evaluation.contamination import Cleanliness
from plumbline.evaluation.lineage import Ancestor
from plumbline.evaluation.results import Comparison, Results, Sample, TaskScore

REPORT, PAGE, SAMPLES = "report.json", "report.html", "samples.jsonl"
SCHEMA_VERSION = 1
SHOWN_SAMPLES = 40  # of each task

STYLE = """
:root { color-scheme: light; --line: #d9dce3; --soft: #5b6270; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2029; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; } h3 { font-size: 1rem; }
p.about { color: var(--soft); margin: .2rem 0 1.2rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; color: var(--soft); }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.verdict { border-left: .5rem solid var(--tone); background: var(--wash); padding: .8rem 1rem; margin: 1rem 0; }
.verdict strong { font-size: 1.2rem; text-transform: uppercase; color: var(--tone); }
.pass { --tone: #1b7f3b; --wash: #edf8f0; } .fail { --tone: #b3261e; --wash: #fdeeed; }
.inconclusive { --tone: #8a5a00; --wash: #fff7e6; } .none { --tone: #5b6270; --wash: #f3f4f7; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; max-height: 16rem; overflow: auto; font-size: 13px; }
td.right { background: #edf8f0; } td.wrong { background: #fdeeed; } td small { color: var(--soft); }
svg { max-width: 100%; height: auto; } details { margin: .6rem 0; } summary { cursor: pointer; font-weight: 600; }
"""


@dataclass(frozen=True)
class Setting:
    """What was evaluated and how.

    Attributes:
        run, stage: whose report this is.
        models: name → fingerprint, the candidate first.
        tasks: the benchmarks as specified.
        temperature: of the answers.
    """

    run: str
    stage: str
    models: dict[str, str]
    tasks: Sequence[TaskSpec]
    temperature: float


def write(folder: Path, setting: Setting, results: Results, samples: Sequence[Sample], lineage: Sequence[Ancestor]) -> None:
    """Write report.json, report.html and samples.jsonl into `folder`."""
    values = report_json(setting, results, lineage)
    (folder / REPORT).write_text(json.dumps(values, indent=1, sort_keys=True, allow_nan=False))
    page = report_html(setting, results, samples, lineage)
    (folder / PAGE).write_text(page, encoding="utf-8", errors="replace")  # a model may write half a surrogate pair
    with (folder / SAMPLES).open("w") as stream:
        for row in sample_rows(setting, samples):
            stream.write(json.dumps(row) + "\n")


def report_json(setting: Setting, results: Results, lineage: Sequence[Ancestor]) -> dict[str, Any]:
    """Everything but the replies, as plain values."""
    return {
        "schemaVersion": SCHEMA_VERSION,
        "run": setting.run,
        "stage": setting.stage,
        "models": [{"name": name, "fingerprint": fingerprint} for name, fingerprint in setting.models.items()],
        "tasks": [task.model_dump(mode="json", by_alias=True) for task in setting.tasks],
        "temperature": setting.temperature,
        **results.to_json(),
        "lineage": [asdict(ancestor) for ancestor in lineage],
    }


def sample_rows(setting: Setting, samples: Sequence[Sample]) -> Iterable[dict[str, Any]]:
    """One row for each item and model."""
    for sample in samples:
        for model, reply in sample.replies.items():
            score = sample.scores[model]
            yield {
                "task": sample.task,
                "item": sample.item.id,
                "model": model,
                "fingerprint": setting.models[model],
                "prompt": sample.item.prompt,
                "reference": sample.item.reference,
                "reply": reply.text,
                "finishReason": reply.finish_reason,
                "extracted": score.extracted,
                "score": score.value,
                "variants": dict(score.variants),
            }


def report_html(setting: Setting, results: Results, samples: Sequence[Sample], lineage: Sequence[Ancestor]) -> str:
    """The page."""
    title = f"{setting.run} · {setting.stage}"
    level = f"{results.confidence:.4g}"
    body = "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            f"<p class='about'>Candidate <b>{escape(results.candidate)}</b>, intervals at level {level}, "
            f"sampling temperature {setting.temperature:g}.</p>",
            _verdict(results),
            "<h2>Scores</h2>",
            _scores(results.scores),
            score_chart(results.scores),
            _comparisons(results.comparisons, results.candidate),
            _contamination(results.cleanliness),
            _curves(lineage),
            "<h2>Samples</h2>",
            *(_browser(task.name, samples, list(setting.models)) for task in setting.tasks),
            "<h2>Lineage</h2>",
            _lineage(setting, results.candidate, lineage),
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _verdict(results: Results) -> str:
    verdict = results.verdict
    warnings = "".join(f"<li>warning: {escape(words)}</li>" for words in results.warnings)
    if verdict is None:
        told = f"<ul>{warnings}</ul>" if warnings else ""
        return f'<div class="verdict none"><strong>no verdict</strong><br>This stage has no gates.{told}</div>'
    rules = "".join(f"<li>{rule.status}: {escape(rule.reason)}</li>" for rule in verdict.rules) + warnings
    return f'<div class="verdict {verdict.status}"><strong>{verdict.status}</strong><ul>{rules}</ul></div>'


def _scores(scores: Sequence[TaskScore]) -> str:
    rows = [
        [
            escape(s.task),
            escape(s.model),
            f"{s.estimate.value:.3f}",
            f"{s.estimate.low:.3f} – {s.estimate.high:.3f}",
            str(s.estimate.n),
            str(s.unparseable),
            str(s.cut),
            str(s.unanswered),
            ", ".join(f"{escape(name)} {e.value:.3f}" for name, e in s.variants.items()),
        ]
        for s in scores
    ]
    head = ["task", "model", "score", "interval", "items", "unparseable", "cut at the limit", "prompt too long", "also"]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return _table(head, rows, numbers={2, 3, 4, 5, 6, 7})


def _comparisons(comparisons: Sequence[Comparison], candidate: str) -> str:
    if not comparisons:
        return ""
    rows = [
        [
            escape(c.task),
            escape(c.baseline),
            f"{c.difference.value:+.3f}",
            f"{c.difference.low:+.3f} – {c.difference.high:+.3f}",
            f"{c.win_rate.value:.3f}",
            f"{c.win_rate.low:.3f} – {c.win_rate.high:.3f}",
            f"{c.difference.p_value:.2g}",
            f"{c.detectable:.3f}",
        ]
        for c in comparisons
    ]
    head = ["task", "baseline", "difference", "interval", "win rate", "interval", "p-value", "detectable (80 % power)"]
    return f"<h2>{escape(candidate)} against its baselines</h2>" + _table(head, rows, numbers=set(range(2, 8)))


def _contamination(tasks: Sequence[Cleanliness]) -> str:
    """Scores on all questions and on those that no training source held."""
    if not tasks:
        return ""
    rows = [
        [
            escape(task.task),
            f"not checked: {escape(', '.join(task.exposure.unchecked))}"
            if task.exposure.unchecked
            else task.exposure.status,
            f"{len(task.exposure.touched)} of {task.items}",
            str(len(task.exposure.left)),
            escape(score.model),
            f"{score.all.value:.3f}",
            "" if score.clean is None else f"{score.clean.value:.3f}",
            "" if score.difference is None else f"{score.difference.value:+.3f}",
            "" if score.difference is None else f"{score.difference.low:+.3f} – {score.difference.high:+.3f}",
        ]
        for task in tasks
        for score in task.scores
    ]
    head = [
        "task",
        "training data",
        "questions in sources",
        "left in data",
        "model",
        "all",
        "clean",
        "difference",
        "interval",
    ]
    about = (
        "<p>Clean are the questions that occur in no source of the data that these models were trained on, also not in "
        "rows that were dropped for it. What the base model has read is not known.</p>"
    )
    return f"<h2>Contamination</h2>{about}" + _table(head, rows, numbers={2, 3, 5, 6, 7, 8})


def _curves(lineage: Sequence[Ancestor]) -> str:
    drawn = [ancestor for ancestor in lineage if ancestor.curves]
    if not drawn:
        return ""
    parts = [
        f"<h3>{escape(ancestor.stage or ancestor.fingerprint)} ({escape(ancestor.kind)})</h3>"
        + curve_chart(ancestor.stage or ancestor.fingerprint, ancestor.curves)
        for ancestor in drawn
    ]
    return "<h2>Training</h2>" + "".join(parts)


def _browser(task: str, samples: Sequence[Sample], models: Sequence[str]) -> str:
    candidate = models[0]
    own = [sample for sample in samples if sample.task == task]
    # What the candidate gets wrong, and of that what another model gets right, is what a reader looks for.
    own.sort(key=lambda s: (s.scores[candidate].value, -max(s.scores[model].value for model in models)))
    rows = "".join(
        f"<tr><td><pre>{escape(_prompt(sample))}</pre><small>{escape(sample.item.id)}</small></td>"
        f"<td><pre>{escape(sample.item.reference)}</pre></td>{''.join(_reply(sample, model) for model in models)}</tr>"
        for sample in own[:SHOWN_SAMPLES]
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in ["prompt", "reference", *models])
    shown = f"{min(len(own), SHOWN_SAMPLES)} of {len(own)}, wrong ones first"
    return f"<details open><summary>{escape(task)} ({shown})</summary><table><tr>{head}</tr>{rows}</table></details>"


def _prompt(sample: Sample) -> str:
    messages = sample.item.prompt
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _reply(sample: Sample, model: str) -> str:
    score, reply = sample.scores[model], sample.replies[model]
    tone, word = ("right", "right") if score.value == 1 else ("wrong", "wrong" if score.value == 0 else f"{score.value:.2f}")
    notes = [word] + (["unparseable"] if score.extracted is None else [])
    notes += [reply.finish_reason] if reply.finish_reason != "stop" else []
    return f'<td class="{tone}"><pre>{escape(reply.text)}</pre><small>{escape(", ".join(notes))}</small></td>'


def _lineage(setting: Setting, candidate: str, lineage: Sequence[Ancestor]) -> str:
    rows = [
        [escape(a.stage or "(no longer in the workspace)"), escape(a.kind), a.type, f"<code>{escape(a.fingerprint)}</code>"]
        for a in lineage
    ]
    known = {ancestor.fingerprint for ancestor in lineage}
    for name, fingerprint in setting.models.items():
        if fingerprint not in known:
            role = "candidate" if name == candidate else "baseline"
            rows.append([escape(name), role, "Model", f"<code>{escape(fingerprint)}</code>"])
    return _table(["stage", "kind", "type", "fingerprint"], rows, numbers=set())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: set[int]) -> str:
    """A table of cells that are HTML already; the columns in `numbers` are set to the right."""

    def cells(row: Sequence[str], tag: str) -> str:
        number = ' class="number"'
        return "".join(f"<{tag}{number if i in numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(row))

    lines = [f"<tr>{cells(head, 'th')}</tr>", *(f"<tr>{cells(row, 'td')}</tr>" for row in rows)]
    return f"<table>{''.join(lines)}</table>"
