"""Tokens into text while they arrive: never half a character, never part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to
CHARACTER_BYTES = 4  # at most, in UTF-8


class Detokenizer:
    """Decodes tokens as they come. The pieces joined are the text of all tokens; special tokens are left out.

    Args:
        tokenizer: of the model.
        before: tokens that the text goes on after, if it does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(before)  # tokens of the last piece, then those not given out
        self._told = len(before)  # how many of the window are given out

    def push(self, tokens: Sequence[int]) -> str:
        """Text that is certain now; empty while a character is unfinished."""
        self._window += tokens
        text = self._pending()
        if text.endswith(REPLACEMENT):
            return ""
        # A word's first space depends on the token before it, so the last piece stays as context.
        self._window = self._window[self._told :]
        self._told = len(self._window)
        return text

    def flush(self) -> str:
        """What is left, an unfinished character included."""
        text = self._pending()
        self._window, self._told = [], 0
        return text

    def _pending(self) -> str:
        return self._decode(self._window)[len(self._decode(self._window[: self._told])) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class TokenNames:
    """What single tokens are called where log-probabilities are told, behind other tokens. A part of a character is called \ufffd."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._names: dict[int, str] = {}
        # A word's first space shows only behind another token.
        self._before: list[int] = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._skipped = len(self._decode(self._before))

    def __getitem__(self, token: int) -> str:
        if token not in self._names:
            self._names[token] = self.text([token])
        return self._names[token]

    def of(self, tokens: Sequence[int], *, begin: bool) -> list[str]:
        """The names of all; `begin` where no text stands before them, and the first has no space that it has elsewhere."""
        names = [self[token] for token in tokens]
        if begin and names:
            names[0] = self.text(tokens[:1], begin=True)
        return names

    def offsets(self, tokens: Sequence[int], names: Sequence[str], start: int = 0) -> list[int]:
        """Where each token begins in the text of all, in characters; the parts of one character begin together."""
        offsets: list[int] = []
        parts: list[int] = []
        for token, name in zip(tokens, names, strict=True):
            if parts and REPLACEMENT not in name:  # what went before was no whole character
                start += len(self.text(parts))
                parts = []
            offsets.append(start)
            if REPLACEMENT not in name:
                start += len(name)
                continue
            parts.append(token)
            text = self.text(parts)
            if REPLACEMENT not in text or len(parts) == CHARACTER_BYTES:
                start += len(text)
                parts = []
        return offsets

    def text(self, tokens: Sequence[int], *, begin: bool = False) -> str:
        """The text of given tokens, special ones included; see `of`."""
        return self._decode(tokens) if begin else self._decode([*self._before, *tokens])[self._skipped :]

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))


class StopStrings:
    """Cuts text before the first stop string, and holds back what could be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.reached = False

    def push(self, text: str) -> str:
        """Text that is certain not to belong to a stop string."""
        if self.reached:
            return ""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.reached = True
            self._held = ""
            return text[: min(found)]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, now that nothing more comes."""
        text, self._held = self._held, ""
        return text


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
