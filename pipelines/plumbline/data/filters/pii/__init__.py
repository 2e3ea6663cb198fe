"""Personal data and secrets: found by type, redacted or a reason to drop. One file per type, and one registry line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from plumbline.data.filters.pii import card, email, iban, ip, phone, secret
from plumbline.data.filters.pii.found import Found
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


def check_pii(row: Row, spec: PiiSpec) -> Row:
    """Redact what the spec redacts, `redact:TYPE` once for each type.

    Raises:
        Reject: the row holds something of a type that drops it.
    """
    names: list[str] = [name for name in FINDERS if name in spec.drop or name in spec.redact]
    texts = list(dict.fromkeys(row.texts))
    found = {text: claimed for text in texts if (claimed := find(text, names, spec))}
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
    claimed: list[tuple[str, Found]] = []
    for name in names:
        for one in FINDERS[name](text, spec):
            if all(one.end <= other.start or one.start >= other.end for _, other in claimed):
                claimed.append((name, one))
    return sorted(claimed, key=lambda pair: pair[1].start)
