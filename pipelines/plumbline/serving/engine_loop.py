"""What runs an engine: commands in, news out. Knows nothing of who asks, nor whether they are in another thread or another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from plumbline.errors import InvalidInput
from plumbline.rollout.engine import Engine, Mixing, Request, Scored, Scoring, Token
from plumbline.rollout.low_rank import LowRank

STEPS_A_PASS = 8  # of answers, where texts are scored too
TEXTS_AT_ONCE = 64  # of one reader


@dataclass(frozen=True)
class EngineLimits:
    """What an engine takes.

    Attributes:
        max_length: longest prompt and answer together, in tokens.
        max_scored: most tokens of a text to score.
        vocabulary: tokens that there are.
    """

    max_length: int
    max_scored: int
    vocabulary: int


@dataclass(frozen=True)
class Texts:
    """Texts to score together, and the number of their reader."""

    reader: int
    requests: tuple[Scoring, ...]


@dataclass(frozen=True)
class Leave:
    """The reader of texts, by number, or of an answer, by its request's id, has gone."""

    reader: int | str


Command = Request | Texts | Leave | LowRank | None
"""An answer or scores to work for, a reader that has gone, an adapter that no request to come will have, or the end."""


@dataclass(frozen=True)
class Drawn:
    """What a step has drawn."""

    tokens: list[Token]


@dataclass(frozen=True)
class Found:
    """What a pass has scored."""

    scored: list[Scored]


@dataclass(frozen=True)
class Refused:
    """What a reader wants cannot be done; nobody else is touched."""

    reader: int | str
    error: Exception


News = Drawn | Found | Refused


class Commands(Protocol):
    """Where commands wait; a `queue.SimpleQueue` is one."""

    def get(self) -> Command:
        """The next one; waits for it."""
        ...

    def empty(self) -> bool:
        """Whether `get` would wait."""
        ...


class _Waiting:
    """Texts that are not scored yet."""

    def __init__(self, texts: Texts) -> None:
        self.reader = texts.reader
        self.texts = list(texts.requests)
        self.left = False


class EngineLoop:
    """Runs the engine while it has work: a step for those that want answers, a pass for those that want scores, in turns.

    Args:
        engine: nobody else may call it from now on.
        commands: what to do.
        tell: is called with all that comes of it.
    """

    def __init__(self, engine: Engine, commands: Commands, tell: Callable[[News], None]) -> None:
        self._engine, self._commands, self._tell = engine, commands, tell
        self._unscored: list[_Waiting] = []
        self._scoring: list[_Waiting] = []
        self._passes: Iterator[list[Scored]] | None = None

    def run(self) -> None:
        """Until the command to end. What the engine raises comes out of here."""
        while self._obey():
            # A pass takes as long as many steps: answers would stand still beside long texts.
            for _ in range(STEPS_A_PASS if self._passes else 1):
                if self._engine.busy and self._commands.empty():
                    self._tell(Drawn(self._engine.step()))
            self._score()

    def _obey(self) -> bool:
        """Take commands, and wait for one while there is no work. False: it shall end."""
        while not (self._engine.busy or self._passes or self._unscored) or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            if isinstance(command, Request):
                try:
                    self._engine.submit(command)
                except (InvalidInput, ValueError) as error:  # this request's fault and nobody else's
                    self._tell(Refused(command.id, error))
            elif isinstance(command, Texts):
                self._unscored.append(_Waiting(command))
            elif isinstance(command, LowRank):
                assert isinstance(self._engine, Mixing)
                self._engine.forget_adapter(command)
            elif isinstance(command.reader, str):
                self._engine.cancel(command.reader)
            else:
                for waiting in self._unscored:
                    waiting.left = waiting.left or waiting.reader == command.reader
        return True

    def _score(self) -> None:
        """One pass. What has come meanwhile is scored together next, as texts may share a beginning: a few of each reader, so that none waits for all of
        another's."""
        if self._passes is not None and all(waiting.left for waiting in self._scoring):
            self._passes = None
        if self._passes is None:
            self._unscored = [waiting for waiting in self._unscored if not waiting.left and waiting.texts]
            self._scoring, requests = list(self._unscored), []
            for waiting in self._scoring:
                some, waiting.texts = waiting.texts[:TEXTS_AT_ONCE], waiting.texts[TEXTS_AT_ONCE:]
                try:
                    self._engine.score(some)  # checks them all before its first pass
                except InvalidInput as error:
                    waiting.texts = []
                    self._tell(Refused(waiting.reader, error))
                else:
                    requests += some
            if not requests:
                return
            self._passes = self._engine.score(requests)
        found = next(self._passes, None)
        if found is None:
            self._passes = None
        elif found:
            self._tell(Found(found))
