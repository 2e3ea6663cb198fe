"""International bank account numbers (ISO 13616)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stdnum import iban

from plumbline.api.curation.filters import PiiSpec
from plumbline.data.filters.pii.found import Found

# Looked at from every place: `REF12 DE89 3704 …` begins with what is none.
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9])(?=([A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?:([ -])[A-Z0-9]{4})(?:\2[A-Z0-9]{4}){1,6}(?:\2[A-Z0-9]{1,3})?)"
    r")(?![A-Z0-9]))",
    re.ASCII | re.IGNORECASE,
)


def find(text: str, spec: PiiSpec) -> Iterator[Found]:
    """Numbers with their country's form and valid check digits (modulo 97)."""
    for match in _NUMBER.finditer(text):
        # Words may follow: fewer groups of four may be valid.
        value, separator = match[1], match[2]
        while len(value) >= 15:
            # A country's own rules (which banks there are) change and are not asked for.
            if iban.is_valid(value, check_country=False):
                yield Found(match.start(), match.start() + len(value), iban.compact(value))
                break
            value = value.rpartition(separator)[0] if separator else ""
