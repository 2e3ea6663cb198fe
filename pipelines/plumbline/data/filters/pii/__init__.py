"""Personal data and secrets: found by type, redacted or a reason to drop. One file per type, and one registry line."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from plumbline.data.filters.pii import card, email, iban, ip, phone, secret
from plumbline.data.filters.pii.found import Found
from plumbline.data.filters.programming import is_programming
from plumbline.data.row import Reject, Row

if TYPE_CHECKING:
    from plumbline.api.curation.filters import PiiSpec

FINDERS: dict[str, Callable[[str, PiiSpec], Iterator[Found]]] = {
    "secret": secret.find,
    "email": email.find,
    "iban": iban.find,
    "card": card.find,
    "ip": ip.find,
    "phone": phone.find,
}
"""In the order in which they claim text: what one has found is not looked at by those that follow."""


def _plain_form(character: str) -> str:
    """The ASCII character that one of Unicode's stands for in a number or an address, else itself."""
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    if unicodedata.category(character) == "Zs":
        return " "
    if "\u2010" <= character <= "\u2013":  # hyphens and the en dash
        return "-"
    wide = unicodedata.normalize("NFKC", character) if "\uff01" <= character <= "\uff5e" else ""
    return wide if wide.isalnum() or wide in {"@", ".", "+", "-", "_"} else character


_PLAIN = {other: form for number in range(0x80, 0x10000) if (form := _plain_form(other := chr(number))) != other}
"""Of the basic plane, as `re` has no fast sets of others. One character for one, so that places stay."""
_OTHER = re.compile(f"[{''.join(_PLAIN)}]")


def check_pii(row: Row, spec: PiiSpec) -> Row:
    """Redact what the spec redacts, `redact:TYPE` once for each type.

    Raises:
        Reject: the row holds something of a type that drops it.
    """
    names: list[str] = [name for name in FINDERS if name in spec.drop or name in spec.redact]
    texts = list(dict.fromkeys(row.texts))
    found = {text: claimed for text in texts if (claimed := find(text, names, spec))}
    examples = any(one.example for text in found.values() for _, one in text)
    if examples and not spec.reserved and is_programming(row):  # code that checks addresses would be wrong without them
        found = {text: kept for text, all_ in found.items() if (kept := [claim for claim in all_ if not claim[1].example])}
    if not found:
        return row
    numbers: dict[str, dict[str, int]] = {}
    for text in found.values():
        for name, one in text:
            if name in spec.drop:
                raise Reject(f"holds {name}", "")  # the value itself has no place in a data card
            values = numbers.setdefault(name, {})
            values.setdefault(one.value, len(values) + 1)

    def redacted(text: str) -> str:
        pieces, end = [], 0
        for name, one in found[text]:
            number = numbers[name][one.value]
            pieces += [text[end : one.start], f"[{name}]" if number == 1 else f"[{name} {number}]"]
            end = one.end
        return "".join((*pieces, text[end:]))

    content = row.mapped(lambda text: redacted(text) if text in found else text)
    for name in (name for name in FINDERS if name in numbers):
        row = row.did(f"redact:{name}", content=content)
    return row


def find(text: str, names: list[str], spec: PiiSpec) -> list[tuple[str, Found]]:
    """What a text holds of some types, in order of place; no two overlap."""
    plain = text if text.isascii() else _OTHER.sub(lambda match: _PLAIN[match[0]], text)
    claimed: list[tuple[str, Found]] = []  # in order of place
    for name in names:
        free = [one for one in FINDERS[name](plain, spec) if _is_free(one, claimed)]
        claimed = sorted([*claimed, *((name, one) for one in free)], key=_place) if free else claimed
    return claimed


def _is_free(one: Found, claimed: list[tuple[str, Found]]) -> bool:
    before = bisect_left(claimed, one.end, key=_place)  # those begin before it ends
    return before == 0 or claimed[before - 1][1].end <= one.start


def _place(claim: tuple[str, Found]) -> int:
    return claim[1].start
