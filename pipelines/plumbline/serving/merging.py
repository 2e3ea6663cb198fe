"""Several answers of one request at the same time: none goes on when the request has failed or its reader has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
AT_ONCE = 32
"""Answers of one request that an engine works on at the same time: the rest of a large one must not stand before everybody else."""


async def gathered(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, in order, `AT_ONCE` at the same time. The first failure is raised, and what is left is cancelled."""
    places = asyncio.Semaphore(AT_ONCE)

    async def placed(one: Coroutine[Any, Any, T]) -> T:
        try:
            async with places:
                return await one
        finally:
            one.close()  # where it never began

    tasks = [asyncio.create_task(placed(one)) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _cancelled(tasks)


async def merged(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """What any source gives, as it comes, with the source's number; `AT_ONCE` at the same time. The first failure is raised; in the end all are
    closed."""
    waiting = iter(range(AT_ONCE, len(sources)))
    coming = {asyncio.ensure_future(anext(source)): number for number, source in enumerate(sources[:AT_ONCE])}
    try:
        while coming:
            for done in (await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED))[0]:
                number = coming.pop(done)
                try:
                    one = done.result()
                except StopAsyncIteration:
                    following = next(waiting, None)
                    if following is not None:
                        coming[asyncio.ensure_future(anext(sources[following]))] = following
                    continue
                yield number, one
                coming[asyncio.ensure_future(anext(sources[number]))] = number
    finally:
        await _cancelled(list(coming))
        for source in sources:
            await source.aclose()


async def _cancelled(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
