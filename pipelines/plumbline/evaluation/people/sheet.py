"""Blind sheets: which answers a rater sees, in which order and on which side; and the key that tells what stood where. Pure.

A sheet's ids are drawn by chance and say nothing of models or items. Without the key nobody can tell whose answer is whose: it stays with
whoever asks.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from plumbline.errors import InvalidInput
from plumbline.evaluation.people.outputs import Answer
from plumbline.evaluation.shown import shown

Kind = Literal["pairwise", "acceptability"]
KINDS: tuple[Kind, ...] = get_args(Kind)
VERDICTS: Mapping[Kind, Mapping[str, str]] = {
    "pairwise": {"1": "answer 1 is better", "2": "answer 2 is better", "tie": "both are equally good or bad"},
    "acceptability": {"A": "acceptable", "B": "minor errors", "C": "major errors", "D": "unacceptable"},
}
"""What a rater may say, and what it means (Wang et al. 2023, arXiv 2212.10560, for A to D)."""
KEY = "key.json"
SCHEMA_VERSION = 1
EXCEL_CELL = 32_767
"""Characters of a cell that Excel shows; longer ones it cuts."""

_LETTERS = "bcdfghjkmnpqrstvwxz"  # no vowels, no digits: neither words nor what a spreadsheet takes for a number or date
_FORMULA = re.compile(r"[\s\x85\ufeff]*[=+\-@＝＋－＠]")
Texts = Mapping[tuple[str, str, str], Answer]
"""(task, item, model) → answer."""


@dataclass(frozen=True)
class Row:
    """One question to a rater.

    Attributes:
        id: what the sheet calls it.
        task, item: whose answers are shown.
        models: whose they are, as they stand: of answer 1 and 2, or of the only one.
    """

    id: str
    task: str
    item: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """What one rater is given.

    Attributes:
        name: of its files.
        token: what a browser keeps its answers under.
    """

    name: str
    token: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Key:
    """What stood where.

    Attributes:
        models: the model and the one it is compared with; of acceptability all.
        sheets: one a rater; they hold the same questions, each in its own order.
        identical: (task, item) of pairs that are word for word the same answer: nobody is asked, and they are ties.
    """

    kind: Kind
    seed: int
    models: tuple[str, ...]
    sheets: tuple[Sheet, ...]
    identical: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> str:
        """The text of key.json."""
        return json.dumps({"schemaVersion": SCHEMA_VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"


def make_key(
    answers: Sequence[Answer], kind: Kind, models: Sequence[str], *, count: int | None, seed: int, raters: int
) -> Key:
    """Draw the questions, their order and the sides.

    Each model stands first in half of a rater's pairs, so that a preference for a side cannot favour one.

    Args:
        answers: of all models.
        models: of a pair the model and its opponent; of acceptability those that are rated.
        count: how many items are drawn; all without.
        seed: of everything that is drawn: who has it and the answers can tell the sides.
        raters: how many sheets.

    Raises:
        InvalidInput: no item has an answer of each of the pair's models.
    """
    chance = random.Random(seed)
    by_item: dict[tuple[str, str], dict[str, str]] = {}
    for answer in answers:
        if answer.model in models:
            by_item.setdefault((answer.task, answer.item), {})[answer.model] = answer.text
    items = [item for item, of in by_item.items() if kind == "acceptability" or len(of) == 2]
    if not items:
        raise InvalidInput(
            f"no item has an answer of both {models[0]} and {models[1]}; files belong together by item, question_id or id, "
            "else by the text of the request"
        )
    drawn = sorted(chance.sample(range(len(items)), min(count or len(items), len(items))))
    items = [items[number] for number in drawn]
    identical = [item for item in items if kind == "pairwise" and len(set(by_item[item].values())) == 1]
    shown_pairs = [item for item in items if item not in set(identical)]
    if not shown_pairs:
        raise InvalidInput(f"all {len(items)} pairs are word for word the same answer; there is nothing to ask")
    used: set[str] = set()
    sheets = []
    wanted: list[tuple[tuple[str, str], tuple[str, ...]]]
    for number in range(raters):
        if kind == "pairwise":
            first = [place % 2 for place in range(len(shown_pairs))]
            chance.shuffle(first)
            wanted = [(item, (models[side], models[1 - side])) for item, side in zip(shown_pairs, first, strict=True)]
        else:
            wanted = [(item, (model,)) for item in shown_pairs for model in by_item[item]]
        chance.shuffle(wanted)
        rows = tuple(Row(_draw(chance, 8, used), *item, models=of) for item, of in wanted)
        sheets.append(Sheet("sheet" if raters == 1 else f"sheet-{number + 1}", _draw(chance, 12, used), rows))
    return Key(kind, seed, tuple(models), tuple(sheets), tuple(identical))


def columns(kind: Kind) -> list[str]:
    """Heads of a sheet's columns; that of the verdict names what is accepted."""
    answers = ["answer 1", "answer 2"] if kind == "pairwise" else ["answer"]
    return ["id", "rater", "request", *answers, f"verdict ({' / '.join(VERDICTS[kind])})", "comment"]


def sheet_csv(sheet: Sheet, kind: Kind, texts: Texts) -> str:
    """The sheet as CSV, verdicts empty. What a spreadsheet would take for a formula begins with an apostrophe."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(columns(kind))
    for row in sheet.rows:
        of = [texts[row.task, row.item, model] for model in row.models]
        writer.writerow([row.id, "", *(defused(text) for text in (of[0].request, *(one.text for one in of))), "", ""])
    return stream.getvalue()


def defused(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def read_key(path: Path) -> Key:
    """The key of an export.

    Raises:
        InvalidInput: it is none.
    """
    file = path / KEY if path.is_dir() else path
    hint = f"give the {KEY} that `plumbline people export` has written, or its folder"
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror or error}; {hint}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{file} is not JSON ({error}); {hint}") from error
    if not isinstance(value, dict) or value.get("schemaVersion") != SCHEMA_VERSION:
        version = value.get("schemaVersion") if isinstance(value, dict) else None
        raise InvalidInput(f"{file}: schemaVersion is {shown(version)}; accepted: {SCHEMA_VERSION}; {hint}")
    try:
        return _key(value)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{file} is not a key ({type(error).__name__}: {error}); {hint}") from error


def _key(value: Mapping[str, Any]) -> Key:
    kind = value["kind"]
    if kind not in KINDS:
        raise ValueError(f"kind is {shown(kind)}; accepted: {', '.join(KINDS)}")
    models = tuple(map(str, value["models"]))
    sides = 2 if kind == "pairwise" else 1
    if len(set(models)) < sides or (kind == "pairwise" and len(models) > sides):
        raise ValueError(f"models are {shown(models)}; a pair has two")
    sheets = tuple(
        Sheet(
            str(sheet["name"]),
            str(sheet["token"]),
            tuple(Row(str(r["id"]), str(r["task"]), str(r["item"]), tuple(map(str, r["models"]))) for r in sheet["rows"]),
        )
        for sheet in value["sheets"]
    )
    rows = [row for sheet in sheets for row in sheet.rows]
    if not rows or len({row.id for row in rows}) < len(rows):
        raise ValueError("its ids are not all different, or there are none")
    for row in rows:
        if len(set(row.models)) != sides or not set(row.models) <= set(models):
            raise ValueError(f"row {row.id} shows {shown(row.models)}, of models {shown(models)}")
    return Key(kind, int(value["seed"]), models, sheets, tuple((str(task), str(item)) for task, item in value["identical"]))


def _draw(chance: random.Random, length: int, used: set[str]) -> str:
    while True:
        word = "".join(chance.choices(_LETTERS, k=length))
        if word not in used:
            used.add(word)
            return word
