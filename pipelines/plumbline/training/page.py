"""The report of a training stage: curves and settings on one HTML page without external resources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from plumbline.api.stages.training import TrainingSpec
from plumbline.data.card_page import POLICY, STYLE
from plumbline.evaluation.charts import MAX_CURVES, curve_chart
from plumbline.evaluation.lineage import columns
from plumbline.training.throughput import MEMORY, MFU, TIMED, TOKENS_PER_SECOND
from plumbline.training.tracking.tracker import Row, flat

REPORT = "report.html"
OPTIMISATION = ("loss", "gradNorm", "learningRate", "tokens")


def page(
    title: str,
    history: Sequence[Row],
    clock: Mapping[int, Row],
    spec: TrainingSpec,
    samples: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page.

    Args:
        title: such as the stage's name.
        history: metrics of every step, as `metrics.jsonl` has them.
        clock: step → what was measured by the clock; none of steps whose measurements were lost.
        spec: the stage's block.
        samples: answers from the way, each of the same fields.
    """
    curves = columns({**clock.get(int(row["step"]), {}), **row} for row in history)
    own = [name for name in curves if name not in (*OPTIMISATION, *TIMED)]
    charts = [
        ("Optimisation", [name for name in OPTIMISATION if name in curves]),
        ("Objective and data", own),
        ("Throughput", [name for name in TIMED if name in curves]),
    ]
    settings = flat(spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"tracking"}))
    shown = [
        f"<h1>Training: {escape(title)}</h1>",
        f"<p>{len(history):,} steps. {escape(_words(summary(clock)))}</p>",
        *(_charts(heading, [(name, curves[name]) for name in names]) for heading, names in charts if names),
        "<h2>First and last step</h2>",
        _table(("figure", "first", "last"), _ends(history)),
        *(
            ["<h2>Answers</h2>", _table(tuple(samples[0]), ([_figure(v) for v in one.values()] for one in samples))]
            if samples
            else []
        ),
        "<h2>Settings</h2>",
        _table(("field", "value"), settings.items()),
    ]
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    style = f"{STYLE} svg {{ max-width: 100%; height: auto }}"
    head = f'<meta charset="utf-8">{policy}<title>Training: {escape(title)}</title><style>{style}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>' + "\n".join(shown) + "\n</body></html>\n"


def summary(clock: Mapping[int, Row]) -> Row:
    """Medians of speed over all steps, and the most memory."""
    found = {}
    for name, of in ((TOKENS_PER_SECOND, median), (MFU, median), (MEMORY, max)):
        values = [row[name] for row in clock.values() if name in row]
        if values:
            found[name] = float(of(values))
    return found


def _words(found: Row) -> str:
    words = [f"{found[TOKENS_PER_SECOND]:,.0f} tokens a second"] if TOKENS_PER_SECOND in found else []
    words += [f"{found[MFU]:.1%} of the device's FLOPS"] if MFU in found else []
    words += [f"{found[MEMORY]:.2f} GiB at most in the first worker"] if MEMORY in found else []
    return ", ".join(words) + "." if words else ""


def _charts(heading: str, curves: list[tuple[str, list[tuple[float, float]]]]) -> str:
    parts = [dict(curves[start : start + MAX_CURVES]) for start in range(0, len(curves), MAX_CURVES)]
    return f"<h2>{heading}</h2>" + "".join(curve_chart(f"{heading}-{i}", part) for i, part in enumerate(parts))


def _ends(history: Sequence[Row]) -> Iterable[tuple[str, str, str]]:
    if history:
        for name in history[-1]:
            yield name, _figure(history[0].get(name)), _figure(history[-1][name])


def _figure(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else str(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(words)}</th>" for words in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
