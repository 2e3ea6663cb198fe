"""`judge`: a model behind an endpoint rates answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import aiohttp

from plumbline.data.row import Chat, Reject
from plumbline.data.synthesis.endpoint import FAILED, NO_COMPLETION, Endpoint
from plumbline.data.synthesis.program import Sampling, ask, rating_of
from plumbline.errors import PlumblineError
from plumbline.evaluation.judges.rating import ACCURACY, BEST, rating_prompt, request_of

TRIES = 3  # of a verdict that cannot be read
RETRY_TEMPERATURE = 0.7  # at 0 the same verdict would come again
VERDICT_TOKENS = 1024  # reasons and rating; room for a judge that thinks aloud
UNREADABLE_IN_A_ROW = 64  # answers; then the judge judges nothing


class Judge:
    """A judge's ratings from 0 to 1. May be used by several threads.

    Args:
        endpoint: of the judge.
        rubric: completes the sentence "Rate …"; accuracy, helpfulness and completeness if None.
    """

    def __init__(self, endpoint: Endpoint, rubric: str | None = None) -> None:
        self._endpoint, self._rubric = endpoint, rubric or ACCURACY
        self._lock = threading.Lock()
        self._unreadable = 0

    def rewards(self, prompt: Chat, answers: Sequence[str]) -> list[float | None]:
        """The rating of each answer; None where no verdict could be read, or the endpoint refused this one.

        Raises:
            InvalidInput: every call would fail: wrong key, unknown model.
            PlumblineError: the endpoint fails again and again, or its verdicts are never readable.
        """
        return asyncio.run(self._rate(prompt, answers))

    async def _rate(self, prompt: Chat, answers: Sequence[str]) -> list[float | None]:
        request = request_of(prompt)
        async with self._endpoint.session() as session:
            return await asyncio.gather(*(self._verdict(session, rating_prompt(request, a, self._rubric)) for a in answers))

    async def _verdict(self, session: aiohttp.ClientSession, text: str) -> float | None:
        problem = ""
        for attempt in range(TRIES):
            sampling = Sampling(RETRY_TEMPERATURE if attempt else 0.0, VERDICT_TOKENS, seed=attempt)
            reply = await self._endpoint.complete(session, ask(text, sampling, judge=True))
            if reply.problem in (FAILED, NO_COMPLETION):
                raise PlumblineError(f"{self._endpoint.where}: the judge failed: {' '.join(reply.text.split())[:300]}")
            try:
                rating = rating_of(reply)
            except Reject as reject:
                problem = f"{reject.reason}: {reject.detail}"
            else:
                self._count(readable=True)
                return rating / BEST
        self._count(readable=False, problem=problem)
        return None

    def _count(self, readable: bool, problem: str = "") -> None:
        """Give up on a judge that never says anything: rewards that are all alike teach nothing, and nobody would notice."""
        with self._lock:
            self._unreadable = 0 if readable else self._unreadable + 1
            unreadable = self._unreadable
        if unreadable >= UNREADABLE_IN_A_ROW:
            raise PlumblineError(
                f"{self._endpoint.where}: {unreadable} answers in a row have no verdict, the last: {problem}; "
                "a judge must close with a line `Rating: N`: try another model"
            )
