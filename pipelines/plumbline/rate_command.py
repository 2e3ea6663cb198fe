"""`plumbline rate`: ratings from judgments that are stored already."""

from __future__ import annotations

import argparse
import json
from typing import Any

MAX_ROUNDS = 100_000


def add_rate(commands: argparse._SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "rate",
        help="rate models from stored judgments",
        description="Win rates, mean grades, Elo and Bradley–Terry ratings from stored judgments.",
        epilog=epilog,
    )
    command.add_argument("--format", required=True, choices=("alpaca_eval", "battles", "mt_bench", "vicuna_review"))
    command.add_argument(
        "files", nargs="+", metavar="FILE", help="JSON lines, JSON, CSV or Parquet, also compressed; or a folder"
    )
    command.add_argument("--json", action="store_true", help="JSON for programs")
    command.add_argument("--baseline", metavar="NAME", help="the model to compare with; its Bradley–Terry rating is 1000")
    command.add_argument(
        "--lc-weights", metavar="FILE", help="weights of AlpacaEval's length-controlled model; with --difficulty"
    )
    command.add_argument(
        "--difficulty", metavar="FILE", help="instruction difficulties; without --lc-weights the model is fitted"
    )
    command.add_argument("--seed", type=_whole(2**63), default=0, metavar="N", help="of the resamples (0)")
    command.add_argument(
        "--bootstrap", type=_whole(MAX_ROUNDS), default=1000, metavar="N", help="resamples for intervals (1000); 0 for none"
    )
    command.set_defaults(command=_rate)


def _whole(limit: int) -> Any:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) > limit:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to {limit}")
        return int(text)

    return parse


def _rate(options: argparse.Namespace) -> int:
    from plumbline.errors import InvalidInput
    from plumbline.evaluation.ratings.formats import read_judgments
    from plumbline.evaluation.ratings.rating import rate
    from plumbline.evaluation.ratings.terms import read_difficulties, read_weights

    if options.format != "alpaca_eval" and (options.lc_weights or options.difficulty):
        raise InvalidInput(f"--lc-weights and --difficulty belong to --format alpaca_eval, not to {options.format}")
    if options.lc_weights and not options.difficulty:
        raise InvalidInput(
            "--lc-weights alone does not make a length-controlled win rate; give the instructions' --difficulty too"
        )
    weights = read_weights(options.lc_weights) if options.lc_weights else None
    difficulties = read_difficulties(options.difficulty) if options.difficulty else None
    judgments = read_judgments(options.format, options.files, options.baseline)
    found = rate(judgments, options.baseline, options.bootstrap, options.seed, weights, difficulties)
    if options.json:
        settings = {"baseline": options.baseline, "bootstrap": options.bootstrap, "seed": options.seed}
        print(json.dumps({"format": options.format, **settings, **found.record()}, indent=1, allow_nan=False))
    else:
        _show(found.record())
    return 0


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()

    def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
        if not rows:
            return
        table = Table(title=escape(title), title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(escape(column), justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)

    controlled = any("length_controlled_winrate" in one for one in found["win_rates"])
    for baseline in sorted({one["baseline"] for one in found["win_rates"]}, key=str):
        show(
            f"Win rates in %, against {baseline or 'all others'}",
            ["model", "win rate", "95 % interval", "discrete", *(["LC"] if controlled else []), "won / lost / drawn"],
            [
                [
                    one["model"],
                    f"{one['win_rate']:.2f} ± {_number(one['standard_error'], 2)}",
                    _interval(one, 1),
                    _number(one["discrete_win_rate"], 2),
                    *([_number(one.get("length_controlled_winrate"), 2)] if controlled else []),
                    f"{one['n_wins']:,} / {one['n_wins_base']:,} / {one['n_draws']:,}",
                ]
                for one in found["win_rates"]
                if one["baseline"] == baseline
            ],
        )
    turns = sorted({turn for one in found["mean_scores"] for turn in one["turns"]})
    show(
        "Mean grades",
        ["model", "mean", "95 % interval", *(f"turn {turn}" for turn in turns), "grades"],
        [
            [one["model"], _number(one["mean"], 3), _interval(one, 2)]
            + [_number(one["turns"].get(turn), 3) for turn in turns] + [f"{one['n']:,}"]
            for one in found["mean_scores"]
        ],
    )  # fmt: skip
    models = [one["model"] for one in found["mean_scores"]]
    categories = sorted({name for one in found["mean_scores"] for name in one["categories"]})
    means = {one["model"]: one["categories"] for one in found["mean_scores"]}
    grid = [["", *models]] + [[name, *(_number(means[model].get(name), 2) for model in models)] for name in categories]
    columns, *rows = grid if len(models) <= len(categories) else [list(column) for column in zip(*grid, strict=True)]
    show("Mean grades by category", columns, rows if categories else [])
    elo = {one["model"]: one for one in found["elo"]}
    show(
        "Ratings",
        ["model", "Bradley–Terry", "95 % interval", "Elo", "95 % interval"],
        [
            [
                strength["model"],
                *(
                    text
                    for one in (strength, elo[strength["model"]])
                    for text in (_number(one["rating"], 1), _interval(one, 0))
                ),
            ]
            for strength in found["bradley_terry"]
        ],
    )
    for line in _lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(found: dict[str, Any]) -> list[str]:
    lines = []
    if any("length_controlled_winrate" in one for one in found["win_rates"]):
        lines.append("± is the standard error; LC is the length-controlled win rate")
    order = found["positions"]
    if order and order["consistent"] is not None:
        lines.append(f"the same result in both orders: {100 * order['consistent']:.1f} % of {order['pairs']:,}")
    if order and order["first_preferred"] is not None:
        lines.append(
            f"the answer shown first was preferred: {100 * order['first_preferred']:.1f} % of {order['games']:,} decided"
        )
    unscored = found["unscored"]
    if unscored["total"]:
        lines.append(
            f"unscored: {unscored['total']:,} of {found['scored'] + unscored['total']:,} judgments, counted nowhere above"
        )
        lines += [f"  {count:,} times: {reason}" for reason, count in unscored["reasons"].items()]
        lines.append(f"  such as {unscored['first'][0]}")
    return lines + [f"note: {note}" for note in found["notes"]]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(one: dict[str, Any], digits: int) -> str:
    return "–" if one["low"] is None else f"{one['low']:.{digits}f} – {one['high']:.{digits}f}"
