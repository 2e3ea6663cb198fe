"""`plumbline people`: blind sheets for human evaluation, and figures from the answers."""

from __future__ import annotations

import argparse
import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumbline.evaluation.people.figures import Acceptability, Confusion, Pairs, Rater
    from plumbline.evaluation.people.outputs import Answer
    from plumbline.evaluation.people.sheet import Key, Kind
    from plumbline.evaluation.statistics import Estimate

MAX_RATERS = 100


def add_people(commands: argparse._SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the command."""
    text = "ask people which answers are better, or acceptable"
    people = commands.add_parser("people", help=text, description=text.capitalize() + ".", epilog=epilog)
    both = people.add_subparsers(required=True, metavar="export|import")

    export = both.add_parser("export", help="write blind sheets and their key", epilog=epilog)
    export.add_argument(
        "files", nargs="+", metavar="FILE", help="a report's folder or samples.jsonl, or files of model outputs"
    )
    export.add_argument(
        "--kind", required=True, choices=("pairwise", "acceptability"), help="which of two is better, or A to D for each"
    )
    export.add_argument("--task", action="append", default=[], metavar="T", help="only items of this task; may be repeated")
    export.add_argument(
        "--model", action="append", default=[], metavar="A", help="whose answers; acceptability: may be repeated"
    )
    export.add_argument("--against", metavar="B", help="pairwise: whose answers they are compared with")
    export.add_argument("--questions", metavar="FILE", help="questions of answers that name them by question_id only")
    export.add_argument("--count", type=_whole(1, 10**9), metavar="N", help="draw so many items; default all")
    export.add_argument(
        "--raters", type=_whole(1, MAX_RATERS), default=1, metavar="R", help="how many sheets of the same items (1)"
    )
    export.add_argument(
        "--seed", type=_whole(0, 2**63), metavar="S", help="of what is drawn; default a secret one, kept in the key"
    )
    export.add_argument("-o", "--output", required=True, metavar="FOLDER", help="a folder without a key yet")
    export.set_defaults(command=_export)

    read = both.add_parser("import", help="read filled sheets", epilog=epilog)
    read.add_argument("key", type=Path, metavar="KEY", help="key.json of the export, or its folder")
    read.add_argument("files", nargs="+", metavar="ANSWERS", help="filled sheets as CSV, one a rater")
    read.add_argument("--judge", metavar="FILE", help="a judge's verdicts on the same answers, to compare with people's")
    read.add_argument("--json", action="store_true", help="JSON for programs")
    read.add_argument(
        "-o", "--output", metavar="FOLDER", help="write people.json, opinions.jsonl and, of pairs, battles.jsonl"
    )
    read.set_defaults(command=_import)


def _whole(least: int, most: int) -> Any:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {least} to {most}")
        return int(text)

    return parse


def _export(options: argparse.Namespace) -> int:
    from plumbline.errors import InvalidInput
    from plumbline.evaluation.people.outputs import read_answers
    from plumbline.evaluation.people.page import render
    from plumbline.evaluation.people.sheet import KEY, make_key, sheet_csv

    folder = _folder(options.output)
    if (folder / KEY).exists():
        raise InvalidInput(
            f"{folder} already holds a {KEY}; without it the answers to its sheets could not be read. Give another folder"
        )
    answers = read_answers(options.files, options.task, options.questions)
    models = _models(answers, options.kind, options.model, options.against)
    seed = secrets.randbits(63) if options.seed is None else options.seed
    key = make_key(answers, options.kind, models, count=options.count, seed=seed, raters=options.raters)
    texts = {(answer.task, answer.item, answer.model): answer for answer in answers}
    _write(folder, {KEY: key.to_json()})  # first: sheets without their key are of no use
    for sheet in key.sheets:
        table = "\ufeff" + sheet_csv(sheet, key.kind, texts)  # the mark tells Excel that it is UTF-8
        _write(folder, {f"{sheet.name}.csv": table, f"{sheet.name}.html": render(sheet, key.kind, texts)})
    for line in _told(key, answers, options.count):
        print(line)
    names = ", ".join(f"{sheet.name}.html or .csv" for sheet in key.sheets[:3]) + (", …" if len(key.sheets) > 3 else "")
    print(f"written to {folder}: send out {names}; keep {KEY}, which tells whose answers are whose")
    return 0


def _models(answers: Sequence[Answer], kind: Kind, wanted: Sequence[str], against: str | None) -> list[str]:
    """Whose answers are shown; of a pair the model first."""
    from plumbline.errors import InvalidInput

    there = list(dict.fromkeys(answer.model for answer in answers))
    for name in [*wanted, *([] if against is None else [against])]:
        if name not in there:
            raise InvalidInput(f"no answer is of model '{name}'; there are those of {', '.join(there)}")
    if kind == "acceptability":
        if against is not None:
            raise InvalidInput("--against belongs to --kind pairwise; name every model with --model, or none for all")
        return list(dict.fromkeys(wanted)) or there
    if len(wanted) > 1:
        raise InvalidInput(f"--kind pairwise takes one --model, not {len(wanted)}, and --against")
    others = [name for name in there if name not in (*wanted, against)]
    pair = [*(wanted or ([others.pop(0)] if against is not None and len(others) == 1 else []))]
    pair += [against] if against is not None else []
    pair += others if len(pair) + len(others) == 2 else []
    if len(pair) != 2 or pair[0] == pair[1]:
        raise InvalidInput(
            f"a pair needs two models: name them with --model and --against; there are answers of {', '.join(there)}"
        )
    return pair


def _told(key: Key, answers: Sequence[Answer], count: int | None) -> list[str]:
    """What whoever asks should know of the sheets."""
    from plumbline.evaluation.people.sheet import EXCEL_CELL

    rows = key.sheets[0].rows
    items = {(row.task, row.item) for row in rows}
    what = "pairs" if key.kind == "pairwise" else "answers"
    sheets = "one sheet" if len(key.sheets) == 1 else f"each of {len(key.sheets)} sheets"
    lines = [f"{len(rows):,} {what} of {', '.join(key.models)} on {sheets}"]
    own = [answer for answer in answers if answer.model in key.models]
    there = {(answer.task, answer.item) for answer in own}
    if key.kind == "pairwise":
        alone = 2 * len(there) - len({(a.task, a.item, a.model) for a in own})
        if alone:
            lines.append(f"{alone:,} items have an answer of one of the two only and are left out")
        if key.identical:
            lines.append(f"{len(key.identical):,} pairs are word for word the same: ties, and not asked about")
    drawn = len(items) + len(key.identical)
    if count is not None and drawn < count:
        lines.append(f"--count asks for {count:,} items; there are {drawn:,}")
    shown = [answer for answer in own if (answer.task, answer.item) in items]
    long = sum(len(text) > EXCEL_CELL for answer in shown for text in (answer.request, answer.text))
    if long:
        lines.append(
            f"{long:,} texts are longer than the {EXCEL_CELL:,} characters that Excel keeps of a cell; use the page"
        )
    for model in key.models:
        named = sum(model.casefold() in answer.text.casefold() for answer in shown if answer.model == model)
        if named and len(model) > 2:
            lines.append(f"{named:,} answers of {model} hold its name, so that raters may know whose they are")
    return lines


def _import(options: argparse.Namespace) -> int:
    from plumbline.errors import InvalidInput
    from plumbline.evaluation.people import figures
    from plumbline.evaluation.people.filled import read_all
    from plumbline.evaluation.people.judged import read_judged
    from plumbline.evaluation.people.sheet import read_key

    if options.judge == "":
        raise InvalidInput("--judge is empty; give a file")
    key = read_key(options.key)
    filled, notes = read_all(options.files, key)
    found = figures.pairs(key, filled) if key.kind == "pairwise" else figures.acceptability(key, filled)
    compared = None
    if options.judge:
        judged, passed_over = read_judged(options.judge, key)
        compared = figures.confusion(key, filled, judged, passed_over)
        if compared is None:
            raise InvalidInput(
                f"{options.judge}: it judges none of the answers on which people agree; give judgments of the same items"
            )
    record = _record(key, found, compared, notes)
    if options.output is not None:
        files = {
            "people.json": json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            "opinions.jsonl": _lines(figures.opinions(filled)),
        }
        if key.kind == "pairwise":
            files["battles.jsonl"] = _lines(figures.battles(key, filled))
        _write(_folder(options.output), files)
    if options.json:
        print(json.dumps(record, indent=1, allow_nan=False))
        return 0
    _show(found, compared)
    for note in notes:
        print(f"note: {note}")
    return 0


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _folder(name: str) -> Path:
    from plumbline.errors import InvalidInput

    if not name or "://" in name:
        raise InvalidInput(f"-o '{name}': give a local folder")
    folder = Path(name).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"-o '{name}' is a file; give a folder")
    return folder


def _write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)


def _record(key: Key, found: Pairs | Acceptability, compared: Confusion | None, notes: Sequence[str]) -> dict[str, Any]:
    """Plain values, for programs."""
    from plumbline.evaluation.people.figures import CONFIDENCE, Acceptability

    record: dict[str, Any] = {"kind": key.kind, "confidence": CONFIDENCE, **asdict(found)}
    if isinstance(found, Acceptability):
        record["differences"] = [
            {"model": one, "against": other, **asdict(value)} for (one, other), value in found.differences.items()
        ]
    return record | {"judge": None if compared is None else asdict(compared), "notes": list(notes)}


def _show(found: Pairs | Acceptability, compared: Confusion | None) -> None:
    from plumbline.evaluation.people.figures import Pairs

    if isinstance(found, Pairs):
        _show_pairs(found)
    else:
        _show_grades(found)
    for rater in found.raters:
        _show_rater(rater)
    agreed = found.reliability
    if agreed is not None:
        print(
            f"\nraters among each other, on {agreed.units:,} judged by two at least: alike {_percent(agreed.alike)} of verdicts"
        )
        for names, kappa in agreed.cohen.items():
            print(f"  Cohen's κ {names}: {_number(kappa)}")
        if len(found.raters) > 2:
            print(f"  Fleiss' κ of all: {_number(agreed.fleiss)}")
        print(f"  Krippendorff's α, ordinal: {_number(agreed.krippendorff)}")
    if compared is not None:
        _show_confusion(compared)


def _show_pairs(found: Pairs) -> None:
    print(f"{found.model} against {found.against}: {found.items:,} items judged, {found.open:,} not")
    print(f"  win rate {_interval(found.win_rate)}, a tie counts half")
    if found.with_identical is not None:
        print(f"  with the {found.identical:,} pairs of identical answers as ties: {_interval(found.with_identical)}")
    print("  most raters said: " + ", ".join(f"{name} {count:,}" for name, count in found.majority.items() if count))


def _show_grades(found: Acceptability) -> None:
    for one in found.models:
        grades = ", ".join(f"{grade} {count:,}" for grade, count in one.grades.items())
        print(f"{one.model}: {one.items:,} items judged, {one.open:,} not; {grades}")
        print(f"  A or B: {'–' if one.good is None else _interval(one.good)}")
    for (model, other), value in found.differences.items():
        print(
            f"  {model} − {other}, on {value.n:,} items: {100 * value.value:+.1f} points "
            f"({100 * value.low:+.1f} to {100 * value.high:+.1f}), p {value.p_value:.2g}"
        )


def _show_rater(rater: Rater) -> None:
    said = ", ".join(f"{verdict} {count:,}" for verdict, count in rater.said.items())
    print(f"\n{rater.name} ({rater.sheet}): {said}, without a verdict {rater.unanswered:,}")
    if rater.win_rate is not None:
        print(f"  win rate {_interval(rater.win_rate)}")
    if rater.first is not None:
        biased = "" if rater.first.low <= 0.5 <= rater.first.high else ": the side decided, so take these verdicts with care"
        print(f"  the answer shown first was preferred in {_interval(rater.first)}{biased}")


def _show_confusion(found: Confusion) -> None:
    print(f"\nthe judge beside the majority of people: {found.n:,} compared")
    for reason, count in found.apart.items():
        print(f"  not compared: {count:,}, {reason}")
    print(f"  the same verdict in {_interval(found.accuracy)}; κ {_number(found.kappa)}, α {_number(found.alpha)}")
    for human, of in found.matrix.items():
        print(f"  people {human}: judge " + ", ".join(f"{judge} {count:,}" for judge, count in of.items()))


def _interval(one: Estimate) -> str:
    return f"{_percent(one.value)} (95 %: {_percent(one.low)} – {_percent(one.high)}, n {one.n:,})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "undefined (no two verdicts, or one throughout)" if value is None else f"{value:.3f}"
