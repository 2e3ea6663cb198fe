"""Phone numbers, by the numbering plans of libphonenumber."""

from __future__ import annotations

import re
from collections.abc import Iterator

import phonenumbers

from plumbline.api.curation.filters import PiiSpec
from plumbline.data.filters.pii.found import Found

_ENOUGH = re.compile(r"(?:\d\D{0,4}){7}", re.ASCII)
# Everything that a number's digits may be in, as a whole: a part of a longer row of digits is no phone number.
_CANDIDATE = re.compile(
    r"(?<![\w.,^$€£¥%+-])(?<!\d[ ])(?:\+|\(\+?(?=\d+\)))?\d[\d ().\-/]{5,22}\d"
    r"(?![\w%/=^+-]|[.,:]\d| ?[=^+/]|\*[\w(]| \*)",
    re.ASCII,
)
# Before a term of a formula, a part of a path or a ratio; national numbers stand there only if announced.
_FORMULA = re.compile(r"(?:[:/#]|\w ?\* ?|[=/^+] ?)$", re.ASCII)
_SAYS_SO = re.compile(
    r"(?:\b(?:phone|tel|telephone|call|mobile|cell|fax|whatsapp|sms|text|contact|hotline|number is|reach (?:me|us|him|her|"
    r"them) at)\b|电话|手机|致电|联系方式|热线)"
    r"[^\d\n]{0,20}$",
    re.IGNORECASE | re.ASCII,
)
_HOTLINES = (
    phonenumbers.PhoneNumberType.TOLL_FREE,
    phonenumbers.PhoneNumberType.PREMIUM_RATE,
    phonenumbers.PhoneNumberType.SHARED_COST,
)
_FICTION = re.compile(r"\d{3}55501\d\d|555\d{7}")  # North American numbers for films and books


def find(text: str, spec: PiiSpec) -> Iterator[Found]:
    """International numbers, and national ones of the spec's regions: grouped as there, or after a word such as "phone"."""
    if not _ENOUGH.search(text):
        return
    for match in _CANDIDATE.finditer(text):
        written, start = match.group(), match.start()
        if not 7 <= len(re.sub(r"\D", "", written)) <= 15:
            continue
        announced = _SAYS_SO.search(text, max(0, start - 40), start) is not None
        if not announced and "+" not in written and _FORMULA.search(text, max(0, start - 3), start):
            continue
        number = _number(written, spec.regions, announced)
        if number is not None and (spec.reserved or phonenumbers.number_type(number) not in _HOTLINES):
            value = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
            yield Found(start, match.end(), value, _is_fiction(number))


def _number(written: str, regions: list[str], announced: bool) -> phonenumbers.PhoneNumber | None:
    if "+" in written:
        return _parsed(written, None)
    if not announced and written.isdigit():
        return None
    if written.startswith("00") and (number := _parsed(f"+{written[2:]}", None)):  # as dialled from most countries
        return number
    for region in regions:
        number = _parsed(written, region)
        if number is not None and (announced or _is_grouped(written, number)):
            return number
    return None


def _parsed(written: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        number = phonenumbers.parse(written, region)
    except phonenumbers.NumberParseException:
        return None
    return number if phonenumbers.is_valid_number(number) or _is_fiction(number) else None


def _is_fiction(number: phonenumbers.PhoneNumber) -> bool:
    return number.country_code == 1 and _FICTION.fullmatch(str(number.national_number)) is not None


def _is_grouped(written: str, number: phonenumbers.PhoneNumber) -> bool:
    """Whether digits are grouped as the country does, with or without its code before. A minus has spaces around it."""
    if " - " in written and ")" not in written:
        return False
    own = re.findall(r"\d+", phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL))
    return re.findall(r"\d+", written) in (own, [str(number.country_code), *own])
