"""The README.md of an evaluated model in Hugging Face's form: lineage, data, training, figures with intervals, verdict and limits. Pure.

All that comes from files is written so that Markdown shows it and does not read it; credentials in addresses are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from plumbline import __version__
from plumbline.api.base import ArtifactType
from plumbline.api.stages.evaluate import JUDGED, TaskSpec
from plumbline.evaluation.address import public
from plumbline.hub import DATASETS

Values = Mapping[str, Any]

METRICS = {"humaneval": "pass@1", "superNaturalInstructions": "rougeL", "truthfulqa": "mc1", "advBench": "refusal_rate"}
"""What the score of a benchmark is called; of the others it is `accuracy`, and what a judge says `win_rate` or `judge_score`."""
SAFETY = ("advBench", "xsTest", "bbq")
REASONS = 5
"""Most frequent reasons for dropped records that are named."""
_HUB_TASK = "text-generation"
_MARKUP = re.compile(r"([\\`*_|\[\]#~])")


def card(
    report: Values,
    *,
    base: str,
    revision: str | None = None,
    licence: str | None = None,
    manifests: Sequence[Values] = (),
    cards: Mapping[str, Values] | None = None,
) -> str:
    """Markdown with a head that model hubs read (`model-index` holds the scores).

    Args:
        report: of the evaluation, as in report.json.
        base, revision: of the base model; a hub's (`hf://ORG/NAME`) is named in the head.
        licence: of the model, as the hub spells it (`apache-2.0`); left out where nobody has said it.
        manifests: of the model and all it was made from, the oldest first.
        cards: fingerprint → data card, of the data among them.
    """
    candidate = str(report["candidate"])
    fingerprint = next((one["fingerprint"] for one in report["models"] if one["name"] == candidate), None)
    data = [one for one in manifests if _type(one) in (ArtifactType.DATASET, ArtifactType.PREFERENCE_DATASET)]
    shown = {one["fingerprint"]: (cards or {}).get(one["fingerprint"]) for one in data}
    about = f"`{_code(candidate)}` of the run `{_code(report['run'])}`, made of `{_code(public(base))}`"
    about += f" (commit {_text(revision)})" if revision else ""
    about += f", evaluated by its stage `{_code(report['stage'])}`. Written by Plumbline {__version__}."
    parts = [
        f"---\n{_head(report, candidate, base, licence, shown).to_yaml().strip()}\n---",
        f"# {_text(report['run'])}, {_text(candidate)}",
        about + (f" Fingerprint `{_code(fingerprint)}`." if fingerprint else ""),
        "## Verdict",
        _verdict(report),
        "## Evaluation",
        *_evaluation(report, candidate),
        *(["## Data", *(_data(one, shown[one["fingerprint"]]) for one in data)] if data else []),
        *(["## How it was made", _lineage(manifests)] if manifests else []),
        "## Limits",
        "\n".join(f"- {words}" for words in _limits(report, candidate, [one for one in shown.values() if one])),
    ]
    return "\n\n".join(parts) + "\n"


def _head(
    report: Values, candidate: str, base: str, licence: str | None, cards: Mapping[str, Values | None]
) -> ModelCardData:
    hub = [
        source["uri"].removeprefix(DATASETS).partition("@")[0]
        for one in cards.values()
        for source in (one or {}).get("sources", ())
        if source["uri"].startswith(DATASETS)
    ]
    return ModelCardData(
        base_model=base.removeprefix("hf://").partition("@")[0] if base.startswith("hf://") else None,
        library_name="transformers",
        pipeline_tag=_HUB_TASK,
        license=licence,
        datasets=["/".join(name.split("/")[:2]) for name in dict.fromkeys(hub)] or None,
        tags=["plumbline"],
        model_name=f"{report['run']}/{candidate}",
        eval_results=[one for score in _scores(report, candidate) for one in _results(report, score)],
    )


def _results(report: Values, score: Values) -> Iterable[EvalResult]:
    """The score of a task and its variants, for the head."""
    task = _task(report, score["task"])
    figures = {None: {"value": score["score"], **{name: score[name] for name in ("low", "high", "n")}}, **score["variants"]}
    for variant, one in figures.items():
        yield EvalResult(
            task_type=_HUB_TASK,
            dataset_type=task.harness_task or task.benchmark,
            dataset_name=task.name,
            dataset_config=task.name,  # the hub's form tells tasks apart by it, not by their names
            metric_type=_metric(task),
            metric_value=round(one["value"], 6),
            metric_name=variant or _metric(task),
            metric_args={**{name: one[name] for name in ("low", "high", "n")}, "confidence": report["confidence"]},
        )


def _evaluation(report: Values, candidate: str) -> list[str]:
    level = f"{100 * report['confidence']:g} %"
    about = f"Intervals are of {level}, the answers sampled at temperature {report['temperature']:g}; every score lies in 0 to 1, higher is better."
    models = [str(one["name"]) for one in report["models"]]
    rows = [
        [
            _text(score["task"]),
            _text(_benchmark(_task(report, score["task"]))),
            _text(score["model"]),
            _metric(_task(report, score["task"])),
            _interval(score["score"], score),
            f"{score['n']:,}",
            ", ".join(
                f"{_text(name)} {one['value']:.3f}"
                for name, one in {**score["variants"], **score.get("figures", {})}.items()
            )
            or "–",
        ]
        for score in sorted(
            report["scores"], key=lambda score: models.index(score["model"]) if score["model"] in models else 99
        )
    ]
    found = [about, _table(["task", "benchmark", "model", "metric", "score", "items", "also"], rows)]
    compared = [
        [
            _text(one["task"]),
            _text(one["baseline"]),
            _interval(one["difference"]["value"], one["difference"], "+.3f"),
            _interval(one["winRate"]["value"], one["winRate"]),
            f"{one['detectableDifference']:.3f}",
            f"{one['n']:,}",
        ]
        for one in report["comparisons"]
    ]
    if compared:
        head = ["task", "against", "difference", "win rate", "detectable with 80 % power", "items"]
        found += [f"### {_text(candidate)} against others", _table(head, compared)]
    for score in _scores(report, candidate):
        for grouping, groups in score.get("groups", {}).items():
            rows = [[_text(name), _interval(one["value"], one), f"{one['n']:,}"] for name, one in groups.items()]
            macro = score.get("macro", {}).get(grouping)
            rows += [["mean of these", _interval(macro["value"], macro), f"{macro['n']:,}"]] if macro else []
            if len(groups) > 1:
                found += [
                    f"### {_text(score['task'])} by {_text(grouping)}",
                    _table([_text(grouping), "score", "items"], rows),
                ]
    return found


def _verdict(report: Values) -> str:
    if report["verdict"] is None:
        return "The evaluation has no gate: nobody has said what it would have to reach."
    rules = [f"- {_text(rule['status'])}: {_text(rule['reason'])}" for rule in report["rules"]]
    return "\n".join([f"**{_text(report['verdict'])}**: {_text(report['verdictReason'])}", "", *rules])


def _data(manifest: Values, found: Values | None) -> str:
    title = f"### {_text(manifest['stage'])} ({_text(manifest['kind'])})"
    if found is None:
        rows = manifest["details"].get("rows")
        return f"{title}\n\n" + ("Its data card is lost." if rows is None else f"{rows:,} rows; its data card is lost.")
    kept = f"{found['rows']:,} of {found['records']:,} records were kept ({_text(found['form'])})."
    sources = [
        [_text(one["name"]), f"`{_code(public(one['uri']))}`", f"{one['records']:,}", f"{one['rows']:,}"]
        for one in found["sources"]
    ]
    lines = [title, kept, _table(["source", "where", "records", "rows"], sources)]
    for words, name in (("Licences", "licences"), ("Languages", "languages"), ("Categories", "categories")):
        if found.get(name):
            lines.append(f"{words}, by rows: " + _counts(found[name]) + ".")
    if found.get("dropped"):
        most = dict(list(found["dropped"].items())[:REASONS])
        lines.append(f"{found['records'] - found['rows']:,} were dropped, most often: {_counts(most)}.")
    return "\n\n".join(lines)


def _lineage(manifests: Sequence[Values]) -> str:
    rows = [
        [
            _text(one["stage"]),
            _text(one["kind"]),
            _text(one["type"]),
            f"`{_code(one['fingerprint'])}`",
            ", ".join(f"{_text(name)} {value:.4g}" for name, value in sorted(one["metrics"].items()) if _is_number(value))
            or "–",
        ]
        for one in manifests
    ]
    return _table(["stage", "kind", "makes", "fingerprint", "measured at the end"], rows)


def _limits(report: Values, candidate: str, cards: Sequence[Values]) -> list[str]:
    """What a reader must not take from the figures."""
    tasks = [_task(report, one["name"]) for one in report["tasks"]]
    found = [_text(words) for words in report["warnings"]]
    checked = {one["task"] for one in report["contamination"]}
    unchecked = [task.name for task in tasks if task.name not in checked]
    if unchecked:
        found.append(f"Whether the training data held the questions of {_listed(unchecked)} was not checked.")
    found.append("What the base model has read before is not known: it may have seen any public benchmark.")
    for score in _scores(report, candidate):
        lost = {name: score.get(name, 0) for name in ("unparseable", "cut", "unscored")}
        words = {
            "unparseable": "held no answer and count 0",
            "cut": "ended at the token limit",
            "unscored": "could not be judged",
        }
        told = [f"{count:,} replies {words[name]}" for name, count in lost.items() if count]
        if told:
            found.append(f"{_text(score['task'])}: of {score['n']:,} items, {', '.join(told)}.")
    judged = [task.name for task in tasks if task.benchmark in JUDGED]
    if judged:
        found.append(
            f"A model has judged {_listed(judged)}: such figures say how it reads answers, not what people would say."
        )
    if not any(task.benchmark in SAFETY for task in tasks):
        found.append("Harmful answers, needless refusals and bias were not measured.")
    licences = sorted({licence for one in cards for licence in one.get("licences", {})})
    if licences:
        found.append(f"Licences of the data may bind whoever uses the model: {_listed(licences)}.")
    elif cards:
        found.append("The data name no licences; ask their sources before you publish the model.")
    return found


def _scores(report: Values, candidate: str) -> list[Values]:
    """The candidate's scores of at least one item."""
    return [score for score in report["scores"] if score["model"] == candidate and score["n"]]


def _task(report: Values, name: str) -> TaskSpec:
    return TaskSpec.model_validate(next(one for one in report["tasks"] if one["name"] == name))


def _benchmark(task: TaskSpec) -> str:
    return task.benchmark if task.harness_task is None else f"{task.harness_task} (lm-evaluation-harness)"


def _metric(task: TaskSpec) -> str:
    if task.harness_task is not None:
        return task.harness_metric or "score"
    if task.benchmark in JUDGED:
        return "win_rate" if task.pairwise else "judge_score"
    return METRICS.get(task.benchmark, "accuracy")


def _type(manifest: Values) -> ArtifactType:
    return ArtifactType(manifest["type"])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{_text(name)} {count:,}" for name, count in counts.items())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(_text, names))


def _interval(value: float, one: Values, form: str = ".3f") -> str:
    return f"{value:{form}} ({one['low']:{form}} to {one['high']:{form}})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    """One line of plain text: nothing in it is Markdown or HTML."""
    return escape(_MARKUP.sub(r"\\\1", " ".join(str(value).split())), quote=False)


def _code(value: object) -> str:
    """What stands between two backticks, also in a table."""
    return " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
