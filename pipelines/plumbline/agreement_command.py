"""`plumbline agreement`: how far a judge agrees with people, from stored judgments."""

from __future__ import annotations

import argparse
import itertools
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumbline.evaluation.agreement import Agreement
    from plumbline.evaluation.scoring.judgments import Judged

FORMATS = ("pandalm", "llmbar", "auto_j")


def add_agreement(commands: argparse._SubParsersAction, epilog: str) -> None:  # type: ignore[type-arg]
    """Add the command."""
    text = "compare a judge's stored verdicts with what people said"
    command = commands.add_parser("agreement", help=text, description=text.capitalize() + ".", epilog=epilog)
    command.add_argument("--format", required=True, choices=FORMATS, help="whose files these are")
    command.add_argument("--humans", required=True, metavar="FILE", help="labels by people")
    command.add_argument("--judge", required=True, metavar="FILE", help="verdicts of a judge on the same pairs")
    command.add_argument("--swapped", metavar="FILE", help="its verdicts on the same pairs with the answers exchanged")
    command.add_argument("--json", action="store_true", help="JSON for programs")
    command.set_defaults(command=_agreement)


def _agreement(options: argparse.Namespace) -> int:
    from plumbline.errors import InvalidInput
    from plumbline.evaluation.scoring.judgments import read_judged

    for name in ("humans", "judge", "swapped"):
        if getattr(options, name) == "":
            raise InvalidInput(f"--{name} is empty; give a file")
    found = read_judged(options.format, options.humans, options.judge, options.swapped)
    reports = [_report(judged) for judged in found]
    if options.json:
        print(json.dumps({"format": options.format, "humans": _humans(found[0]), "judges": reports}))
        return 0
    _print(_humans(found[0]), reports)
    return 0


def _humans(judged: Judged) -> dict[str, Any]:
    """What people said, and how far they agree with each other."""
    from plumbline.evaluation.agreement import cohen_kappa, majority

    raters = judged.raters
    labels = [majority(item) for item in zip(*raters.values(), strict=True)]
    pairs = itertools.combinations(raters, 2)
    return {
        "items": len(labels),
        "labels": {verdict: labels.count(verdict) for verdict in ("1", "2", "Tie")},
        "noMajority": labels.count(None),
        "kappa": {f"{a}/{b}": cohen_kappa(raters[a], raters[b]) for a, b in pairs},
    }


def _report(judged: Judged) -> dict[str, Any]:
    """All figures of one judge."""
    from plumbline.evaluation.agreement import agreement, consistency, unscored_as_ties
    from plumbline.evaluation.statistics import score

    labels, given, exchanged = judged.labels, judged.given, judged.exchanged
    orders = [given] if exchanged is None else [given, exchanged]
    pooled = agreement(labels * len(orders), [verdict for order in orders for verdict in order])
    # Two verdicts on one pair are not independent: the interval is that of the pairs.
    interval = score([sum(v == label for v in vs) / len(vs) for label, *vs in zip(labels, *orders, strict=True)], 0.95)
    report: dict[str, Any] = {
        "judge": judged.judge,
        "items": len(labels),
        "notCompared": judged.apart,
        **_figures(pooled),
        "accuracyInterval": [interval.low, interval.high],
        "unscoredAsTie": None,
        "bothOrders": None,
        "disagreements": [
            {"id": item, "label": label, "verdicts": vs}
            for item, label, *vs in zip(judged.ids, labels, *orders, strict=True)
            if any(v != label for v in vs)
        ],
    }
    if pooled.unscored:
        report["unscoredAsTie"] = _figures(agreement(labels * len(orders), [v for o in orders for v in unscored_as_ties(o)]))
    if exchanged is not None:
        both = consistency(labels, given, exchanged)
        report["bothOrders"] = {
            "consistency": both.share,
            "comparable": both.n,
            "unscored": both.unscored,
            "firstPreferred": both.first,
            "accuracyGiven": agreement(labels, given).accuracy,
            "accuracyExchanged": agreement(labels, exchanged).accuracy,
            "accuracyBoth": both.both_right,
        }
    return report


def _figures(found: Agreement) -> dict[str, Any]:
    return {
        "verdicts": found.n,
        "unscored": found.unscored,
        "accuracy": found.accuracy,
        "precision": found.precision,
        "recall": found.recall,
        "f1": found.f1,
        "kappa": found.kappa,
        "classes": {verdict: vars(one) for verdict, one in found.classes.items()},
    }


def _print(humans: dict[str, Any], reports: list[dict[str, Any]]) -> None:
    labels = ", ".join(f"{count} {verdict}" for verdict, count in humans["labels"].items() if count)
    print(
        f"people: {humans['items']} items ({labels}"
        + (f", {humans['noMajority']} without a majority)" if humans["noMajority"] else ")")
    )
    for pair, kappa in humans["kappa"].items():
        print(f"  κ {pair}: {_number(kappa)}")
    for report in reports:
        low, high = report["accuracyInterval"]
        print(f"\n{report['judge']}: {report['items']} items compared")
        for reason, count in report["notCompared"].items():
            print(f"  not compared: {count}, {reason}")
        print(f"  accuracy {_percent(report['accuracy'])} (95 %: {_percent(low)} – {_percent(high)})   {_line(report)}")
        for verdict, one in report["classes"].items():
            print(
                f"    {verdict:<4} precision {_percent(one['precision'])}  recall {_percent(one['recall'])}  F1 {_percent(one['f1'])}  "
                f"({one['humans']} by people, {one['judge']} by the judge)"
            )
        if report["unscored"]:
            tied = report["unscoredAsTie"]
            print(
                f"  unscored: {report['unscored']} of {report['verdicts']} verdicts cannot be read; above they count as wrong"
            )
            print(f"  counted as ties, as the PandaLM paper does: accuracy {_percent(tied['accuracy'])}   {_line(tied)}")
        if report["bothOrders"]:
            both = report["bothOrders"]
            print(
                f"  both orders: the same verdict in {_percent(both['consistency'])} of {both['comparable']} items, the answer shown first "
                f"preferred in {_percent(both['firstPreferred'])}; right in both {_percent(both['accuracyBoth'])}, as given "
                f"{_percent(both['accuracyGiven'])}, exchanged {_percent(both['accuracyExchanged'])}"
            )
        else:
            print("  both orders: not stored; give --swapped to see whether the order decides")


def _line(figures: dict[str, Any]) -> str:
    macro = " / ".join(_percent(figures[name]) for name in ("precision", "recall", "f1"))
    return f"macro P / R / F1 {macro}   κ {_number(figures['kappa'])}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _number(value: float | None) -> str:
    return "undefined (one verdict throughout)" if value is None else f"{value:.3f}"
