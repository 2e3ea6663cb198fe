"""Tokens into text while they arrive: never half a character, never part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to


class Detokenizer:
    """Decodes tokens as they come. The pieces joined are the text of all tokens; special tokens are left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # tokens of the last piece, then those not given out
        self._told = 0  # how many of the window are given out

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
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, now that nothing more comes."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
