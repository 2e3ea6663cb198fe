"""A teacher for tests: a real HTTP server that answers, counts and fails as it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web

Body = dict[str, Any]
Fault = Callable[[web.Request, Body, int], web.StreamResponse | None]
"""(request, its body, how often it came) → what to send instead of the answer, or None."""


def prompt_of(body: Body) -> str:
    """The text of the last turn."""
    return str(body["messages"][-1]["content"])


def completion(text: Any, finish_reason: Any = "stop", usage: Any = None) -> Body:
    """A body in OpenAI's form."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return {"choices": [choice]} | ({"usage": usage} if usage is not None else {})


def words(text: str) -> int:
    """This teacher's tokens."""
    return len(text.split())


class Teacher:
    """An OpenAI-compatible endpoint on a thread of its own.

    Args:
        answer: body → text, or a whole body of an answer.
        fault: see `Fault`.
        delay: seconds before an answer, by how many requests came so far.

    Attributes:
        held: whether an answer waits still, by how many requests had come.
    """

    def __init__(
        self,
        answer: Callable[[Body], str | Body],
        fault: Fault = lambda request, body, times: None,
        delay: Callable[[int], float] = lambda count: 0.0,
    ) -> None:
        self.answer, self.fault, self.delay = answer, fault, delay
        self.held: Callable[[int], bool] = lambda count: False
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        key = json.dumps(body, sort_keys=True)
        self.asked[key] += 1
        self.bodies.append(body)
        count = len(self.bodies)
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delay(count))
            while self.held(count):
                await asyncio.sleep(0.01)
            fault = self.fault(request, body, self.asked[key])
            if fault is not None:
                return fault
            text = self.answer(body)
            if isinstance(text, str):
                usage = {
                    "prompt_tokens": sum(words(m["content"]) for m in body["messages"]),
                    "completion_tokens": words(text),
                }
                text = completion(text, usage=usage)
            self.answered[key] += 1
            return web.json_response(text)
        finally:
            self.in_flight -= 1


def cut(request: web.Request) -> None:
    """Break the connection."""
    assert request.transport is not None
    request.transport.abort()


def half_reply(request: web.Request) -> web.StreamResponse:
    """Half of what Content-Length promises, then the end."""
    text = json.dumps(completion("half of it"))

    class Half(web.StreamResponse):
        async def prepare(self, request: web.BaseRequest) -> Any:
            self.content_length = 2 * len(text)
            writer = await super().prepare(request)
            await self.write(text.encode())
            cut(request)  # type: ignore[arg-type]
            return writer

    return Half()
