"""Work that nobody waits for any more is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from plumbline.serving.metrics import CLIENT_GONE
from plumbline.serving.openai_answers import OpenAIError

T = TypeVar("T")


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of work for a request whose body is read; cancelled when its client leaves, which servers only tell who asks.

    Raises:
        OpenAIError: 499: the client has left. Nobody reads it.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelled_before = task.cancelling()
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() <= cancelled_before:  # not cancelled by somebody else too
            raise OpenAIError(CLIENT_GONE, "The client has closed the connection.") from None
        raise
    finally:
        watcher.cancel()
