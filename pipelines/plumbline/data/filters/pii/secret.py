"""Keys, tokens and passwords: those with a known form, and what is assigned to a name such as `api_key` and looks random."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from plumbline.api.curation.filters import PiiSpec
from plumbline.data.filters.pii.found import Found

_ANY = re.compile(r"[A-Za-z0-9_+/=-]{16}")
# Forms that vendors document for secret scanning.
_KNOWN = re.compile(
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END (?:[A-Z]+ )?PRIVATE KEY(?: BLOCK)?-----|$)|"
    r"(?<![A-Za-z0-9_-])(?:"
    r"(?:AKIA|ASIA)[A-Z2-7]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{60,}|glpat-[\w-]{20,}|sk-ant-[\w-]{32,}|"
    r"sk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{32,}|[sr]k_(?:live|test)_[A-Za-z0-9]{20,}|xox[abeprs]-[A-Za-z0-9-]{20,}|"
    r"AIza[\w-]{35}|ya29\.[\w-]{30,}|"
    r"hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|SG\.[\w-]{20,}\.[\w-]{40,}|"
    r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
    r")(?![A-Za-z0-9_-])",
    re.DOTALL,
)
_ASSIGNED = re.compile(
    r"(?:api[_-]?key|apikey|secret(?:[_-]?(?:access)?[_-]?key)?|client[_-]?secret|access[_-]?token|auth[_-]?token|bearer|"
    r"token|password|passwd|pwd)"
    r"[\"']?\s*(?:[:=]|=>|:=|\s)\s*[\"']?([A-Za-z0-9_+/=.~-]{16,200})(?![A-Za-z0-9_+/=~(-])",
    re.IGNORECASE,
)
_KINDS = (re.compile(r"[a-z]"), re.compile(r"[A-Z]"), re.compile(r"\d"))
RANDOM = 3.5  # bits a character: random hex of 32 has 3.6, random base 64 of 20 has 4; words have 3


def find(text: str, spec: PiiSpec) -> Iterator[Found]:
    """Secrets with a known form, and random-looking values of names that announce one."""
    if not _ANY.search(text):
        return
    for match in _KNOWN.finditer(text):
        if match.group().startswith("-----") or is_random(match.group()):
            yield Found(match.start(), match.end(), match.group())
    for match in _ASSIGNED.finditer(text):
        if is_random(match[1]):
            yield Found(match.start(1), match.end(1), match[1])


def is_random(value: str) -> bool:
    """Whether a value may be random: digits among letters, and high entropy; `YOUR_API_KEY` and words are not."""
    if not _KINDS[2].search(value) or not (_KINDS[0].search(value) or _KINDS[1].search(value)):
        return False
    return entropy(value) >= RANDOM


def entropy(value: str) -> float:
    """Shannon entropy of a value's characters, in bits."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
