"""Numbers of payment cards."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stdnum import luhn

from plumbline.api.curation.filters import PiiSpec
from plumbline.data.filters.pii.found import Found

# In one piece, or in the groups that are printed on cards: 4-4-4-4(-3), 4-6-5 (American Express), 4-6-4 (Diners).
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9.,+-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5})(?!\w|[.,-]\d)",
    re.ASCII,
)
# Issuers' first digits and lengths (ISO/IEC 7812): Visa, Mastercard, American Express, Discover, JCB, Diners, UnionPay.
_ISSUED = re.compile(
    r"4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|"
    r"6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|62\d{14,17}"
)


def find(text: str, spec: PiiSpec) -> Iterator[Found]:
    """Numbers of an issuer, with its length and a valid check digit (Luhn)."""
    for match in _NUMBER.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if _ISSUED.fullmatch(digits) and luhn.is_valid(digits):
            yield Found(match.start(), match.end(), digits)
