"""The report: report.json with every number, report.html for people, samples.jsonl with every reply, judgments.jsonl with every verdict.

The page is one file: no script, nothing fetched; a content policy in it holds browsers to that. All that comes from a
model or a file is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.address import public
from plumbline.evaluation.charts import curve_chart, score_chart
from plumbline.evaluation.contamination import Cleanliness
from plumbline.evaluation.gate import RuleResult
from plumbline.evaluation.judge_report import JudgeReport, cost_table
from plumbline.evaluation.lineage import Ancestor
from plumbline.evaluation.results import Comparison, Results, Sample, TaskScore
from plumbline.evaluation.statistics import Estimate
from plumbline.evaluation.tables import groups, interval, skills, table, win_rates

REPORT, PAGE, SAMPLES, JUDGMENTS = "report.json", "report.html", "samples.jsonl", "judgments.jsonl"
SCHEMA_VERSION = 1
SHOWN_SAMPLES = 40  # of each task

STYLE = """
:root { color-scheme: light; --line: #d9dce3; --soft: #5b6270; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2029; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; } h3 { font-size: 1rem; }
p.about { color: var(--soft); margin: .2rem 0 1.2rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; color: var(--soft); }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; } td.number { white-space: nowrap; }
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
        cost: who was asked → calls and tokens.
        judge: who judged, if anybody.
    """

    run: str
    stage: str
    models: dict[str, str]
    tasks: Sequence[TaskSpec]
    temperature: float
    cost: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    judge: JudgeReport | None = None


def write(
    folder: Path, setting: Setting, results: Results, samples: Sequence[Sample], lineage: Sequence[Ancestor]
) -> dict[str, Any]:
    """Write report.json, report.html and samples.jsonl into `folder`, and judgments.jsonl where there is a judge; gives report.json's values."""
    values = report_json(setting, results, lineage)
    (folder / REPORT).write_text(json.dumps(values, indent=1, sort_keys=True, allow_nan=False))
    page = report_html(setting, results, samples, lineage)
    (folder / PAGE).write_text(page, encoding="utf-8", errors="replace")  # a model may write half a surrogate pair
    with (folder / SAMPLES).open("w") as stream:
        for row in sample_rows(setting, samples):
            stream.write(json.dumps(row) + "\n")
    if setting.judge is not None:
        rows = [row for one in setting.judge.judged for row in one.rows]
        (folder / JUDGMENTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return values


def report_json(setting: Setting, results: Results, lineage: Sequence[Ancestor]) -> dict[str, Any]:
    """Everything but the replies, as plain values."""
    return {
        "schemaVersion": SCHEMA_VERSION,
        "run": setting.run,
        "stage": setting.stage,
        "models": [{"name": name, "fingerprint": fingerprint} for name, fingerprint in setting.models.items()],
        "tasks": [_task_json(task) for task in setting.tasks],
        "temperature": setting.temperature,
        **results.to_json(),
        "judge": setting.judge.to_json() if setting.judge else None,
        "cost": {who: dict(of) for who, of in setting.cost.items()},
        "lineage": [asdict(ancestor) for ancestor in lineage],
    }


def _task_json(task: TaskSpec) -> dict[str, Any]:
    values = task.model_dump(mode="json", by_alias=True)
    return {name: public(value) if isinstance(value, str) and "://" in value else value for name, value in values.items()}


def sample_rows(setting: Setting, samples: Sequence[Sample]) -> Iterable[dict[str, Any]]:
    """One row for each item and model; a reply that could not be scored has neither score nor `extracted`."""
    for sample in samples:
        for model, reply in sample.replies.items():
            score = sample.scores.get(model)
            yield {
                "task": sample.task,
                "item": sample.item.id,
                "model": model,
                "fingerprint": setting.models.get(model),
                "prompt": sample.item.prompt,
                "reference": sample.item.reference,
                "reply": reply.text,
                **(
                    {"turns": list(sample.item.turns), "replies": list(sample.turns[model])} if model in sample.turns else {}
                ),
                "finishReason": reply.finish_reason,
                "extracted": score.extracted if score else None,
                "score": score.value if score else None,
                "variants": dict(score.variants) if score else {},
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
            _score_chart(results.scores),
            _comparisons(results.comparisons, results.candidate),
            *(win_rates(one) for one in results.win_rates),
            *(skills(task, results.scores) for task in setting.tasks),
            groups(results.scores),
            _contamination(results.cleanliness),
            setting.judge.html(table) if setting.judge else "",
            cost_table(setting.cost, table),
            _curves(lineage),
            "<h2>Samples</h2>",
            *(
                _browser(task.name, samples, list(setting.models), setting.judge.said(task.name) if setting.judge else {})
                for task in setting.tasks
            ),
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
    told = f'<div class="verdict {verdict.status}"><strong>{verdict.status}</strong><ul>{rules}</ul></div>'
    return told + _gate(verdict.rules, results.candidate)


def _gate(rules: Sequence[RuleResult], candidate: str) -> str:
    rows = [
        [
            rule.status,
            escape(rule.task),
            escape(rule.metric),
            escape(candidate if rule.baseline is None else f"{candidate} − {rule.baseline}"),
            f"{rule.comparison} {rule.limit:+g}" if rule.baseline else f"{rule.comparison} {rule.limit:g}",
            interval(rule.estimate) if rule.estimate else "–",
            f"{rule.confidence:.4g}",
            str(rule.estimate.n) if rule.estimate else "0",
            rule.basis,
            "–" if rule.detectable is None else f"{rule.detectable:.3f}",
            "–" if rule.items_needed is None else f"{rule.items_needed:,}",
            "–" if rule.items_for_effect is None else f"{rule.items_for_effect:,}",
        ]
        for rule in rules
    ]
    head = ["", "task", "metric", "of", "must be", "is", "level", "items", "questions"]
    head += ["detectable distance", "items to decide", "items for minEffect"]
    about = "Power is 80 %."
    if len(rules) > 1:
        about += " The gate passes when every rule passes: several rules make it stricter, and need no correction for being several."
    about += " What the base model has read before is known to nobody, and decides nothing here."
    return f"<h2>Gate</h2><p class='about'>{about}</p>" + table(head, rows, numbers={5, 6, 7, 9, 10, 11})


def _scores(scores: Sequence[TaskScore]) -> str:
    rows = [
        [
            escape(s.task),
            escape(s.model),
            *_estimate(s.estimate),
            str(s.clusters) if s.clusters != s.estimate.n else "",
            str(s.unparseable),
            str(s.unscored) if s.unscored else "",
            str(s.cut),
            str(s.unanswered),
            "<br>".join(
                f"{escape(name)} {interval(e)}"
                for name, e in ({f"macro:{of}": e for of, e in s.macro.items()} | s.variants | s.figures).items()
            ),
        ]
        for s in scores
    ]
    head = ["task", "model", "score", "interval", "items", "clusters", "unparseable", "unscored", "cut at the limit"]
    head += ["prompt too long", "also"]
    optional = {5, 7, 10}
    kept = [i for i in range(len(head)) if i not in optional or any(row[i] for row in rows)]
    numbers = {place for place, i in enumerate(kept) if 2 <= i < 10}
    return table([head[i] for i in kept], [[row[i] for i in kept] for row in rows], numbers)


def _score_chart(scores: Sequence[TaskScore]) -> str:
    known = [score for score in scores if score.estimate.n]
    return score_chart(known) if known else ""


def _estimate(e: Estimate) -> list[str]:
    """Value, interval and items as three cells."""
    if not e.n:
        return ["–", "–", "0"]
    return [f"{e.value:.3f}", f"{e.low:.3f} – {e.high:.3f}", str(e.n)]


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
    return f"<h2>{escape(candidate)} against its baselines</h2>" + table(head, rows, numbers=set(range(2, 8)))


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
    return f"<h2>Contamination</h2>{about}" + table(head, rows, numbers={2, 3, 5, 6, 7, 8})


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


def _browser(
    task: str, samples: Sequence[Sample], models: Sequence[str], said: Mapping[str, Sequence[tuple[str, str]]]
) -> str:
    candidate = models[0]
    own = [sample for sample in samples if sample.task == task]
    present = {model for sample in own for model in sample.replies}
    shown = [name for name in models if name in present] + sorted(present - set(models))

    def value(sample: Sample, model: str) -> float:
        return sample.scores[model].value if model in sample.scores else -1.0  # unscored before wrong

    # What the candidate gets wrong, and of that what another model gets right, is what a reader looks for.
    own.sort(key=lambda s: (value(s, candidate), -max((value(s, model) for model in shown), default=0.0)))
    rows = "".join(
        f"<tr><td><pre>{escape(_prompt(sample))}</pre><small>{escape(sample.item.id)}</small></td>"
        f"<td><pre>{escape(sample.item.reference)}</pre></td>{''.join(_reply(sample, model, bool(said)) for model in shown)}{_said(said, sample.item.id)}</tr>"
        for sample in own[:SHOWN_SAMPLES]
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in ["prompt", "reference", *shown, *(["judge"] if said else [])])
    of = f"{min(len(own), SHOWN_SAMPLES)} of {len(own)}, wrong ones first"
    return f"<details open><summary>{escape(task)} ({of})</summary><table><tr>{head}</tr>{rows}</table></details>"


def _prompt(sample: Sample) -> str:
    messages = [(message["role"], message["content"]) for message in sample.item.prompt]
    messages += [("user, then", turn) for turn in sample.item.turns]
    if len(messages) == 1:
        return messages[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in messages)


def _said(said: Mapping[str, Sequence[tuple[str, str]]], item: str) -> str:
    """The cell of the judge's words; nothing where nobody judged."""
    told = (
        f"<details><summary>{escape(came)}</summary><pre>{escape(words)}</pre></details>"
        if words
        else f"<p>{escape(came)}</p>"
        for came, words in said.get(item, ())
    )
    return f"<td>{''.join(told)}</td>" if said else ""


def _reply(sample: Sample, model: str, judged: bool) -> str:
    score, reply = sample.scores.get(model), sample.replies.get(model)
    if reply is None:
        return "<td></td>"
    if score is None:
        tone, notes = "", ["unscored"]
    else:
        tone = "right" if score.value == 1 else "wrong"
        word = f"{score.value:.2f}" if judged else {1.0: "right", 0.0: "wrong"}.get(score.value, f"{score.value:.2f}")
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
    return table(["stage", "kind", "type", "fingerprint"], rows, numbers=set())
