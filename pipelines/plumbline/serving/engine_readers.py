"""Requests and the readers that wait for what becomes of them, in asyncio. The engine is elsewhere: `EngineThread`, `EngineProcess`."""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Any

from plumbline.errors import PlumblineError
from plumbline.rollout.engine import Request, Scored, Scoring, Token
from plumbline.serving.engine_loop import Command, Drawn, Found, Leave, News, Texts

COALESCE_SECONDS = 0.02  # after a stream's first token, so that fast models do not send one event per token


class _Listener:
    """Where a request's tokens wait for its reader."""

    def __init__(self, prompt: int) -> None:
        self.prompt, self.drawn = prompt, 0  # tokens
        self.tokens: list[Token] = []
        self.refusal: Exception | None = None
        self.some = asyncio.Event()
        self.done = asyncio.Event()

    def wake(self) -> None:
        self.some.set()
        self.done.set()


class _Batch:
    """Where the scores of texts wait for their reader."""

    def __init__(self, requests: Sequence[Scoring]) -> None:
        self.requests = {request.id: request for request in requests}
        self.found: dict[str, Scored] = {}
        self.refusal: Exception | None = None
        self.done = asyncio.Event()

    def wake(self) -> None:
        self.done.set()


class EngineReaders(ABC):
    """The near side of an engine. All methods belong to one event loop, but those that say otherwise.

    Args:
        name: of the model, for messages.
    """

    def __init__(self, name: str) -> None:
        self.failure: BaseException | None = None
        self._name = name
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: dict[str, _Listener] = {}
        self._batches: dict[str, _Batch] = {}  # by request
        self._scored_for: dict[int, _Batch] = {}  # by reader
        self._numbers = itertools.count()

    @abstractmethod
    def _send(self, command: Command) -> None:
        """Hand a command to the far side, without waiting."""

    @property
    def running(self) -> int:
        """Requests for an answer, and texts to score, that are queued or worked on."""
        texts = sum(text not in batch.found for text, batch in list(self._batches.items()))
        return texts + len(self._listeners)

    @property
    def waiting(self) -> int:
        """Those of them that the engine has not begun with."""
        return sum(map(self.waits, [*self._listeners, *self._batches]))

    def waits(self, request_id: str) -> bool:
        """Whether nothing of it is drawn or scored yet."""
        listener, batch = self._listeners.get(request_id), self._batches.get(request_id)
        return not listener.drawn if listener else batch is not None and request_id not in batch.found

    @property
    def tokens_in_flight(self) -> int:
        """Tokens of all those: their prompts, and what was drawn of their answers."""
        scored = sum(len(batch.requests[text].tokens) for text, batch in list(self._batches.items()))
        return scored + sum(listener.prompt + listener.drawn for listener in list(self._listeners.values()))

    async def tokens(self, request: Request, *, stream: bool) -> AsyncGenerator[list[Token], None]:
        """The request's tokens as they come, or, without `stream`, all at once.

        Leaving the iterator early (`aclosing`, cancellation) cancels the request in the engine.

        Raises:
            InvalidInput: the engine refuses the request.
            PlumblineError: the engine has failed.
        """
        self._loop = asyncio.get_running_loop()  # before the check: whoever fails from now on wakes us
        self.check()
        listener = self._listeners[request.id] = _Listener(len(request.prompt))
        self._send(request)
        finished = False
        try:
            while not finished:
                await (listener.some if stream else listener.done).wait()
                if listener.refusal is not None:
                    finished = True
                    raise listener.refusal
                ready, listener.tokens = listener.tokens, []
                listener.some.clear()
                finished = bool(ready) and ready[-1].finish_reason is not None
                if not finished:
                    self.check()
                yield ready
                if not finished:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(listener.done.wait(), COALESCE_SECONDS)
        finally:
            del self._listeners[request.id]
            if not finished:
                self._send(Leave(request.id))

    async def scores(self, requests: Sequence[Scoring]) -> list[Scored]:
        """What the model thinks of each text, in order; a reader that leaves is forgotten.

        Raises:
            InvalidInput: the engine refuses a text.
            PlumblineError: the engine has failed.
        """
        self._loop = asyncio.get_running_loop()
        self.check()
        batch, reader = _Batch(requests), next(self._numbers)
        self._batches |= dict.fromkeys(batch.requests, batch)
        self._scored_for[reader] = batch
        self._send(Texts(reader, tuple(requests)))
        try:
            if requests:
                await batch.done.wait()
            self.check()
            if batch.refusal is not None:
                raise batch.refusal
            return [batch.found[request.id] for request in requests]
        finally:
            if len(batch.found) < len(batch.requests):
                self._send(Leave(reader))
            del self._scored_for[reader]
            for request in requests:
                del self._batches[request.id]

    def check(self) -> None:
        """Raises PlumblineError when the engine has failed, or was closed."""
        if self._closed:
            raise PlumblineError(f"the engine of model '{self._name}' was let go; ask again")
        if self.failure is not None:
            raise PlumblineError(f"the engine of model '{self._name}' failed: {self.failure}") from self.failure

    def close(self) -> None:
        """End the engine after its current step; any thread may call this."""
        self._closed = True
        self._send(None)
        self._in_loop(self._wake)

    # From the far side, in whichever thread that is.

    def _tell(self, news: News) -> None:
        self._in_loop(self._receive, news)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self._in_loop(self._wake)

    def _in_loop(self, what: Callable[..., None], *args: Any) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, *args)

    # In the event loop.

    def _receive(self, news: News) -> None:
        if isinstance(news, Drawn):
            self._deliver(news.tokens)
        elif isinstance(news, Found):
            self._deliver_scores(news.scored)
        else:
            asked = news.reader
            reader = self._listeners.get(asked) if isinstance(asked, str) else self._scored_for.get(asked)
            if reader is not None:
                reader.refusal = news.error
                reader.wake()

    def _deliver(self, drawn: list[Token]) -> None:
        for token in drawn:
            listener = self._listeners.get(token.request_id)
            if listener is None:  # its reader has left; the engine is told
                continue
            listener.tokens.append(token)
            listener.drawn += 1
            listener.some.set()
            if token.finish_reason is not None:
                listener.done.set()

    def _deliver_scores(self, found: list[Scored]) -> None:
        for scored in found:
            batch = self._batches.get(scored.request_id)
            if batch is not None:
                batch.found[scored.request_id] = scored
                if len(batch.found) == len(batch.requests):
                    batch.done.set()

    def _wake(self) -> None:
        """Everybody learns that it is over."""
        for reader in (*self._listeners.values(), *self._scored_for.values()):
            reader.wake()
