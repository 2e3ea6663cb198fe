"""How many tokens a tokenizer needs for a text, before and after an extension, and a page that shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from plumbline.models.extend import batches, piece_texts

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
"""


@dataclass(frozen=True)
class Side:
    """What one tokenizer makes of some texts.

    Attributes:
        tokens: how many.
        pieces: how many of them are less than a character, or the unknown token.
    """

    tokens: int
    pieces: int


@dataclass(frozen=True)
class Fertility:
    """One source's held-out texts before and after.

    Attributes:
        texts, characters: how many.
        before, after: what either tokenizer makes of them.
        new: how many tokens of `after` are new ones.
        used: which new tokens occur.
    """

    texts: int
    characters: int
    before: Side
    after: Side
    new: int
    used: frozenset[int]

    def report(self) -> dict[str, Any]:
        """The counts, with tokens per character and what is left of the tokens."""
        return asdict(self) | {
            "used": len(self.used),
            "tokensPerCharacter": {
                "before": round(self.before.tokens / self.characters, 4),
                "after": round(self.after.tokens / self.characters, 4),
            },
            "tokensLeft": round(self.after.tokens / max(1, self.before.tokens), 4),
        }


def fertility(before: Tokenizer, after: Tokenizer, first: int, texts: Sequence[str]) -> Fertility:
    """Encode texts, which must hold a character, with both.

    Args:
        before: the old tokenizer.
        after: the extended one.
        first: id of the first new token.
        texts: held-out ones.
    """
    side_before, _ = _counts(before, texts)
    side_after, counts = _counts(after, texts)
    used = frozenset((first + np.flatnonzero(counts[first:])).tolist())
    return Fertility(len(texts), sum(map(len, texts)), side_before, side_after, int(counts[first:].sum()), used)


def _counts(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Side, np.ndarray]:
    """Tokens in all, and of each id."""
    whole = piece_texts(json.loads(tokenizer.to_str()))
    size = max(whole) + 1
    counts = np.zeros(size, np.int64)
    for batch in batches(texts):
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            counts += np.bincount(encoding.ids, minlength=size)
    broken = [i for i, text in whole.items() if text is None]
    return Side(int(counts.sum()), int(counts[broken].sum())), counts


def total(parts: Sequence[Fertility]) -> Fertility:
    """Sources together."""
    return Fertility(
        sum(p.texts for p in parts),
        sum(p.characters for p in parts),
        Side(sum(p.before.tokens for p in parts), sum(p.before.pieces for p in parts)),
        Side(sum(p.after.tokens for p in parts), sum(p.after.pieces for p in parts)),
        sum(p.new for p in parts),
        frozenset().union(*(p.used for p in parts)),
    )


def page(report: Mapping[str, Any], title: str) -> str:
    """The stage's report as one HTML page without external resources.

    Args:
        report: `tokens`, `sources` (with `Fertility.report` of each), `unmeasured` (names of sources too small to hold texts
            out of) and `examples`.
        title: such as the stage's name.
    """
    tokens, unmeasured = report["tokens"], escape(", ".join(report["unmeasured"]))
    shown = [
        f"<h1>Tokenizer: {escape(title)}</h1>",
        f"<p>{tokens['added']:,} tokens added to {tokens['before']:,}: {tokens['characters']:,} for characters that were spelled "
        f"in pieces, {tokens['words']:,} for words and parts of words. {tokens['asked']:,} were asked for.</p>",
        "<h2>Held-out texts</h2>",
        _table(report["sources"]),
        "<p>A piece is less than a character: a byte, some bytes, or the unknown token."
        + (f" Learned from, and too small to be measured on: {unmeasured}." if unmeasured else "")
        + "</p>",
        f"<h2>Some of the new tokens</h2><p>{escape(' · '.join(report['examples']))}</p>",
    ]
    head = f'<meta charset="utf-8"><title>Tokenizer: {escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>' + "\n".join(shown) + "\n</body></html>\n"


def _table(sources: Mapping[str, Mapping[str, Any]]) -> str:
    names = ("characters", "tokens per character", "after", "tokens left", "pieces", "after", "new tokens", "different")
    rows = []
    for name, source in sources.items():
        rate, before, after = source["tokensPerCharacter"], source["before"], source["after"]
        cells = [
            f"{source['characters']:,}",
            f"{rate['before']:.3f}",
            f"{rate['after']:.3f}",
            f"{source['tokensLeft']:.1%}",
            f"{before['pieces'] / max(1, before['tokens']):.1%}",
            f"{after['pieces'] / max(1, after['tokens']):.1%}",
            f"{source['new'] / max(1, after['tokens']):.1%}",
            f"{source['used']:,}",
        ]
        rows.append(f"<tr><td>{escape(name)}</td>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>")
    head = "<tr><th>source</th>" + "".join(f'<th class="n">{name}</th>' for name in names) + "</tr>"
    return f"<table>{head}{''.join(rows)}</table>"
