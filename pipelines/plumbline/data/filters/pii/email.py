"""Mail addresses."""

from __future__ import annotations

import re
from collections.abc import Iterator

from plumbline.api.curation.filters import PiiSpec
from plumbline.data.filters.pii.found import Found

_ADDRESS = re.compile(
    r"(?<![A-Za-z0-9._%+@/:-])[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_])?"
    r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24})(?![A-Za-z0-9@-])"
)
_NOT_A_DOMAIN = frozenset(
    {"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "py", "json", "html", "txt"}
)  # logo@2x.png
_RESERVED = re.compile(r"(?:^|\.)(?:example\.(?:com|net|org)|example|test|invalid|localhost|local)$")  # RFC 2606, RFC 6762


def find(text: str, spec: PiiSpec) -> Iterator[Found]:
    """Addresses; `git@github.com` and such are none, and those at reserved domains only where the spec asks for them."""
    if "@" not in text:
        return
    for match in _ADDRESS.finditer(text):
        domain, value = match[1].lower(), match.group().lower()
        if domain.rpartition(".")[2] in _NOT_A_DOMAIN or value.startswith("git@"):
            continue
        if spec.reserved or not _RESERVED.search(domain):
            yield Found(match.start(), match.end(), value)
