"""Charts of the report as inline SVG: no file, no script, nothing fetched."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from plumbline.evaluation.lineage import Curve
from plumbline.evaluation.results import TaskScore
from plumbline.evaluation.statistics import Estimate

MAX_CURVES = 6  # of one stage
COLOURS = ("#4053d3", "#ddb310", "#b51d14", "#00beff", "#fb49b0", "#00b25d", "#8a8a8a", "#5d2e8c", "#222222")


def score_chart(scores: Sequence[TaskScore]) -> str:
    """Every score with its interval, one row a task and model."""
    models = list(dict.fromkeys(score.model for score in scores))
    figure = Figure(figsize=(7.2, 0.7 + 0.28 * len(scores)), layout="constrained")
    axes = figure.subplots()
    for row, score in enumerate(scores):
        e = score.estimate
        axes.errorbar(
            [e.value],
            [row],
            xerr=[[max(0.0, e.value - e.low)], [max(0.0, e.high - e.value)]],
            fmt="o",
            capsize=3,
            color=COLOURS[models.index(score.model) % len(COLOURS)],
        )
    axes.set_yticks(range(len(scores)), [_plain(f"{score.task} · {score.model}") for score in scores])
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("score")
    axes.grid(axis="x", alpha=0.3)
    return _svg(figure, "scores")


def radar_chart(series: Mapping[str, Mapping[str, Estimate]], name: str = "skills") -> str:
    """A polygon a model over the skills, with its interval as a band; what a model has no figure of is a gap.

    Args:
        series: model → skill → figure in [0, 1]. The skills stand clockwise in the order in which they come first.
        name: tells the charts of one page apart.
    """
    skills = list(dict.fromkeys(skill for of in series.values() for skill in of))
    angles = [2 * math.pi * place / len(skills) for place in range(len(skills) + 1)]  # the last is the first again
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.add_subplot(projection="polar")
    for number, (model, of) in enumerate(series.items()):
        closed = [of.get(skill) for skill in [*skills, *skills[:1]]]
        low, value, high = (
            [math.nan if one is None else getattr(one, part) for one in closed] for part in ("low", "value", "high")
        )
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(angles, value, color=colour, linewidth=1.6, marker="o", markersize=3, label=_plain(model))
        axes.fill_between(angles, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_theta_zero_location("N")  # type: ignore[attr-defined]
    axes.set_theta_direction(-1)  # type: ignore[attr-defined]
    axes.set_xticks(angles[:-1], [_plain(skill) for skill in skills], fontsize=9)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=False):  # beside the circle, not over it
        right = math.sin(angle)
        label.set_horizontalalignment("center" if abs(right) < 0.1 else "left" if right > 0 else "right")
    axes.set_yticks([0.25, 0.5, 0.75, 1], ["0.25", "0.5", "0.75", "1"], fontsize=7, color=COLOURS[6])
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(3, len(series)), fontsize=9)
    return _svg(figure, f"{name}-radar")


def bars_chart(series: Mapping[str, Mapping[str, Estimate]], name: str = "groups") -> str:
    """A bar a category and model with its interval.

    Args:
        series: model → category → figure in [0, 1]. The categories stand from above in the order in which they come first.
        name: tells the charts of one page apart.
    """
    categories = list(dict.fromkeys(category for of in series.values() for category in of))
    figure = Figure(figsize=(7.2, 0.9 + 0.26 * len(categories) * (len(series) + 0.6)), layout="constrained")
    axes = figure.subplots()
    height = 1 / (len(series) + 0.6)
    for number, (model, of) in enumerate(series.items()):
        rows = [(place, of[category]) for place, category in enumerate(categories) if category in of]
        axes.barh(
            [place + (number - (len(series) - 1) / 2) * height for place, _ in rows],
            [one.value for _, one in rows],
            height=0.9 * height,
            xerr=[
                [max(0.0, one.value - one.low) for _, one in rows],
                [max(0.0, one.high - one.value) for _, one in rows],
            ],
            color=COLOURS[number % len(COLOURS)],
            ecolor=COLOURS[8],
            error_kw={"linewidth": 0.8, "capsize": 2},
            label=_plain(model),
        )
    axes.set_yticks(range(len(categories)), [_plain(category) for category in categories])
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.set_xlim(0, 1.02)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=min(3, len(series)), fontsize=9)
    return _svg(figure, f"{name}-bars")


def win_matrix(models: Sequence[str], rates: Sequence[Sequence[Estimate | None]], name: str = "wins") -> str:
    """A heat map of win rates: how often the row's model wins against the column's; pairs without a figure are empty.

    Args:
        models: rows and columns, in this order.
        rates: row by row, win rates in [0, 1], a tie ½.
        name: tells the charts of one page apart.
    """
    cells = [[math.nan if rate is None else rate.value for rate in row] for row in rates]
    side = 1.2 + 0.75 * len(models)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    # Not imshow: that is a picture within the SVG, which the report's policy does not load.
    axes.pcolormesh(range(len(models) + 1), range(len(models) + 1), cells, cmap="RdBu", vmin=0, vmax=1)
    for y, row in enumerate(cells):
        for x, rate in enumerate(row):
            if not math.isnan(rate):
                dark = abs(rate - 0.5) > 0.3
                axes.text(
                    x + 0.5, y + 0.5, f"{rate:.2f}", ha="center", va="center", fontsize=9, color="white" if dark else "black"
                )
    names = [_plain(model) for model in models]
    middles = [place + 0.5 for place in range(len(models))]
    axes.set_xticks(middles, names, rotation=30, ha="right")
    axes.set_yticks(middles, names)
    axes.invert_yaxis()
    axes.set_xlabel("against")
    axes.spines[:].set_visible(False)
    return _svg(figure, f"{name}-matrix")


def curve_chart(stage: str, curves: Mapping[str, Curve]) -> str:
    """The first `MAX_CURVES` curves of a stage as small multiples."""
    shown = list(curves.items())[:MAX_CURVES]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.1 * rows), layout="constrained")
    for axes, (name, curve) in zip(figure.subplots(rows, columns, squeeze=False).flat, shown, strict=False):
        steps, values = zip(*curve, strict=True)
        axes.plot(steps, values, color=COLOURS[0], linewidth=1.4, marker="o" if len(curve) == 1 else None)
        axes.set_title(_plain(name), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    for axes in figure.axes[len(shown) :]:
        axes.set_visible(False)
    return _svg(figure, stage)


def phases_chart(stage: str, history: Sequence[Mapping[str, float]], threshold: float, chosen: int) -> str:
    """The two phases of supervised tuning (AlShikh et al. 2023, arXiv 2307.03692): instruction following scores up to their plateau above,
    what goes on changing after it, the loss and the drift from the input model, below.

    Args:
        stage: its name.
        history: metrics of every step; of some, and of step 0, also `ifs`, `ifsPartial`, `ifsFull`, `ifsBare` and `drift`.
        threshold: score at which the second phase begins.
        chosen: the step that is handed over.
    """
    drawn = ("ifs", "ifsFull", "ifsPartial", "ifsBare", "loss", "drift")
    curves = {name: [(row["step"], row[name]) for row in history if name in row] for name in drawn}
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for colour, name, words in zip(
        COLOURS, drawn, ("all prompts", "whole", "cut", "all, without the template"), strict=False
    ):
        above.plot(*zip(*curves[name], strict=True), marker="o", markersize=3, color=colour, linewidth=1.4, label=words)
    above.axhline(threshold, color=COLOURS[6], linewidth=0.8, linestyle=":")
    above.set_ylim(-0.03, 1.03)
    above.set_ylabel("answer-like replies")
    below.plot(*zip(*curves["loss"], strict=True), color=COLOURS[0], linewidth=1.4)
    below.set_ylabel("loss", color=COLOURS[0])
    right = below.twinx()
    right.plot(*zip(*curves["drift"], strict=True), marker="o", markersize=3, color=COLOURS[2], linewidth=1.4)
    right.set_ylabel("drift (nats a token)", color=COLOURS[2])
    reached = next((step for step, score in curves["ifs"] if score >= threshold), None)
    for axes in (above, below):
        if reached is not None:
            axes.axvspan(reached, history[-1]["step"], color=COLOURS[6], alpha=0.12, linewidth=0)
        axes.axvline(chosen, color=COLOURS[8], linewidth=1, linestyle="--", label=f"step {chosen}, handed over")
        axes.grid(alpha=0.3)
    above.legend(fontsize=8, loc="lower right")
    below.set_xlabel("step; the score has reached its threshold in the grey part")
    return _svg(figure, f"{stage}-phases")


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def _svg(figure: Figure, salt: str) -> str:
    stream = io.StringIO()
    # The salt makes identifiers the same for the same chart and different between charts of one page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
