"""An engine in a thread of this process, and what an adapter sees of it."""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from plumbline.rollout.engine import Engine, Mixing, Request, Scored, Scoring, Token
from plumbline.rollout.low_rank import LowRank
from plumbline.serving.engine_loop import Command, EngineLoop
from plumbline.serving.engine_readers import EngineReaders


class EngineThread(EngineReaders):
    """See `EngineReaders`. For adapters, which are made ready beside the engine, and for tests; it shares Python's lock with the event loop.

    Args:
        engine: nobody else may call it from now on.
        name: for the thread and for messages.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(name)
        self._engine = engine
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    @property
    def mixing(self) -> Mixing | None:
        """The engine, for `prepare_adapter` alone, if it answers requests with adapters."""
        return self._engine if isinstance(self._engine, Mixing) else None

    def forget(self, adapter: LowRank) -> None:
        """See `Mixing.forget_adapter`."""
        self._send(adapter)

    def _send(self, command: Command) -> None:
        self._commands.put(command)

    def _run(self) -> None:
        try:
            EngineLoop(self._engine, self._commands, self._tell).run()
        except BaseException as error:
            self._fail(error)
            raise


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
        """See `EngineReaders`; of this adapter alone, as the next two are."""
        return len(self._held)

    @property
    def waiting(self) -> int:
        return sum(map(self._shared.waits, list(self._held)))

    @property
    def tokens_in_flight(self) -> int:
        return sum(list(self._held.values()))

    async def tokens(self, request: Request, *, stream: bool) -> AsyncGenerator[list[Token], None]:
        """See `EngineReaders`."""
        self._held[request.id] = len(request.prompt)
        try:
            async with aclosing(self._shared.tokens(replace(request, adapter=self._adapter), stream=stream)) as steps:
                async for drawn in steps:
                    self._held[request.id] += len(drawn)
                    yield drawn
        finally:
            del self._held[request.id]

    async def scores(self, requests: Sequence[Scoring]) -> list[Scored]:
        """See `EngineReaders`."""
        self._held |= {request.id: len(request.tokens) for request in requests}
        try:
            return await self._shared.scores([replace(request, adapter=self._adapter) for request in requests])
        finally:
            for request in requests:
                del self._held[request.id]

    def check(self) -> None:
        """See `EngineReaders`."""
        self._shared.check()

    def close(self) -> None:
        """Let the engine forget the adapter, and nothing else."""
        if self._adapter is not None:
            self._shared.forget(self._adapter)
