"""IP addresses, versions 4 and 6."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from plumbline.api.curation.filters import PiiSpec
from plumbline.data.filters.pii.found import Found

_V4 = re.compile(r"(?<![\w.])(?<!\d[,-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)", re.ASCII)
_V6 = re.compile(
    r"(?:(?<![\w:.])|(?<=v6:)|(?<=[G-Zg-z]:))(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)", re.ASCII
)
# Before a number in four parts that is a version or a section.
_VERSION = re.compile(
    r"(?:\b(?:v|ver|versions?|release|build|firmware|driver|section|chapter|clause|article|figure|table|rev|"
    r"(?:up|down)grad\w+ (?:from|to))\b\.?(?: is| number)*[\s\"':=]*|[A-Za-z][/-]|§\s*|[=~><^!]=?=\s*)$",
    re.IGNORECASE | re.ASCII,
)
_SAYS_SO = re.compile(
    r"\b(?:ip|ipv4|host|hosts|server|dns|ping|resolver|nameserver|address|ssh|gateway)\b[^\d\n]{0,20}$", re.I
)
_EXAMPLES = [
    ip_network(one) for one in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]  # RFC 5737, 3849
_UNICAST = ip_network(
    "2000::/3"
)  # of the IPv6 Internet; what is outside is no address of a host, and often no address at all


def find(text: str, spec: PiiSpec) -> Iterator[Found]:
    """Addresses of the public Internet, and those set aside for examples; with `reserved` all."""
    if text.count(".") >= 3:
        for match in _V4.finditer(text):
            before = max(0, match.start() - 32), match.start()
            # 1.2.3.4 is a version or a section, unless it is said to be an address.
            single = match.end() - match.start() == 7
            if not _VERSION.search(text, *before) and (not single or _SAYS_SO.search(text, *before)):
                yield from _valid(match, spec)
    if text.count(":") >= 2:
        for match in _V6.finditer(text):
            if sum(map(bool, match.group().split(":"))) >= 3:  # `a::b` is a name in C++, `[::2]` a slice
                yield from _valid(match, spec)


def _valid(match: re.Match[str], spec: PiiSpec) -> Iterator[Found]:
    try:
        address = ip_address(match.group())
    except ValueError:
        return
    example = any(address in network for network in _EXAMPLES)
    if spec.reserved or example or _is_public(address):
        yield Found(match.start(), match.end(), address.compressed, example)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global and not address.is_multicast and (address.version == 4 or address in _UNICAST)
