"""The ASGI middleware of admission: who asks, whether there is room, how long it may take, what is kept of it."""

from __future__ import annotations

import asyncio
import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plumbline.serving.admission.audit import MOST_BYTES, asked
from plumbline.serving.admission.gate import Admission
from plumbline.serving.admission.limits import Caller
from plumbline.serving.admission.refusal import TooManyRequests
from plumbline.serving.openai_answers import OpenAIError, server_sent_event

OPEN = ("/", "/healthz", "/readyz", "/openapi.json", "/docs")
"""What is shown to anybody. All else needs a key, so that nothing new is open by oversight."""
BYTES_PER_TOKEN = 4  # of a request's body; corrected when the answer is there
CLIENT_GONE, TOO_LATE = 499, 504  # the first as nginx calls it
LAST_WORDS_SECONDS = 5.0  # for the end of a stream that took too long, to a client that may not be reading
LONGEST_PATH = 200  # characters that are kept
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass
class _Call:
    """What is known of one request."""

    id: str
    began: float
    key: str = ""
    status: int = 0
    started: bool = False
    stream: bool = False
    whole: bool = False
    read: bool = False
    pieces: int = 0
    body: bytearray = field(default_factory=bytearray)
    headers: dict[str, str] = field(default_factory=dict)


class AdmissionMiddleware:
    """Lets requests through to the application, or answers them itself.

    It puts the caller's key into `scope["state"]["key"]` (`.name`, `.digest`), if there are keys, and the request's id into
    `scope["state"]["request_id"]`.
    """

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app, self._admission = app, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _path(scope) in OPEN:
            await self._app(scope, receive, send)
            return
        admission = self._admission
        given = Headers(scope=scope)
        state: dict[str, Any] = scope.setdefault("state", {})
        call = _Call(_request_id(given.get("x-request-id", "")), admission.clock())
        state["request_id"] = call.id
        keeps = admission.audit is not None and admission.audit.prompts

        async def counted_receive() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                call.read = call.read or not message.get("more_body", False)
                if keeps and len(call.body) <= MOST_BYTES:
                    call.body += message.get("body", b"")
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status, call.started = message["status"], True
                headers = MutableHeaders(scope=message)
                call.stream = headers.get("content-type", "").startswith("text/event-stream")
                headers.update(call.headers)
            elif message["type"] == "http.response.body":
                call.pieces += 1
                call.whole = not message.get("more_body", False)
            await send(message)

        if admission.echoes:
            call.headers["x-request-id"] = call.id
        try:
            key = admission.identify(given.get("authorization", ""))
            if key is not None:
                state["key"], call.key = key, key.name
            if scope["method"] == "POST":
                caller = admission.callers.find(key)
                await self._work(caller, call, scope, counted_receive, counted_send)
            else:
                await self._app(scope, counted_receive, counted_send)
        except OpenAIError as refusal:
            await _answer(refusal, call, scope, receive, counted_send)
        except Exception:
            if not call.started:
                words = f"The server failed on this request; its id is {call.id}."
                await _answer(OpenAIError(500, words), call, scope, receive, counted_send)
            raise
        finally:
            self._keep(call, scope, state.get("observation"))

    async def _work(self, caller: Caller, call: _Call, scope: Scope, receive: Receive, send: Send) -> None:
        """A request that takes a model's time."""
        admission = self._admission
        estimate = _estimate(Headers(scope=scope))
        admission.backlog.check()  # before the limits: who is sent away has used nothing of them
        try:
            reserved = caller.begin(estimate, admission.clock())
        finally:
            call.headers |= caller.headers(admission.clock())
        admission.backlog.enter()
        try:
            await self._in_time(call, scope, receive, send)
        finally:
            admission.backlog.leave()
            caller.end(reserved, _used(call, estimate, scope["state"].get("observation")), admission.clock())

    async def _in_time(self, call: _Call, scope: Scope, receive: Receive, send: Send) -> None:
        timer = asyncio.timeout(self._admission.timeout)
        try:
            async with timer:
                await self._app(scope, receive, send)
        except TimeoutError:
            if not timer.expired():
                raise
            await self._too_late(call, scope, receive, send)

    async def _too_late(self, call: _Call, scope: Scope, receive: Receive, send: Send) -> None:
        seconds = f"{self._admission.timeout:g} s"
        if call.read:
            error = OpenAIError(TOO_LATE, f"The answer took more than {seconds}; ask for less at a time.", code="timeout")
        else:
            error = OpenAIError(408, f"The request did not arrive within {seconds}.", code="timeout")
        if call.whole:
            return
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            if not call.started:
                await _answer(error, call, scope, receive, send)
            elif call.stream:
                event = server_sent_event(error.body()).encode()
                await send({"type": "http.response.body", "body": event, "more_body": False})
                call.status = error.status
            else:
                raise error  # in the middle of an answer: only the end of the connection says that it is not whole
        observation = scope["state"].get("observation")
        if observation is not None:
            observation.status = error.status

    def _keep(self, call: _Call, scope: Scope, observation: Any) -> None:
        audit = self._admission.audit
        if audit is None:
            return
        status = call.status if call.whole else CLIENT_GONE
        if call.stream and observation is not None and observation.status >= 400:
            status = observation.status  # a stream that broke
        record = {
            "id": call.id,
            "key": call.key,
            "method": scope["method"],
            "path": _path(scope)[:LONGEST_PATH],
            "model": observation.model if observation else "",
            "status": status,
            "promptTokens": observation.prompt_tokens if observation else 0,
            "completionTokens": observation.completion_tokens if observation else 0,
            "seconds": round(self._admission.clock() - call.began, 4),
        }
        if audit.prompts:
            record |= {"asked": asked(bytes(call.body)), "answered": observation.text if observation else ""}
        audit.write(record)


def _path(scope: Scope) -> str:
    """Path below where the application is served, as the router sees it."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    return path[len(root) :] or "/" if root and f"{path}/".startswith(f"{root}/") else path


def _request_id(given: str) -> str:
    """The client's own id, if it can stand in a log and in a header; else a new one."""
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _estimate(headers: Headers) -> int:
    """Tokens that a request will take at least, before it is read."""
    length = headers.get("content-length", "")
    return int(length) // BYTES_PER_TOKEN if length.isdecimal() and len(length) < 16 else 0


def _used(call: _Call, estimate: int, observation: Any) -> int:
    """Tokens that a request took. Nothing if it failed; where nobody counted, as for a client that left, what can be seen."""
    if observation is not None and observation.prompt_tokens + observation.completion_tokens:
        return int(observation.prompt_tokens + observation.completion_tokens)
    failed = call.status >= 400 and call.status not in (CLIENT_GONE, TOO_LATE)
    return 0 if failed else estimate + (call.pieces if call.stream else 0)


async def _answer(error: OpenAIError, call: _Call, scope: Scope, receive: Receive, send: Send) -> None:
    if call.started:
        raise error
    headers = {}
    if isinstance(error, TooManyRequests):
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    await JSONResponse(error.body(), error.status, headers)(scope, receive, send)
