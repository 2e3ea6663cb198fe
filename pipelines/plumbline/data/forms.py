"""From one form of row to another, where the content says enough: a ranking holds a pair, a pair holds a chat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from plumbline.data.row import COLUMNS, Form, Reject, Row

REACHES: dict[Form, frozenset[Form]] = {
    "messages": frozenset({"messages"}),
    "pairs": frozenset({"pairs", "rankings", "labels", "messages"}),
    "rankings": frozenset({"rankings", "pairs", "labels", "messages"}),
    "labels": frozenset({"labels", "messages"}),
    "judgments": frozenset({"judgments", "labels", "messages"}),
    "text": frozenset({"text"}),
}
"""Which forms rows of a form can be turned into."""


_OF_COLUMNS = {frozenset(columns): form for form, columns in COLUMNS.items()}


def form_of(row: Row) -> Form:
    """The form that the row's columns make."""
    return _OF_COLUMNS[frozenset(row.content)]


def reform(row: Row, form: Form) -> Iterator[Row]:
    """The row in another form that its own reaches.

    A ranking becomes a pair of its best and worst answer. A pair becomes a good and a bad answer (`labels`), or a chat with
    the good one. Of labelled answers only good ones become chats.

    Raises:
        Reject: the answers of a ranking are all equally good, or the answer is labelled as bad.
    """
    own = form_of(row)
    if own == form:
        yield row
    elif own == "rankings":
        yield from reform(_best_and_worst(row), form)
    elif own == "judgments":
        yield from reform(replace(row, content={name: row.content[name] for name in COLUMNS["labels"]}), form)
    elif own == "labels":
        if not row.content["label"]:
            raise Reject("labelled as bad", "label: false")
        yield row.did("good answer", content={"messages": row.content["prompt"] + row.content["completion"]})
    else:
        yield from _of_pair(row, form)


def _of_pair(row: Row, form: Form) -> Iterator[Row]:
    prompt, chosen, rejected = (row.content[name] for name in COLUMNS["pairs"])
    match form:
        case "messages":
            yield row.did("best answer", content={"messages": prompt + chosen})
        case "rankings":
            yield replace(row, content={"prompt": prompt, "completions": [chosen, rejected], "scores": [1.0, 0.0]})
        case _:
            for answer, label in ((chosen, True), (rejected, False)):
                yield replace(row, content={"prompt": prompt, "completion": answer, "label": label})


def _best_and_worst(row: Row) -> Row:
    """Of equal scores the first counts as the best and the last as the worst."""
    completions, scores = row.content["completions"], row.content["scores"]
    best = max(range(len(scores)), key=lambda i: (scores[i], -i))
    worst = min(range(len(scores)), key=lambda i: (scores[i], -i))
    if scores[best] == scores[worst]:
        raise Reject("answers are equally good", f"all score {scores[best]}")
    pair = {"prompt": row.content["prompt"], "chosen": completions[best], "rejected": completions[worst]}
    return row.did("best and worst", content=pair)
