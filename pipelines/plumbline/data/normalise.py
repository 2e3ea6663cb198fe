"""Text as it enters a dataset, the key by which two texts count as the same, and repairs of rows of every format."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from plumbline.data.row import Chat, Content, Reject, Row
from plumbline.data.truncation import is_cut_off, run_on

if TYPE_CHECKING:
    from plumbline.api.curation.normalisation import NormaliseSpec

KEY_BYTES = 16

# C0 controls but tab and newline, DEL, and the byte order mark; terminals and web pages leave them behind.
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f\ufeff]")
# Zero-width spaces and joiners, and soft hyphens: with nothing else, a text shows nothing.
_INVISIBLE = re.compile(r"[\s\u00ad\u200b-\u200f\u2060-\u2064\ufeff]*")
_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")
_CODE = re.compile(r"```.*?(?:```|$)|`[^`\n]*`", re.DOTALL)

Count = Callable[[Chat], int]
"""Tokens of a chat as the run's chat template renders it."""


def clean(text: str) -> str:
    """Unicode NFC, newlines as `\\n`, no control characters, no white space around; empty if there is nothing to see.

    Raises:
        Reject: the text holds a lone surrogate (from a JSON escape), so it has no UTF-8 form.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Reject("invalid Unicode", f"lone surrogate U+{ord(text[error.start]):04X}") from error
        text = "" if _INVISIBLE.fullmatch(text) else unicodedata.normalize("NFC", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", text).strip()


def fold(text: str) -> str:
    """The text with case and white space folded: what differs only in these is the same text."""
    return " ".join(text.casefold().split())


def row_key(texts: Iterable[str]) -> bytes:
    """BLAKE2b-128 of the folded texts; the unit separator keeps (`ab`, `c`) apart from (`a`, `bc`)."""
    return hashlib.blake2b("\x1f".join(map(fold, texts)).encode(), digest_size=KEY_BYTES).digest()


def make_normaliser(spec: NormaliseSpec, count: Count | None = None) -> Callable[[Row], Iterator[Row | Reject]]:
    """What the spec asks for, as one step: a row → the row, its pieces, or why it is dropped.

    Args:
        spec: the stage's `normalise` block.
        count: counts tokens; needed where the spec has `maxTokens`.

    Raises:
        ValueError: the spec has `maxTokens`, and there is no `count`.
    """
    steps = list(_steps(spec))
    limit = spec.max_tokens
    if limit is not None and count is None:
        raise ValueError("maxTokens needs a function that counts tokens")

    def normalise(row: Row) -> Iterator[Row | Reject]:
        try:
            for step in steps:
                row = step(row)
        except Reject as reject:
            yield reject
            return
        if limit is None or count is None or "text" in row.content:
            yield row
        else:
            yield from split(row, limit, count)

    return normalise


def _steps(spec: NormaliseSpec) -> Iterator[Callable[[Row], Row]]:
    if spec.refuse_licences:
        patterns = [_plain_licence(pattern) for pattern in spec.refuse_licences]
        yield lambda row: refuse_licence(row, patterns)
    if spec.html == "markdown":
        yield html_answers
    if spec.run_on != "keep":
        yield lambda row: end_run_on(row, drop=spec.run_on == "drop")
    if spec.placeholders or spec.unfilled == "drop":
        yield lambda row: fill(row, spec.placeholders, drop=spec.unfilled == "drop")
    if spec.cut_off != "keep":
        yield lambda row: mark_cut_off(row, drop=spec.cut_off == "drop")
    if spec.system != "keep":
        yield lambda row: set_system(row, spec.system, spec.system_text or "")


def _plain_licence(name: str) -> str:
    return "-".join(re.split(r"[\s_-]+", name.casefold().strip()))


def refuse_licence(row: Row, patterns: list[str]) -> Row:
    """Drop a row whose licence fits a glob; a row that states none has the licence `unknown`.

    Raises:
        Reject: it does.
    """
    licence = _plain_licence(row.licence or "unknown")
    if any(fnmatchcase(licence, pattern) for pattern in patterns):
        raise Reject("licence refused", row.licence or "no licence is stated")
    return row


def map_answers(row: Row, change: Callable[[str], str]) -> Content:
    """The content with every answer changed: assistant turns of a chat, or the alternatives of a preference."""

    def changed(chat: Chat) -> Chat:
        turns: Chat = []
        for turn in chat:
            answer = turn["role"] == "assistant"
            turns.append({"role": turn["role"], "content": change(turn["content"]) if answer else turn["content"]})
        return turns

    content = dict(row.content)
    for name in ("messages", "chosen", "rejected", "completion"):
        if name in content:
            content[name] = changed(content[name])
    if "completions" in content:
        content["completions"] = [changed(answer) for answer in content["completions"]]
    return content


def html_answers(row: Row) -> Row:
    """Answers that are HTML throughout, as Markdown.

    Raises:
        Reject: the HTML is nested too deeply, or says nothing.
    """
    from plumbline.data.html import is_html, to_markdown

    if "text" in row.content or not any(answer.startswith("<") and is_html(answer) for answer in row.answers):
        return row
    return _with_answers(row, "html", lambda text: to_markdown(text) if is_html(text) else text, "empty answer")


def end_run_on(row: Row, drop: bool) -> Row:
    """Cut an answer where the next generated task begins.

    Raises:
        Reject: with `drop`, or nothing comes before that.
    """
    if "text" in row.content or all(run_on(answer) is None for answer in row.answers):
        return row
    if drop:
        raise Reject("answer runs on", "into the next generated task")
    return _with_answers(
        row, "cut:run-on", lambda text: text if (end := run_on(text)) is None else text[:end], "answer runs on"
    )


def _with_answers(row: Row, operation: str, change: Callable[[str], str], if_empty: str) -> Row:
    changed = row.did(operation, content=map_answers(row, change))
    if not all(changed.answers):
        raise Reject(if_empty, f"nothing is left after {operation}")
    if "chosen" in changed.content and changed.content["chosen"] == changed.content["rejected"]:
        raise Reject("chosen equals rejected")
    return changed


def fill(row: Row, values: dict[str, str], drop: bool) -> Row:
    """Fill `{{name}}` with its value.

    Raises:
        Reject: with `drop`, one without a value is left outside code (there it is template code that someone asked for).
    """
    if not any("{{" in text for text in row.texts):
        return row
    if values:
        content = row.mapped(lambda text: _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text))
        row = row.did("placeholders", content=content) if content != row.content else row
    if drop:
        for text in row.texts:
            left = _PLACEHOLDER.search(_CODE.sub("", text)) if "{{" in text else None
            if left:
                raise Reject("unfilled template", left.group())
    return row


def mark_cut_off(row: Row, drop: bool) -> Row:
    """Note the operation `cut off` where the last answer seems to stop within a sentence; see `is_cut_off`.

    Of a preference only the better answer counts: a worse one may well be bad.

    Raises:
        Reject: with `drop`.
    """
    if "text" in row.content or row.content.get("label") is False:
        return row
    answers = row.answers
    last = answers[-1] if "messages" in row.content else answers[0]
    if not is_cut_off(last):
        return row
    if drop:
        raise Reject("answer cut off", f"…{last[-60:]}")
    return row.did("cut off")


def set_system(row: Row, how: str, text: str) -> Row:
    """The system prompt dropped (`drop`), set where there is none (`fill`) or set everywhere (`replace`)."""
    name = "messages" if "messages" in row.content else "prompt"
    if name not in row.content:
        return row
    chat: Chat = row.content[name]
    has = chat[0]["role"] == "system"
    if (how == "fill" and has) or (how == "drop" and not has):
        return row
    rest = chat[1:] if has else chat
    new: Chat = rest if how == "drop" else [{"role": "system", "content": clean(text)}, *rest]
    return row if new == chat else row.did(f"system:{how}", content=row.content | {name: new})


def split(row: Row, limit: int, count: Count) -> Iterator[Row | Reject]:
    """A chat of more tokens than the limit in pieces, each of whole exchanges, each with the system prompt (FastChat's way).

    Pieces are numbered by the operation `split:1`, …. An exchange that is too long by itself is a reject and ends a piece. A
    preference has one prompt, so it is not split but rejected as a whole.
    """
    if "messages" not in row.content:
        longest = max(row.content.get("completions") or _alternatives(row.content), key=count)
        if count(row.content["prompt"] + longest) > limit:
            yield Reject("longer than the context", f"more than {limit} tokens")
        else:
            yield row
        return
    chat: Chat = row.content["messages"]
    if count(chat) <= limit:
        yield row
        return
    system = chat[:1] if chat[0]["role"] == "system" else []
    turns = chat[len(system) :]
    pieces: list[Chat] = []
    piece: Chat = []
    for exchange in (turns[i : i + 2] for i in range(0, len(turns), 2)):
        if piece and count(system + piece + exchange) > limit:
            pieces.append(piece)
            piece = []
        if not piece and count(system + exchange) > limit:
            yield Reject("longer than the context", f"one exchange has more than {limit} tokens")
            continue
        piece = piece + exchange
    for number, part in enumerate([*pieces, piece] if piece else pieces, 1):
        yield replace(row, content={"messages": system + part}, operations=(*row.operations, f"split:{number}"))


def _alternatives(content: Content) -> list[Chat]:
    return [content[name] for name in ("chosen", "rejected", "completion") if name in content]
