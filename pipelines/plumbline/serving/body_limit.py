"""Bodies of requests are bounded, whatever their headers say."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 8 * 2**20


class BodyLimit:
    """ASGI middleware: a longer body is answered with 413 as soon as that is known, and not kept."""

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY_BYTES) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        announced = int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else 0
        read = 0

        async def bounded_receive() -> Message:
            nonlocal read
            if announced > self._limit:
                raise self._too_long()
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                raise self._too_long()
            return message

        await self._app(scope, bounded_receive, send)

    def _too_long(self) -> HTTPException:
        return HTTPException(413, f"The body is longer than {self._limit} bytes; send less at a time.")
