"""Program text compared under renaming: parameterized matching (Baker 1996, "Parameterized pattern matching").

A variable is not its name but the distance to its previous occurrence, so that programs that differ in names only are
equal. Comments, docstrings and white space do not count. One lexer reads Python closely and other languages well enough;
nothing is parsed, so that broken programs are read too.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from plumbline.data.decontamination.windows import CODE, Windows, places, window_weights
from plumbline.data.deduplication.shingles import mix, offsets_of

# None passes an end of line, or more than so many characters or escapes, in search of what may be missing: texts of 100,000 newlines,
# backticks or quotation marks are read as fast as others.
_FENCED = re.compile(r"```[^`\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_LOOKS = re.compile(
    r"^[ \t]*(?:def \w+\s*\(|class \w+\s*[:({]|import \w|from [\w.]+ import |#include|function \w+\s*\(|"
    r"(?:public|private|static|const|let|var|func) \w)",
    re.MULTILINE,
)
_UNSEEN = re.compile(r"\"\"\".*?(?:\"\"\"|\Z)|'''.*?(?:'''|\Z)|/\*.{0,1000}?\*/|#[^\n]*", re.DOTALL)
_TOKEN = re.compile(r"[^\W\d]\w*|\d[\w.]*|\"(?:[^\"\\\n]++|\\.){0,100}\"|'(?:[^'\\\n]++|\\.){0,100}'|\S")
# What keeps its meaning: keywords, the functions and types of every Python program, and those of `typing` in signatures.
_FIXED = {*keyword.kwlist, *dir(builtins), "self", "List", "Dict", "Tuple", "Optional", "Any", "Set", "Union"}
_NEVER = 1 << 30


def programs(text: str) -> list[str]:
    """The fenced blocks of a text; without any, all of it where it looks like a program, else nothing."""
    if "```" in text:
        return _FENCED.findall(text)
    return [text] if _LOOKS.search(text) else []


def tokens(program: str) -> list[str]:
    """Names, numbers, strings and signs, without comments, docstrings, parentheses and semicolons; strings in double quotes.

    Parentheses mostly group, and are the first thing that another formatting changes.
    """
    found = _TOKEN.findall(_UNSEEN.sub(" ", program))
    return [f'"{token[1:-1]}"' if token[0] == "'" and len(token) > 1 else token for token in found if token not in "();"]


def code_windows(token_lists: Sequence[list[str]], n: int) -> Windows:
    """All windows of n tokens of programs, equal under renaming of variables within the window."""
    offsets = offsets_of(np.fromiter(map(len, token_lists), np.int64, len(token_lists)))
    text, place = places(offsets, n, np.ones(len(token_lists), bool))
    if not len(text):
        return Windows(np.empty(0, np.uint64), text, place)
    literals, distances = np.zeros(offsets[-1], np.uint64), np.zeros(offsets[-1], np.int64)
    for ordinal, names in enumerate(token_lists):
        _encode(names, literals, distances, int(offsets[ordinal]))
    weights, starts = window_weights(n, CODE), offsets[text] + place
    of_distance = mix(np.arange(1, n + 1, dtype=np.uint64))
    sums = np.zeros(len(starts), np.uint64)
    for i in range(n):
        at = starts + i
        distance = distances[at]
        # A previous occurrence before the window is as good as none.
        variable = of_distance[np.where(distance > i, 0, distance)]
        sums += np.where(distance > 0, variable, literals[at]) * weights[i]
    return Windows(mix(sums), text, place)


def unnamed(names: Sequence[str]) -> str:
    """A whole program, equal for programs that differ in the names of variables only; see `code_windows`."""
    order: dict[str, str] = {}
    previous, found = "", []
    for name in names:
        found.append(order.setdefault(name, f"${len(order)}") if _is_variable(name, previous) else name)
        previous = name
    return " ".join(found)


def _encode(names: list[str], literals: np.ndarray, distances: np.ndarray, start: int) -> None:
    """Fill in, from `start`: the hash of what stands for itself, or how far back (from 1) a variable last occurred."""
    seen: dict[str, int] = {}
    previous = ""
    for i, name in enumerate(names, start):
        if _is_variable(name, previous):
            distances[i] = i - seen.get(name, i - _NEVER)
            seen[name] = i
        else:
            literals[i] = _literal(name)
        previous = name


def _is_variable(name: str, previous: str) -> bool:
    return (name[0].isalpha() or name[0] == "_") and name not in _FIXED and previous != "."


@lru_cache(maxsize=1 << 16)
def _literal(token: str) -> int:
    return int.from_bytes(blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
