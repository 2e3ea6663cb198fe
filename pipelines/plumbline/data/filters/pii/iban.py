"""International bank account numbers (ISO 13616)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stdnum import iban

from plumbline.api.curation.filters import PiiSpec
from plumbline.data.filters.pii.found import Found

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)(?![A-Za-z0-9])"
)


def find(text: str, spec: PiiSpec) -> Iterator[Found]:
    """Numbers with their country's form and valid check digits (modulo 97)."""
    for match in _NUMBER.finditer(text):
        # Words in capitals may follow: fewer groups of four may be valid.
        value = match.group()
        while len(value) >= 15:
            if iban.is_valid(value):
                yield Found(match.start(), match.start() + len(value), value.replace(" ", ""))
                break
            value = value.rpartition(" ")[0]
