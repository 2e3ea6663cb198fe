"""Stored judgments of pairs beside what people said of them: PandaLM's, LLMBar's and Auto-J's files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plumbline.errors import InvalidInput
from plumbline.evaluation.agreement import majority, turned
from plumbline.evaluation.judges.pairwise import Verdict, read_verdict
from plumbline.evaluation.scoring.records import Record, read_records
from plumbline.evaluation.shown import shown

_TEXTS = {
    "idx", "motivation_app", "cmp_key", "instruction", "input", "response1", "response2", "scenario", "prompt", "response 1", "response 2",
    "output_1", "output_2", "label",
}  # fmt: skip
_RATER = re.compile(r"annotator_?\d+")
_BESIDE = re.compile(r".*_?(reason|reference|explanation|score|completion)s?")
_DECISION = re.compile(r"final decision is\W*(response 1|response 2|tie)", re.IGNORECASE)
_NAMED: Mapping[str, Verdict] = {"0": "Tie", "1": "1", "2": "2", "tie": "Tie"}
_NUMBERED: Mapping[str, Verdict] = {"0": "1", "1": "2", "2": "Tie"}


@dataclass(frozen=True)
class Judged:
    """One judge's verdicts beside the labels of the same items.

    Attributes:
        judge: name of the field that the verdicts stand in.
        ids: of the items, for people.
        labels: by majority where there are several raters.
        given: verdicts in the answers' order; None where it cannot be read.
        exchanged: verdicts with the answers exchanged, told of the answers; None where the files have none.
        raters: each rater's labels of all items that people labelled, by name.
        apart: items of neither figure, counted by reason.
    """

    judge: str
    ids: list[str]
    labels: list[Verdict]
    given: list[Verdict | None]
    exchanged: list[Verdict | None] | None
    raters: dict[str, list[Verdict]]
    apart: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Format:
    """How one project stores labels and verdicts.

    Attributes:
        humans, judge: what a record of each file holds, for errors.
        key: fields that say which item a record is of; where a file lacks them, its order does.
        verdicts: the names of verdicts.
        read: one verdict, None where it cannot be read.
    """

    humans: str
    judge: str
    key: tuple[str, ...]
    verdicts: Mapping[str, Verdict]
    read: Callable[[Any], Verdict | None]


def read_judged(name: str, humans: str, judge: str, exchanged: str | None = None) -> list[Judged]:
    """The judgments of two files, of three where a judge was asked in both orders; one result a judge.

    Args:
        name: of `FORMATS`.
        humans: file of the labels.
        judge: file of the verdicts; it may hold those of several judges, a field each.
        exchanged: file of the verdicts on exchanged answers, which name places: what was shown first is `1` there too.

    Raises:
        InvalidInput: a file cannot be read, is not of that format, or the files are of different items.
    """
    form = FORMATS[name]
    people, judged = read_records(humans, form.humans), read_records(judge, form.judge)
    raters = raters_of(people, form)
    fields = _fields(judged, form)
    partner = _match(people, judged, form)
    if exchanged is None:
        turned_records, turned_partner, turned_fields = None, None, []
    else:
        turned_records = read_records(exchanged, form.judge)
        turned_fields, turned_partner = _fields(turned_records, form), _match(people, turned_records, form)
    found = []
    for one in fields:
        labels, given, other, ids, apart = [], [], [], [], Counter[str]()
        for index, person in enumerate(people):
            label = majority([rater[index] for rater in raters.values()])
            record = None if partner[index] is None else judged[partner[index]]  # type: ignore[index]
            if label is None:
                apart["no majority of people"] += 1
            elif record is None:
                apart["no verdict stored"] += 1
            else:
                first, second = _orders(record, one, form)
                if turned_records is not None and turned_partner is not None:
                    place = turned_partner[index]
                    column = one if one in turned_fields else turned_fields[0]
                    second = turned([_orders(turned_records[place], column, form)[0]]) if place is not None else [None]
                labels.append(label)
                given.append(first)
                other.append(second)
                ids.append(str(person.value.get("idx", person.place)))
        apart["no label of people"] = len(judged) - sum(place is not None for place in partner)
        if not labels:
            raise InvalidInput(f"{judge}: none of its {len(judged)} verdicts is of an item that people labelled in {humans}")
        if all(verdict is None for verdict in given):
            sample = shown(judged[0].value.get(one))
            raise InvalidInput(
                f"{judge}: none of its verdicts in '{one}' can be read, such as {sample}; expected {form.judge}"
            )
        both = [None if second is None else second[0] for second in other]  # stored in one order only: unscored in the other
        stored = any(second is not None for second in other)
        found.append(
            Judged(one, ids, labels, given, both if stored else None, raters, {k: v for k, v in apart.items() if v})
        )
    return found


def raters_of(people: Sequence[Record], form: _Format) -> dict[str, list[Verdict]]:
    """Each rater's labels of all records, by name.

    Raises:
        InvalidInput: a record has none, or one that is no verdict.
    """
    names = [name for name in people[0].value if _RATER.fullmatch(name)] if form.key == ("idx",) else ["label"]
    if not names:
        raise people[0].refuse(
            f"has no labels of people; it has {', '.join(people[0].value) or 'nothing'}; expected {form.humans}"
        )
    raters: dict[str, list[Verdict]] = {name: [] for name in names}
    for record in people:
        for name, labels in raters.items():
            label = form.verdicts.get(_word(record.value.get(name)))
            if label is None:
                raise record.refuse(f"field '{name}' is {shown(record.value.get(name))}; expected {form.humans}")
            labels.append(label)
    return raters


def _fields(judged: Sequence[Record], form: _Format) -> list[str]:
    """Names of the fields that hold verdicts."""
    first = judged[0].value
    if "results" in first:
        return ["results"]
    names = [name for name in first if name not in _TEXTS and not _RATER.fullmatch(name) and not _BESIDE.fullmatch(name)]
    chosen = [name for name in names if name.endswith("result")] or [name for name in names if name in _USUAL] or names
    if not chosen:
        raise judged[0].refuse(f"has no field of verdicts; it has {', '.join(first) or 'nothing'}; expected {form.judge}")
    return chosen


def _orders(record: Record, name: str, form: _Format) -> tuple[Verdict | None, list[Verdict | None] | None]:
    """The verdict on the answers as they are, and in a list that on exchanged ones, if the record has it."""
    if name not in record.value:
        raise record.refuse(f"has no field '{name}'; expected {form.judge}")
    value = record.value[name]
    if name != "results":
        return form.read(value), None
    steps = [step for step in value if isinstance(step, dict)] if isinstance(value, list) else []
    orders = [steps[-1].get(f"swap = {swap}") if steps else None for swap in (False, True)]
    winners = [order.get("winner", _MISSING) if isinstance(order, dict) else _MISSING for order in orders]
    if winners[0] is _MISSING:
        raise record.refuse(f"field 'results' is {shown(value)}; expected {form.judge}")
    return form.read(winners[0]), None if winners[1] is _MISSING else [form.read(winners[1])]


def _match(people: Sequence[Record], judged: Sequence[Record], form: _Format) -> list[int | None]:
    """For each labelled record the index of its judgment."""
    ours, theirs = _keys(people, form), _keys(judged, form)
    if ours is None or theirs is None:
        if len(people) != len(judged):
            raise InvalidInput(
                f"{judged[0].file} has {len(judged)} records and {people[0].file} has {len(people)}, and not all say by "
                f"{', '.join(form.key)} which item they are of; give files of the same items in the same order"
            )
        return list(range(len(people)))
    index = {key: number for number, key in enumerate(theirs)}
    return [index.get(key) for key in ours]


def _keys(records: Sequence[Record], form: _Format) -> list[Hashable] | None:
    """What item each record is of, None if one does not say. Questions that occur twice are counted, numbers must differ."""
    seen: dict[Hashable, Record] = {}
    times: Counter[Hashable] = Counter()
    keys: list[Hashable] = []
    for record in records:
        if any(record.value.get(name) is None for name in form.key):
            return None
        key = tuple(str(record.value[name]) for name in form.key)
        if len(form.key) == 1 and key in seen:
            raise record.refuse(
                f"{form.key[0]} {key[0]} stands a second time (first: {seen[key].place}); keep one record of each item"
            )
        seen[key] = record
        keys.append((key, times[key]))
        times[key] += 1
    return keys


def _word(value: Any) -> str:
    """A verdict's name: 1, 1.0 and "1" are the same one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().removesuffix(".0").casefold()


def _read_named(value: Any) -> Verdict | None:
    return _NAMED.get(_word(value)) or (read_verdict(value) if isinstance(value, str) else None)


def _read_numbered(value: Any) -> Verdict | None:
    """Auto-J's number, or the decision that its text ends with."""
    if isinstance(value, str) and (found := _DECISION.findall(value)):
        return {"response 1": "1", "response 2": "2"}.get(found[-1].lower(), "Tie")  # type: ignore[return-value]
    return _NUMBERED.get(_word(value))


_MISSING = object()
_USUAL = ("output", "verdict", "winner", "judgment", "prediction")

FORMATS = {
    "pandalm": _Format(
        "records with idx and annotator1, annotator2, … (0 tie, 1 or 2: the better response), JSON or CSV",
        "records with idx and a field such as pandalm_result (1, 2, Tie), JSON or CSV",
        ("idx",),
        _NAMED,
        _read_named,
    ),
    "llmbar": _Format(
        "records with input, output_1, output_2 and label (1 or 2: the better output)",
        'records with input, output_1, output_2 and results, whose last entry holds "swap = False" and "swap = True" with a winner '
        "(1 or 2, of the outputs as they stand)",
        ("input", "output_1", "output_2"),
        _NAMED,
        _read_named,
    ),
    "auto_j": _Format(
        "records with prompt, response 1, response 2 and label (0: response 1 is better, 1: response 2 is, 2: tie)",
        "records in the order of the labelled ones with output: 0, 1, 2, or a text that ends in “the final decision is …”",
        ("prompt", "response 1", "response 2"),
        _NUMBERED,
        _read_numbered,
    ),
}
