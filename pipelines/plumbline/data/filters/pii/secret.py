"""Keys, tokens and passwords: those with a known form, and what is assigned to a name such as `api_key` and looks random."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from plumbline.api.curation.filters import PiiSpec
from plumbline.data.filters.pii.found import Found

_ANY = re.compile(r"[A-Za-z0-9_+/=-]{16}|://[^\s:/@]*:[^\s/@]+@")
# With its body: a text that only names these lines holds no key. Keys that were cut off have no end.
_PRIVATE = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:(?:(?!-----BEGIN).){0,20000}?"
    r"-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|(?:(?:\s|\\[nr])*[A-Za-z0-9+/=]{16,})+)",
    re.DOTALL,
)
_BODY = re.compile(r"[A-Za-z0-9+/]{16}")
# Forms that vendors document for secret scanning.
_KNOWN = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"(?:AKIA|ASIA)[A-Z2-7]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{60,}|glpat-[\w-]{20,}|sk-ant-[\w-]{32,}|"
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{20,}|xox[abeprs]-[A-Za-z0-9-]{20,}|xapp-[A-Za-z0-9-]{20,}|"
    r"AIza[\w-]{35}|ya29\.[\w-]{30,}|"
    r"hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|SG\.[\w-]{20,}\.[\w-]{40,}|"
    r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
    r")(?![A-Za-z0-9_-])|(?<=hooks\.slack\.com/services/)T\w{6,}/B\w{6,}/\w{16,}",
    re.ASCII,
)
# OpenAI's, which names of packages and styles look like too; what is assigned; a password in a URL.
_MAYBE = re.compile(
    r"(?<![A-Za-z0-9_-])(sk-[A-Za-z0-9_-]{32,})(?![A-Za-z0-9_-])|"
    r"(?:(?:api|access|account|auth|client|private|secret|encryption|signing)[_-]?(?:access[_-]?)?(?:key|token|secret)|"
    r"secret|bearer|token|password|passwd|pwd)"
    r"[\"']?\s*(?:[:=]|=>|:=|\s)\s*[\"']?([A-Za-z0-9_+/=.~-]{16,200})(?![A-Za-z0-9_+/=~(-])|"
    r"://[^\s:/@]{0,100}:([^\s:/@]{10,100})@",
    re.IGNORECASE,
)
_KINDS = (re.compile(r"[a-z]"), re.compile(r"[A-Z]"), re.compile(r"\d"))
_NAME = re.compile(r"[A-Za-z]*\d*(?:[_./+=~-]+[A-Za-z]*\d*)*")
RANDOM = 3.0  # bits a character, which of random hex of 24 and of random base 64 of 16 all but 1 in 100 have; `xxxx` has 0


def find(text: str, spec: PiiSpec) -> Iterator[Found]:
    """Secrets with a known form, and random-looking values of names that announce one."""
    if not _ANY.search(text):
        return
    for match in _PRIVATE.finditer(text) if "PRIVATE KEY" in text else ():
        if _BODY.search(match.group()):
            yield Found(match.start(), match.end(), match.group())
    for match in _KNOWN.finditer(text):
        if entropy(match.group()) >= RANDOM:
            yield Found(match.start(), match.end(), match.group())
    for match in _MAYBE.finditer(text):
        which = match.lastindex or 0
        if is_random(match[which]):
            yield Found(match.start(which), match.end(which), match[which])


def is_random(value: str) -> bool:
    """Whether a value may be random: digits among letters, and high entropy; `YOUR_API_KEY` and `base64_encode_v2` are not."""
    if not _KINDS[2].search(value) or not (_KINDS[0].search(value) or _KINDS[1].search(value)):
        return False
    return _NAME.fullmatch(value) is None and entropy(value) >= RANDOM


def entropy(value: str) -> float:
    """Shannon entropy of a value's characters, in bits."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
