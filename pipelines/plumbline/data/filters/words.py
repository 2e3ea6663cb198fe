"""Words of a text in any script, and which texts of a row a model learns to write."""

from __future__ import annotations

import re

from plumbline.data.row import Row

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Scripts written without spaces, as ranges of a character class: Thai, Lao, Burmese, Khmer, kana, Han."""
CODE = re.compile(r"```.*?(?:```|$)", re.DOTALL)
"""Fenced code."""
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
_TOKEN = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|([-=_.*#~+])\1*|[^\w\s]")


def count_words(text: str) -> int:
    """Words; in scripts written without spaces each character is one."""
    return len(text.split()) if text.isascii() else len(_WORD.findall(text))


def tokens(text: str) -> list[str]:
    """Words and punctuation marks, in lower case; a line that is drawn (`-----`) is one mark."""
    return [token[0] for token in _TOKEN.finditer(text.lower())]


def learned(row: Row) -> list[str]:
    """The texts that a model is to imitate: all answers of a chat, a text, or of a preference the better answer.

    Of labelled answers (KTO) bad ones are none: filters for good answers do not concern them.
    """
    content = row.content
    if "messages" in content or "text" in content:
        return row.answers
    if "chosen" in content:
        chats = [content["chosen"]]
    elif "completion" in content:
        chats = [content["completion"]] if content["label"] else []
    else:
        scores = content["scores"]
        chats = [content["completions"][scores.index(max(scores))]]
    return [turn["content"] for chat in chats for turn in chat]
