"""Rounds of calls: from the journal where they were paid before, else from an endpoint, within the budget."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from types import TracebackType
from typing import Self

import aiohttp

from plumbline.data.synthesis import tokens
from plumbline.data.synthesis.budget import Budget
from plumbline.data.synthesis.endpoint import DOES_NOT_FIT, OVERLONG, REFUSED, Endpoint
from plumbline.data.synthesis.program import SPENT, Request
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.evaluation.journal import Journal, Reply

FAILURES_IN_A_ROW = 10  # failed calls without a good one between them, after which the endpoint counts as gone
GRACE = 30.0  # seconds that calls in flight get to end when another one stops the stage: they may be paid already


class Calls:
    """Asks a teacher, and a judge where there is one. A context manager.

    Args:
        endpoint: gives the endpoint for `request.judge`; called at the first request that has to be sent, so that nothing is deployed
            where all answers are in the journal.
        identities: what tells the teacher's, and the judge's, content from another's.
        journal: of replies that were paid.
        budget: in tokens.
        concurrency: calls in flight.
        on_reply: called after each.
    """

    def __init__(
        self,
        endpoint: Callable[[bool], Endpoint],
        identities: tuple[str, str],
        journal: Journal,
        budget: Budget,
        concurrency: int,
        on_reply: Callable[[], None] = lambda: None,
    ) -> None:
        self._endpoint, self._identities = endpoint, identities
        self._journal, self._concurrency, self._on_reply = journal, concurrency, on_reply
        self._runner = asyncio.Runner()
        self._answered: dict[str, Reply] = {}
        self._failures_in_a_row = 0
        self._answers = len(journal.replies)
        self.budget = budget
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._runner.__exit__(kind, error, trace)

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order; equal requests are one call. What the budget has no room for has the problem `SPENT`.

        Raises:
            InvalidInput: an endpoint refuses everything.
            PlumblineError: an endpoint does not answer any more. Every answer that came is in the journal.
        """
        keys = [self._key(request) for request in requests]
        asked = dict(zip(keys, requests, strict=True))
        while waiting := [(key, request) for key, request in asked.items() if key not in self._answered]:
            admitted = self.budget.admit(worst(request) for _, request in waiting)
            if not admitted:
                break
            self._wave(waiting[:admitted])
        return [self._answered.get(key) or self._unasked(request) for key, request in zip(keys, requests, strict=True)]

    def _unasked(self, request: Request) -> Reply:
        return Reply(f"{self.budget.left:,} tokens are left, the call could take {worst(request):,}", "", problem=SPENT)

    def _key(self, request: Request) -> str:
        facts = [self._identities[request.judge], request.messages, asdict(request.sampling)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def _wave(self, wave: Sequence[tuple[str, Request]]) -> None:
        missing = []
        for key, request in wave:
            if key in self._journal.replies:
                self._count(key, request, self._journal.replies[key], bound=0)
            else:
                missing.append((key, request))
        if missing:
            endpoints = {request.judge: self._endpoint(request.judge) for _, request in missing}
            self._runner.run(self._send(missing, endpoints))

    async def _send(self, missing: Sequence[tuple[str, Request]], endpoints: dict[bool, Endpoint]) -> None:
        queue: Iterator[tuple[str, Request]] = iter(missing)
        async with AsyncExitStack() as stack:
            sessions = {judge: await stack.enter_async_context(endpoint.session()) for judge, endpoint in endpoints.items()}

            async def work() -> None:
                for key, request in queue:
                    await self._call(sessions[request.judge], endpoints[request.judge], key, request)

            await _all([asyncio.create_task(work()) for _ in range(min(self._concurrency, len(missing)))], stop=queue)

    async def _call(self, session: aiohttp.ClientSession, endpoint: Endpoint, key: str, request: Request) -> None:
        bound, paid = worst(request), 0
        if not self.budget.begin(bound):
            return  # another wave may have room

        def wasted(tokens: int) -> bool:
            nonlocal paid
            paid += tokens
            return self.budget.waste(tokens)

        reply = await endpoint.complete(session, request, wasted)
        if reply.problem in (None, OVERLONG):
            await self._journal.keep(key, reply)
        self._count(key, request, reply, bound, paid)
        self._watch(endpoint, reply)

    def _watch(self, endpoint: Endpoint, reply: Reply) -> None:
        """Give up on an endpoint that fails again and again. A refusal is about one prompt, unless nothing was ever answered."""
        if reply.problem is None:
            self._answers, self._failures_in_a_row = self._answers + 1, 0
        elif reply.problem != DOES_NOT_FIT and not (reply.problem == REFUSED and self._answers):
            self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            kind = InvalidInput if reply.problem == REFUSED else PlumblineError
            raise kind(
                f"{endpoint.where}: {FAILURES_IN_A_ROW} calls in a row failed, the last: {reply.problem}: "
                f"{' '.join(reply.text.split())[:300]}; every answer so far is kept: run again to go on from there"
            )

    def _count(self, key: str, request: Request, reply: Reply, bound: int, paid: int = 0) -> None:
        self._answered[key] = reply
        self.budget.end(bound, reply.prompt_tokens + reply.completion_tokens - paid)
        who = "judge" if request.judge else "teacher"
        self.counts[f"{who} calls"] += 1
        self.counts[f"{who} prompt tokens"] += reply.prompt_tokens
        self.counts[f"{who} answer tokens"] += reply.completion_tokens
        self._on_reply()


def worst(request: Request) -> int:
    """The most tokens that a call can take, if the server keeps to `max_tokens`."""
    return tokens.prompt_bound(request.messages) + request.sampling.max_tokens


async def _all(workers: Sequence[asyncio.Task[None]], stop: Iterator[object]) -> None:
    """Wait for all workers; when one fails, the others finish the call they are in and begin no other."""
    try:
        _, running = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        if running:
            for _ in stop:
                pass
            await asyncio.wait(running, timeout=GRACE)
    finally:
        for worker in workers:
            worker.cancel()
        results = await asyncio.gather(*workers, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
