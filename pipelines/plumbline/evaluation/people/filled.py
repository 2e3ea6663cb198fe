"""Sheets that people have filled in: CSV as spreadsheets and the page write it. What cannot be read is refused, never guessed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from plumbline.errors import InvalidInput
from plumbline.evaluation.people.sheet import VERDICTS, Key, Kind, Row, defused
from plumbline.evaluation.shown import printable, shown

MARKS = (",", ";", "\t")
LONGEST = 1 << 26
"""Characters of a cell."""


@dataclass(frozen=True)
class Opinion:
    """What one rater said of one row of a sheet.

    Attributes:
        verdict: one of `VERDICTS`; None where it is empty or the row is missing.
        comment: as written.
    """

    rater: str
    row: Row
    verdict: str | None
    comment: str = ""


@dataclass(frozen=True)
class Filled:
    """One rater's file.

    Attributes:
        rater: the name in it, else the file's.
        named: whether the name stands in it.
        sheet: name of the sheet that was filled in.
        opinions: one for each row of the sheet, in the sheet's order.
    """

    file: str
    rater: str
    named: bool
    sheet: str
    opinions: tuple[Opinion, ...]

    @property
    def verdicts(self) -> dict[str, str | None]:
        """Row → verdict."""
        return {one.row.id: one.verdict for one in self.opinions}


def read_all(files: Sequence[str], key: Key) -> tuple[list[Filled], list[str]]:
    """Every rater's file, and notes for the reader.

    Raises:
        InvalidInput: FILE:LINE of what cannot be read; a rater is there twice; or nobody has said anything.
    """
    found: list[Filled] = []
    notes: list[str] = []
    for file in files:
        one = read_filled(file, key, notes)
        for other in found:
            _tell_apart(one, other, key, notes)
        found.append(one)
    if not any(verdict for one in found for verdict in one.verdicts.values()):
        raise InvalidInput(
            f"{', '.join(files)}: no verdict has been given; accepted: {_accepted(key.kind)} in the column verdict"
        )
    return found, notes


def read_filled(file: str, key: Key, notes: list[str]) -> Filled:
    """One rater's file: comma, semicolon or tab, with or without byte order mark, any line ends, either case, columns in any order.

    Raises:
        InvalidInput: FILE:LINE: an id that is in no sheet or stands twice, a verdict that is none, rows of two sheets, two raters' names, a
            broken quote; or the columns `id` and `verdict` are missing.
    """
    owner = {row.id: sheet for sheet in key.sheets for row in sheet.rows}
    accepted = {verdict.casefold(): verdict for verdict in VERDICTS[key.kind]}
    lines: dict[str, int] = {}
    verdicts: dict[str, str | None] = {}
    comments: dict[str, str] = {}
    raters: dict[str, int] = {}
    for line, cells in _rows(file, notes):
        name = cells["id"].casefold()
        if name not in owner:
            raise InvalidInput(
                f"{file}:{line}: id {shown(cells['id'])} is in no sheet of this key; give the sheets that belong to it"
            )
        if name in lines:
            raise InvalidInput(
                f"{file}:{line}: id {name} stands there twice, first in line {lines[name]}; keep one row of it"
            )
        first = owner[next(iter(lines), name)]
        if owner[name] is not first:
            raise InvalidInput(
                f"{file}:{line}: id {name} is of {owner[name].name}, the rows before it are of {first.name}; give one file a rater"
            )
        lines[name] = line
        said = cells["verdict"].strip("'\"").removesuffix(".0").casefold()  # 1.0: a column with gaps, as pandas writes it
        if said and said not in accepted:
            raise InvalidInput(
                f"{file}:{line}: verdict {shown(cells['verdict'])} is none; accepted: {_accepted(key.kind)}, or empty for none"
            )
        verdicts[name] = accepted.get(said)
        comments[name] = cells.get("comment", "")
        if cells.get("rater"):
            raters.setdefault(cells["rater"], line)
    if not lines:
        raise InvalidInput(f"{file} holds no row of a sheet; give the sheet with its verdicts filled in")
    if len({_same(rater) for rater in raters}) > 1:
        (one, _), (other, line) = list(raters.items())[:2]
        raise InvalidInput(f"{file}:{line}: rater {shown(other)} after rater {shown(one)}; give one file a rater")
    sheet = owner[next(iter(lines))]
    rater = next(iter(raters), Path(file).stem)
    opinions = tuple(Opinion(rater, row, verdicts.get(row.id), comments.get(row.id, "")) for row in sheet.rows)
    return Filled(file, rater, bool(raters), sheet.name, opinions)


def _tell_apart(one: Filled, other: Filled, key: Key, notes: list[str]) -> None:
    """Refuse what would count one rater twice."""
    if _same(one.rater) == _same(other.rater):
        raise InvalidInput(f"{one.file} and {other.file} are both of rater {shown(one.rater)}; give the one that counts")
    if one.sheet != other.sheet:
        return
    nameless = not (one.named and other.named)
    if nameless and len(key.sheets) > 1:
        raise InvalidInput(
            f"{one.file} and {other.file} are both of {one.sheet}; give the one that counts, or write the raters' names into the column rater"
        )
    if one.verdicts == other.verdicts:
        if nameless:
            raise InvalidInput(
                f"{one.file} and {other.file} hold the same verdicts; give one of them, or write the raters' names into the column rater"
            )
        notes.append(
            f"{one.rater} and {other.rater} gave the same verdicts throughout; see that it is not one person's work"
        )
    notes.append(f"{other.rater} and {one.rater} saw the same order and sides ({one.sheet})")


def _rows(file: str, notes: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column, blank rows left out."""
    text = re.sub(r"\Asep=.\r?\n", "\n", _text(file, notes), flags=re.IGNORECASE)  # Excel's own line about its separator
    for mark in MARKS:
        table = _table(file, text, mark)
        try:
            head = [cell.split("(")[0].strip().casefold() for cell in next(table, (0, []))[1]]
        except InvalidInput:
            continue  # read with the right mark it may be whole
        if "id" in head and "verdict" in head:
            break
    else:
        raise InvalidInput(
            f"{file}: its first line has no columns id and verdict; give a sheet of `plumbline people export`, as CSV"
        )
    for name in ("id", "verdict", "rater", "comment"):
        if head.count(name) > 1:
            raise InvalidInput(f"{file}: its first line names the column {name} twice; keep one")
    for line, cells in table:
        if len(cells) > len(head) and any(cells[len(head) :]):
            raise InvalidInput(f"{file}:{line}: {len(cells)} cells under {len(head)} columns; is a quote missing there?")
        padded = cells + [""] * (len(head) - len(cells))
        yield line, {name: _plain(cell) for name, cell in zip(head, padded, strict=False)}


def _table(file: str, text: str, mark: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(LONGEST)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise InvalidInput(f"{file}:{line}: broken CSV ({error}); repair the quotes there, or save it anew") from error


def _text(file: str, notes: list[str]) -> str:
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror or error}; give a filled sheet, as CSV") from error
    if data.startswith((b"PK", b"\xd0\xcf\x11\xe0")):
        raise InvalidInput(f"{file} is a spreadsheet's own file; save it as CSV")
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # Excel's "Unicode text"
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        notes.append(f"{file} is not UTF-8 and is read as Windows text: names and comments may be misspelt")
        return data.decode("cp1252", "replace")


def _plain(cell: str) -> str:
    """A cell without the apostrophe that kept a spreadsheet from reading it as a formula."""
    text = printable(cell).replace("\0", "").strip()
    return text[1:] if text.startswith("'") and defused(text[1:]) == text else text


def _same(name: str) -> str:
    return " ".join(name.casefold().split())


def _accepted(kind: Kind) -> str:
    return ", ".join(VERDICTS[kind])
