"""The conversation: questions in, answers out, and the commands in between. Knows nothing of how the endpoint was found."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from plumbline.chat.client import ContextFull, Endpoint, Message
from plumbline.errors import PlumblineError

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey: models and endpoints write text, they do not move the cursor or set the clipboard."""


@dataclass
class Talk:
    """What one model and the person have said."""

    model: str
    turns: list[Message] = field(default_factory=list)


class Chat:
    """A conversation with one model, or with several that are asked the same.

    Args:
        endpoint: where they are served.
        models: their names; at least one.
        system: the system message, empty for none.
        sampling: further fields of each request, such as `temperature`.
        interactive: whether a person is there, who gets errors told and may stop an answer; else errors are raised.
        shown: where answers go. Notes go to `notes`, so that a pipe holds answers alone.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        models: list[str],
        system: str = "",
        sampling: dict[str, Any] | None = None,
        *,
        interactive: bool = False,
        shown: TextIO | None = None,
        notes: TextIO | None = None,
    ) -> None:
        self.endpoint, self.system, self.sampling = endpoint, system, sampling or {}
        self.talks = [Talk(model) for model in models]
        self.interactive = interactive
        self._shown, self._notes = shown or sys.stdout, notes or sys.stderr

    def ask(self, question: str) -> None:
        """Ask every model and show its answer as it comes. A question without an answer is no part of the conversation.

        Raises:
            PlumblineError: the endpoint refuses or fails, and nobody is there to be told.
        """
        for talk in self.talks:
            if len(self.talks) > 1:
                self._print(f"── {talk.model} ──\n")
            try:
                self._answer(talk, question)
            except PlumblineError as error:
                if not self.interactive:
                    raise
                self.note(f"error: {error}")
                if isinstance(error, ContextFull):
                    self.note("nothing was left out to make it fit; /new begins afresh, /save FILE keeps this first")
                self.note("the question is not part of the conversation")

    def _answer(self, talk: Talk, question: str) -> None:
        asked = [*talk.turns, {"role": "user", "content": question}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        answer, reason, stopped = "", None, False
        pieces = self.endpoint.answer(talk.model, system + asked, **self.sampling)
        try:
            for piece in pieces:
                answer += piece.text
                reason = piece.finish_reason or reason
                self._print(piece.text)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            stopped = True
        finally:
            pieces.close()  # this ends the request
            self._print("\n" if answer else "")
        if stopped and not answer:
            self.note("stopped; the question is not part of the conversation")
            return
        self._print("" if answer else "\n")  # who reads line by line gets one for each question
        talk.turns = [*asked, {"role": "assistant", "content": answer}]
        if stopped:
            self.note("stopped; what was said so far is part of the conversation")
        elif reason == "length":
            self.note("cut at the longest answer allowed; --max-tokens asks for longer ones")

    def obey(self, line: str) -> bool:
        """Do what a line that begins with `/` says; returns whether the conversation goes on."""
        name, _, argument = line[1:].strip().partition(" ")
        if name == "quit":
            return False
        command = COMMANDS.get(name)
        if command is None:
            self.note(f"no command '/{name}'; /help lists them. A space before the / makes it a question")
            return True
        try:
            command.does(self, argument.strip())
        except PlumblineError as error:
            self.note(f"error: {error}")
        return True

    def note(self, text: str) -> None:
        """Tell the person something that no model has said."""
        print(plain(text) if self._notes.isatty() else text, file=self._notes, flush=True)

    def _print(self, text: str) -> None:
        print(plain(text) if self._shown.isatty() else text, end="", file=self._shown, flush=True)

    def _new(self, _: str) -> None:
        for talk in self.talks:
            talk.turns = []
        self.note("a new conversation" + (", with the same system message" if self.system else ""))

    def _models(self, _: str) -> None:
        talking = [talk.model for talk in self.talks]
        for model in self.endpoint.models():
            self.note(f"{'*' if model in talking else ' '} {model}")

    def _model(self, names: str) -> None:
        try:
            self.select(shlex.split(names) or [talk.model for talk in self.talks])
        except ValueError as error:
            self.note(f"{names}: {error}; quote a name that has spaces")
            return
        self.note(f"talking to {' and '.join(talk.model for talk in self.talks)}")

    def select(self, names: list[str]) -> None:
        """Go on with these models. One that is new here takes over what the first has heard.

        Raises:
            PlumblineError: the endpoint does not serve one of them.
        """
        known = self.endpoint.models()
        for name in names:
            if name not in known:
                raise PlumblineError(f"no model '{name}' is served here; there are: {', '.join(known) or 'none'}")
        before = {talk.model: talk.turns for talk in self.talks}
        self.talks = [Talk(name, list(before.get(name, self.talks[0].turns))) for name in names]

    def _system(self, text: str) -> None:
        self.system = text
        self.note("the system message holds from the next question on" if text else "no system message from here on")

    def _save(self, name: str) -> None:
        if not name:
            self.note("/save needs the name of a file")
            return
        system = [{"role": "system", "content": self.system}] if self.system else []
        rows = [{"model": talk.model, "messages": [*system, *talk.turns]} for talk in self.talks]
        try:
            path = Path(name).expanduser()
            with path.open("x", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except (OSError, RuntimeError) as error:  # the latter: `~NAME` of nobody
            self.note(f"error: {name} cannot be written: {getattr(error, 'strerror', error)}; give another name")
            return
        self.note(f"saved to {path}; `curate` reads it as a chat")

    def _help(self, _: str) -> None:
        for name, command in COMMANDS.items():
            self.note(f"/{name} {command.takes}".ljust(22) + command.text)
        self.note("/quit, Ctrl-D".ljust(22) + "end")
        self.note("Ctrl-C".ljust(22) + "end an answer that is coming")


@dataclass(frozen=True)
class Command:
    """A line that begins with `/`: what it takes, what it says of itself, and what it does."""

    takes: str
    text: str
    does: Callable[[Chat, str], None]


COMMANDS = {
    "new": Command("", "forget what was said", Chat._new),
    "models": Command("", "the models that are served; * talks here", Chat._models),
    "model": Command("NAME [NAME]", "go on with another model, or with several that are asked the same", Chat._model),
    "system": Command("[TEXT]", "set the system message; without TEXT remove it", Chat._system),
    "save": Command("FILE", "write the conversation as JSON lines", Chat._save),
    "help": Command("", "this", Chat._help),
}


def plain(text: str) -> str:
    """Text without control characters other than newline and tab."""
    return CONTROL.sub("�", text)


def converse(chat: Chat, lines: Iterator[str]) -> None:
    """Ask line by line until they end, or until `/quit`. Commands are for people: a file's lines are all questions."""
    while True:
        try:
            line = next(lines, None)
            if line is None:
                return
            if chat.interactive and line.startswith("/"):
                if not chat.obey(line):
                    return
            elif line.strip():
                chat.ask(line.strip())
        except KeyboardInterrupt:
            if not chat.interactive:
                raise
            chat.note("\nCtrl-D or /quit ends the conversation")


class Typed(Iterator[str]):
    """Lines that a person types, with the editing keys of a shell where Python has readline."""

    def __init__(self) -> None:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # `input` uses it once it is there

    def __next__(self) -> str:
        try:
            return input("> ")
        except EOFError:
            print()
            raise StopIteration from None
