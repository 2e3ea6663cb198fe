"""Texts that are damaged, hidden, or no text at all."""

from __future__ import annotations

import re

import regex

from plumbline.api.curation.filters import SymbolsSpec
from plumbline.data.filters.programming import is_programming
from plumbline.data.filters.words import CODE, learned
from plumbline.data.row import Reject, Row

FEWEST_CHARACTERS = 40  # of an answer whose symbols are counted: formulas and emoji answer short questions
FEWEST_MARKS = 10  # of an answer of one and the same: "........."
_SYMBOL = regex.compile(r"[^\p{L}\p{M}\p{N}\s.,;:!?'\"()\-–—‘’“”…。，、；：！？（）《》「」『』·%$€£&/_]")
_ZERO_WIDTH = re.compile("[\u00ad\u200b\u2060\ufeff]")  # no joiners: scripts and emoji need them
_HIDDEN = re.compile(
    "[\u202a-\u202e\u2066-\u2069\ue000-\uf8ff\U000e0000-\U000e007f\U000f0000-\U0010ffff]"
)  # direction, private use, tags
# UTF-8 read as Latin-1 or Windows-1252: a lead byte, then one or two continuation bytes, shown as what they are there.
_CONTINUATION = "[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"  # bytes 80 to BF in both
_PUNCTUATION = "[\u00a0«»‘’“”…–—·]"  # two after an accented letter are just that: « Café » with no-break spaces, ‘fiancé’”
_MOJIBAKE = re.compile(f"\ufffd|[ÂÃ](?![»”’]){_CONTINUATION}|[â-ï](?!{_PUNCTUATION}{{2}}){_CONTINUATION}{{2}}")
_UNFILLED = re.compile(
    r"[\[<{(]\s*(?:please\s+)?(?:insert|paste|add|enter|provide|attach|your|put)\b[^\[\]<>{}()\n]{0,40}?"
    r"\b(?:here|text|article|passage|paragraph|sentence|image|link|url|code|data|document|story|input)\s*[\]>})]"
    r"|[\[【<（(]\s*(?:请)?(?:在此|此处)?(?:插入|填写|输入|粘贴)[^\[\]【】<>（）()\n]{0,20}[\]】>）)]",
    re.IGNORECASE,
)


def check_symbols(row: Row, spec: SymbolsSpec) -> Row:
    """Drop a row with a damaged text, and take zero-width characters out of the others.

    Raises:
        Reject: mojibake, an unfilled placeholder, hidden characters, or mostly symbols.
    """
    if spec.placeholders == "drop":
        for prompt in row.prompts:
            if found := _UNFILLED.search(prompt):
                raise Reject("unfilled placeholder", found.group())
    stripped = False
    for text in row.texts:
        if text.isascii():
            continue
        if spec.mojibake == "drop" and (found := _MOJIBAKE.search(text)):
            raise Reject("mojibake", text[found.start() :])
        hidden = _HIDDEN.findall(text)
        if len(hidden) > spec.max_hidden_share * len(text):
            raise Reject("hidden characters", f"{len(hidden)}, such as U+{ord(hidden[0]):04X}")
        stripped = stripped or _ZERO_WIDTH.search(text) is not None
    for answer in learned(row):
        share = symbol_share(answer)
        if share > spec.max_symbol_share and not is_programming(row):
            raise Reject("mostly symbols", f"{share:.0%} of {answer}")
    return row.did("zero-width", content=row.mapped(lambda text: _ZERO_WIDTH.sub("", text))) if stripped else row


def symbol_share(text: str) -> float:
    """Share of characters that are no letter, digit, white space or common punctuation; 0 for short texts, 1 for
    one and the same mark. Fenced code is left out."""
    plain = CODE.sub("", text) if "```" in text else text
    if len(plain) >= FEWEST_MARKS and len(marks := set(plain) - {" ", "\n"}) == 1 and not marks.pop().isalnum():
        return 1.0
    return len(_SYMBOL.findall(plain)) / len(plain) if len(plain) >= FEWEST_CHARACTERS else 0.0
