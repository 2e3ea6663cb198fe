"""IP addresses, versions 4 and 6."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from plumbline.api.curation.filters import PiiSpec
from plumbline.data.filters.pii.found import Found

_V4 = re.compile(r"(?<![\w.])(?<!\d[,-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
_V6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)")
# Before a number in four parts that is a version or a section.
_VERSION = re.compile(
    r"(?:\b(?:v|ver|version|release|build|firmware|driver|section|chapter|clause|article|figure|table|rev)\.?|[A-Za-z]/|"
    r"§)\s*$",
    re.IGNORECASE,
)


def find(text: str, spec: PiiSpec) -> Iterator[Found]:
    """Addresses of the public Internet; with `reserved` all."""
    if text.count(".") >= 3:
        for match in _V4.finditer(text):
            # 1.2.3.4 is a version or a section; the few hosts with such addresses are public services.
            single = match.end() - match.start() == 7
            if not single and not _VERSION.search(text, max(0, match.start() - 16), match.start()):
                yield from _valid(match, spec)
    if text.count(":") >= 2:
        for match in _V6.finditer(text):
            if sum(map(bool, match.group().split(":"))) >= 3 or match.group().startswith("::"):  # `a::b` is a name in C++
                yield from _valid(match, spec)


def _valid(match: re.Match[str], spec: PiiSpec) -> Iterator[Found]:
    try:
        address = ip_address(match.group())
    except ValueError:
        return
    if spec.reserved or _is_public(address):
        yield Found(match.start(), match.end(), address.compressed)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global and not address.is_multicast
