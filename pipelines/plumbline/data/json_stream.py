"""Elements of a JSON array, or JSON objects one after the other, from a stream: one element in memory at a time."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from plumbline.data.records import JSON, MAX_RECORD, Broken, Item, excerpt, plain
from plumbline.errors import InvalidInput

CHUNK = 1 << 20
Shape: TypeAlias = Literal["array", "objects", "listed"]
"""One array; objects one after the other; or one object with the array under one of `LISTS`."""
LISTS = ("data", "rows", "records", "examples", "samples", "train")

_ESCAPED = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of bytes that are not UTF-8
_GAP = re.compile(r"[ \t\r\n]*")
_SLACK = 16
"""Characters before the end of what was read within which an error may only mean that more must be read."""


def elements(stream: io.BufferedReader[Any], shown: str, shape: Shape) -> Iterator[Item]:
    """Yield the elements in order; one that is no object, or not UTF-8, as `Broken`.

    Args:
        stream: UTF-8 text at its beginning, without a byte order mark.
        shown: the file's name in messages.
        shape: what the elements stand in.

    Raises:
        InvalidInput: FILE:LINE where the text is no JSON or ends early; what follows cannot be read.
    """
    text = _Text(stream, shown)
    array = shape != "objects"
    if shape == "listed":
        _to_list(text)
    if array:
        text.expect("[")
    end = "]" if array else ""
    index = 0
    while text.next() != end:
        line = text.line
        value, element = text.value()
        escaped = None if element.isascii() else _ESCAPED.search(element)
        if escaped:
            at = text.offset() - len(element[escaped.start() :].encode(errors="surrogateescape"))
            yield (
                index,
                line,
                Broken("invalid UTF-8", f"byte 0x{ord(escaped.group()) - 0xDC00:02x} at byte {at} of the file"),
            )
        elif not isinstance(value, dict):
            yield index, line, Broken("not an object", excerpt(element))
        else:
            yield index, line, value
        index += 1
        if array and text.next() == ",":
            text.step()
            if text.next() == "]":
                raise text.broken("a value is expected after the comma")
        elif array and text.next() != "]":
            raise text.broken("a comma or ] is expected")
    if array:
        text.expect("]")
    if shape == "listed":
        while text.next() == ",":
            text.step()
            text.name()
            text.next()
            text.value()
        text.expect("}")
    if array and text.next():
        raise text.broken("text after the closing " + ("]" if shape == "array" else "}"))


def _to_list(text: _Text) -> None:
    """Pass what stands before the list in an object."""
    text.expect("{")
    while text.name() not in LISTS or text.next() != "[":
        text.next()
        text.value()
        text.expect(",")


class _Text:
    """Text as far as it was read and is not parsed yet."""

    def __init__(self, stream: io.BufferedReader[Any], shown: str) -> None:
        self._stream, self._shown = stream, shown
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text, self._position, self._done = "", 0, False
        self._line, self._counted = 1, 0
        self._bytes = 0  # before the text

    @property
    def line(self) -> int:
        """Number of the line at the position, from 1."""
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def offset(self) -> int:
        """Bytes of the file before the position."""
        return self._bytes + len(self._text[: self._position].encode(errors="surrogateescape"))

    def _more(self) -> bool:
        """Read on; as much again as is waiting, so that an element of any length is parsed a few times only."""
        if self._done:
            return False
        data = self._stream.read(max(CHUNK, len(self._text) - self._position))
        self._done = not data
        _, self._bytes = self.line, self.offset()
        self._text = self._text[self._position :] + self._decode(data, final=self._done)
        self._position = self._counted = 0
        return True

    def next(self) -> str:
        """The next character that is no white space, empty at the end."""
        while True:
            gap = _GAP.match(self._text, self._position)  # empty where there is none
            self._position = gap.end() if gap else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._more():
                return ""

    def step(self) -> None:
        """Pass one character."""
        self._position += 1

    def expect(self, character: str) -> None:
        """Pass white space and this character.

        Raises:
            InvalidInput: there is another.
        """
        if self.next() != character:
            raise self.broken(f"{character} is expected")
        self.step()

    def name(self) -> Any:
        """Pass the name of an object's field, and the colon."""
        self.next()
        name, _ = self.value()
        self.expect(":")
        return name

    def value(self) -> tuple[Any, str]:
        """The value at the position, and its text.

        Raises:
            InvalidInput: it is no JSON, ends early or is too long.
        """
        while True:
            try:
                value, end = JSON.raw_decode(self._text, self._position)
                if end < len(self._text) or not self._more():  # `12` may be the beginning of 123
                    element = self._text[self._position : end]
                    self._position = end
                    return value, element
            except (ValueError, RecursionError) as error:
                at = getattr(error, "pos", self._position)
                unfinished = at >= len(self._text) - _SLACK or plain(error).startswith("Unterminated string")
                if not unfinished or not self._more():
                    self._position = at
                    raise self.broken(plain(error)) from error
            if len(self._text) - self._position > MAX_RECORD:
                raise self.broken(f"an element of more than {MAX_RECORD >> 20} MiB")

    def broken(self, why: str) -> InvalidInput:
        """The error for the position."""
        near = excerpt(self._text[self._position : self._position + 200], 80) or "the end of the file"
        return InvalidInput(
            f"{self._shown}:{self.line}: broken JSON ({why}) near: {near}; what comes after it cannot be read: "
            "repair the file, or write one object a line"
        )
