"""Mail addresses."""

from __future__ import annotations

import re
from collections.abc import Iterator

from plumbline.api.curation.filters import PiiSpec
from plumbline.data.filters.pii.found import Found

_LETTER = "A-Za-z\u00c0-\u024f"  # Latin with its accents: names and domains of Europe have them
_ADDRESS = re.compile(
    rf"(?<![{_LETTER}0-9._%+@-])[{_LETTER}0-9_](?:[{_LETTER}0-9._%+'-]{{0,62}}[{_LETTER}0-9_])?"
    rf"@((?:[{_LETTER}0-9](?:[{_LETTER}0-9-]{{0,61}}[{_LETTER}0-9])?\.)+[A-Za-z]{{2,24}})(?![{_LETTER}0-9@(]|-[{_LETTER}0-9])"
)
# Written for people only: `jane [at] acme [dot] org`, `jane AT acme DOT org`.
_AT, _DOT = r"\s?[\[({<]\s?(?:at|AT|@)\s?[\])}>]\s?", r"(?:\s?[\[({<]\s?(?:dot|DOT|\.)\s?[\])}>]\s?|\.)"
_SPELLED = re.compile(
    rf"(?<![\w.+-])(?:([\w.+-]{{1,64}}){_AT}([\w-]{{1,63}}(?:{_DOT}[\w-]{{2,63}})+)"
    rf"|([\w.+-]{{1,64}}) AT ([\w-]{{1,63}}(?: DOT [\w-]{{2,63}})+))(?![\w(])",
    re.ASCII,
)
_JOINTS = re.compile(rf"{_DOT}| DOT ")
_NOT_A_DOMAIN = frozenset(
    {"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "py", "json", "html", "txt"}
)  # logo@2x.png
_EXAMPLE = re.compile(r"(?:^|\.)(?:example\.(?:com|net|org)|example|test|invalid|localhost|local)$")  # RFC 2606, RFC 6762
_IN_URL = re.compile(r"//(?:[^\s/@:]{0,80}:)?$")  # //user@host, //user:password@host


def find(text: str, spec: PiiSpec) -> Iterator[Found]:
    """Addresses, also those spelled for people only; `git@github.com` and such are none."""
    if "@" in text:
        for match in _ADDRESS.finditer(text):
            domain, value = match[1].lower(), match.group().lower()
            if domain.rpartition(".")[2] in _NOT_A_DOMAIN or value.startswith("git@"):
                continue
            if not _IN_URL.search(text, max(0, match.start() - 100), match.start()):
                yield Found(match.start(), match.end(), value, _EXAMPLE.search(domain) is not None)
    if "AT" in text or "at]" in text or "at)" in text or "at ]" in text or "at )" in text or "@]" in text or "@)" in text:
        for match in _SPELLED.finditer(text):
            domain = _JOINTS.sub(".", match[2] or match[4]).lower()
            if domain.rpartition(".")[2].isalpha():
                value = f"{(match[1] or match[3]).lower()}@{domain}"
                yield Found(match.start(), match.end(), value, _EXAMPLE.search(domain) is not None)
