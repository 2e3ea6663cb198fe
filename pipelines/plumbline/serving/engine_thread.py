"""An engine in a thread of its own, read from asyncio: one wake-up of the event loop per engine step."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.rollout.engine import Engine, Mixing, Request, Scored, Scoring, Token
from plumbline.rollout.low_rank import LowRank

STEPS_A_PASS = 8  # of answers, where texts are scored too
TEXTS_AT_ONCE = 64  # of one reader
COALESCE_SECONDS = 0.02  # after a stream's first token, so that fast models do not send one event per token


class _Listener:
    """Where a request's tokens wait for its reader."""

    def __init__(self, prompt: int) -> None:
        self.held = prompt  # tokens, and those drawn since
        self.tokens: list[Token] = []
        self.refusal: Exception | None = None
        self.some = asyncio.Event()
        self.done = asyncio.Event()


class _Batch:
    """Texts to score together, and where the result waits for its reader."""

    def __init__(self, requests: Sequence[Scoring]) -> None:
        self.requests = {request.id: request for request in requests}
        self.waiting = list(requests)  # belongs to the thread
        self.found: dict[str, Scored] = {}
        self.refusal: Exception | None = None
        self.done = asyncio.Event()
        self.left = False


class EngineThread:
    """Runs the engine while it has work: a step for those that want answers, a pass for those that want scores, in turns.

    All methods but the thread's own belong to one event loop.

    Args:
        engine: nobody else may call it from now on.
        name: for the thread and for messages.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self.failure: BaseException | None = None
        self._closed = False
        self._engine = engine
        self._name = name
        self._commands: queue.SimpleQueue[Request | _Batch | LowRank | str | None] = queue.SimpleQueue()
        self._listeners: dict[str, _Listener] = {}
        self._batches: dict[str, _Batch] = {}  # by request
        self._unscored: list[_Batch] = []  # this and the next two belong to the thread
        self._scoring: list[_Batch] = []
        self._passes: Iterator[list[Scored]] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Requests for an answer, and texts to score, that are queued or worked on."""
        return len(self._listeners) + len(self._batches)

    @property
    def tokens_in_flight(self) -> int:
        """Tokens of all those: their prompts, and what was drawn of their answers."""
        scored = sum(len(batch.requests[text].tokens) for text, batch in list(self._batches.items()))
        return scored + sum(listener.held for listener in list(self._listeners.values()))

    async def tokens(self, request: Request, *, stream: bool) -> AsyncGenerator[list[Token], None]:
        """The request's tokens as they come, or, without `stream`, all at once.

        Leaving the iterator early (`aclosing`, cancellation) cancels the request in the engine.

        Raises:
            InvalidInput: the engine refuses the request.
            PlumblineError: the engine has failed.
        """
        self.check()
        self._loop = asyncio.get_running_loop()
        listener = self._listeners[request.id] = _Listener(len(request.prompt))
        self._commands.put(request)
        finished = False
        try:
            while not finished:
                await (listener.some if stream else listener.done).wait()
                self.check()
                if listener.refusal is not None:
                    finished = True
                    raise listener.refusal
                ready, listener.tokens = listener.tokens, []
                listener.some.clear()
                finished = ready[-1].finish_reason is not None
                yield ready
                if not finished:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(listener.done.wait(), COALESCE_SECONDS)
        finally:
            del self._listeners[request.id]
            if not finished:
                self._commands.put(request.id)

    async def scores(self, requests: Sequence[Scoring]) -> list[Scored]:
        """What the model thinks of each text, in order; a reader that leaves is forgotten.

        Raises:
            PlumblineError: the engine has failed.
        """
        self.check()
        self._loop = asyncio.get_running_loop()
        batch = _Batch(requests)
        self._batches |= dict.fromkeys(batch.requests, batch)
        self._commands.put(batch)
        try:
            if requests:
                await batch.done.wait()
            self.check()
            if batch.refusal is not None:
                raise batch.refusal
            return [batch.found[request.id] for request in requests]
        finally:
            batch.left = True
            for request in requests:
                del self._batches[request.id]

    def check(self) -> None:
        """Raises PlumblineError when the engine has failed, or was closed."""
        if self._closed:
            raise PlumblineError(f"the engine of model '{self._name}' was let go; ask again")
        if self.failure is not None:
            raise PlumblineError(f"the engine of model '{self._name}' failed: {self.failure}") from self.failure

    @property
    def mixing(self) -> Mixing | None:
        """The engine, for `prepare_adapter` alone, if it answers requests with adapters."""
        return self._engine if isinstance(self._engine, Mixing) else None

    def forget(self, adapter: LowRank) -> None:
        """See `Mixing.forget_adapter`."""
        self._commands.put(adapter)

    def close(self) -> None:
        """End the thread after its current step."""
        self._closed = True
        self._commands.put(None)

    def _run(self) -> None:
        try:
            while self._obey():
                # A pass takes as long as many steps: answers would stand still beside long texts.
                for _ in range(STEPS_A_PASS if self._passes else 1):
                    if self._engine.busy and self._commands.empty():
                        self._tell(self._engine.step())
                self._score()
        except BaseException as error:
            self.failure = error
            self._tell([])
            raise

    def _obey(self) -> bool:
        """Take commands, and wait for one while there is no work. False: the thread shall end."""
        while not (self._engine.busy or self._passes or self._unscored) or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            if isinstance(command, Request):
                try:
                    self._engine.submit(command)
                except (InvalidInput, ValueError) as error:  # this request's fault and nobody else's
                    self._call(self._refuse, self._listeners.get(command.id), error)
            elif isinstance(command, _Batch):
                self._unscored.append(command)
            elif isinstance(command, LowRank):
                assert isinstance(self._engine, Mixing)
                self._engine.forget_adapter(command)
            else:
                self._engine.cancel(command)
        return True

    def _score(self) -> None:
        """One pass. What has come meanwhile is scored together next, as texts may share a beginning: a few of each reader, so that none waits for all of
        another's."""
        if self._passes is not None and all(batch.left for batch in self._scoring):
            self._passes = None
        if self._passes is None:
            self._unscored = [batch for batch in self._unscored if not batch.left and batch.waiting]
            self._scoring, requests = list(self._unscored), []
            for batch in self._scoring:
                some, batch.waiting = batch.waiting[:TEXTS_AT_ONCE], batch.waiting[TEXTS_AT_ONCE:]
                try:
                    self._engine.score(some)  # checks them all before its first pass
                except InvalidInput as error:
                    batch.waiting = []
                    self._call(self._refuse, batch, error)
                else:
                    requests += some
            if not requests:
                return
            self._passes = self._engine.score(requests)
        found = next(self._passes, None)
        if found is None:
            self._passes = None
        elif found:
            self._call(self._deliver_scores, found)

    def _refuse(self, reader: _Listener | _Batch | None, error: Exception) -> None:
        if reader is not None:
            reader.refusal = error
            reader.done.set()
            if isinstance(reader, _Listener):
                reader.some.set()

    def _call(self, what: Callable[..., None], *args: Any) -> None:
        """In the event loop."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, *args)

    def _deliver_scores(self, found: list[Scored]) -> None:
        for scored in found:
            batch = self._batches.get(scored.request_id)
            if batch is not None:
                batch.found[scored.request_id] = scored
                if len(batch.found) == len(batch.requests):
                    batch.done.set()

    def _tell(self, drawn: list[Token]) -> None:
        self._call(self._deliver, drawn)

    def _deliver(self, drawn: list[Token]) -> None:
        for token in drawn:
            listener = self._listeners.get(token.request_id)
            if listener is None:  # its reader has left; the engine is told
                continue
            listener.tokens.append(token)
            listener.held += 1
            listener.some.set()
            if token.finish_reason is not None:
                listener.done.set()
        if self.failure is not None:
            for listener in self._listeners.values():
                listener.some.set()
                listener.done.set()
            for batch in self._batches.values():
                batch.done.set()


class AdapterEngine:
    """An engine thread as one of its adapters sees it: stands where a model has an engine of its own.

    Args:
        shared: whose engine it is.
        adapter: that its requests have; None: the base.
    """

    def __init__(self, shared: EngineThread, adapter: LowRank | None) -> None:
        self._shared, self._adapter = shared, adapter
        self._held: dict[str, int] = {}  # by request: tokens

    @property
    def failure(self) -> BaseException | None:
        return self._shared.failure

    @property
    def running(self) -> int:
        """See `EngineThread`; of this adapter alone, as the next is."""
        return len(self._held)

    @property
    def tokens_in_flight(self) -> int:
        return sum(list(self._held.values()))

    async def tokens(self, request: Request, *, stream: bool) -> AsyncGenerator[list[Token], None]:
        """See `EngineThread`."""
        self._held[request.id] = len(request.prompt)
        try:
            async with aclosing(self._shared.tokens(replace(request, adapter=self._adapter), stream=stream)) as steps:
                async for drawn in steps:
                    self._held[request.id] += len(drawn)
                    yield drawn
        finally:
            del self._held[request.id]

    async def scores(self, requests: Sequence[Scoring]) -> list[Scored]:
        """See `EngineThread`."""
        self._held |= {request.id: len(request.tokens) for request in requests}
        try:
            return await self._shared.scores([replace(request, adapter=self._adapter) for request in requests])
        finally:
            for request in requests:
                del self._held[request.id]

    def check(self) -> None:
        """See `EngineThread`."""
        self._shared.check()

    def close(self) -> None:
        """Let the engine forget the adapter, and nothing else."""
        if self._adapter is not None:
            self._shared.forget(self._adapter)
