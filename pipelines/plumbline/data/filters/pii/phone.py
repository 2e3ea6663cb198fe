"""Phone numbers, by the numbering plans of libphonenumber."""

from __future__ import annotations

import re
from collections.abc import Iterator

import phonenumbers

from plumbline.api.curation.filters import PiiSpec
from plumbline.data.filters.pii.found import Found

_DIGITS = re.compile(r"\d")
# Everything that a number's digits may be in, as a whole: a part of a longer row of digits is no phone number.
_CANDIDATE = re.compile(
    r"(?<![\w.,:/=*^$€£¥#%+-])(?<!\d[ ])(?:\+|\(\+?(?=\d+\)))?\d[\d ().\-/\u2010\u2011]{5,22}\d(?![\w%/=*^+-]|[.,:]\d| "
    r"?[=*^+/])"
)
_SAYS_SO = re.compile(
    r"(?:\b(?:phone|tel|telephone|call|mobile|cell|fax|whatsapp|sms|text|contact|hotline|number is|reach (?:me|us|him|her|"
    r"them) at)\b|电话|手机|致电|联系方式|热线)"
    r"[^\d\n]{0,20}$",
    re.IGNORECASE,
)
_NOBODYS = (
    phonenumbers.PhoneNumberType.TOLL_FREE,
    phonenumbers.PhoneNumberType.PREMIUM_RATE,
    phonenumbers.PhoneNumberType.SHARED_COST,
)
_FICTION = re.compile(r"\d{3}55501\d\d")  # North American numbers for films and books


def find(text: str, spec: PiiSpec) -> Iterator[Found]:
    """International numbers, and national ones of the spec's regions: grouped as there, or after a word such as "phone"."""
    if len(_DIGITS.findall(text, 0, 20_000)) < 7:
        return
    for match in _CANDIDATE.finditer(text):
        written = match.group()
        if not 7 <= len(re.sub(r"\D", "", written)) <= 15:
            continue
        number = _number(written, spec.regions, _SAYS_SO.search(text, max(0, match.start() - 40), match.start()) is not None)
        if number is not None and (spec.reserved or not _is_nobodys(number)):
            yield Found(match.start(), match.end(), phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


def _is_nobodys(number: phonenumbers.PhoneNumber) -> bool:
    """Whether it is a hotline's, or set aside for fiction."""
    fiction = number.country_code == 1 and _FICTION.fullmatch(str(number.national_number))
    return bool(fiction) or phonenumbers.number_type(number) in _NOBODYS


def _number(written: str, regions: list[str], announced: bool) -> phonenumbers.PhoneNumber | None:
    if "+" in written:
        return _parsed(written, None)
    if not announced and written.isdigit():
        return None
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
    return number if phonenumbers.is_valid_number(number) else None


def _is_grouped(written: str, number: phonenumbers.PhoneNumber) -> bool:
    """Whether digits are grouped as the country does, with or without its code before."""
    own = re.findall(r"\d+", phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL))
    return re.findall(r"\d+", written) in (own, [str(number.country_code), *own])
