"""What came of each request for an answer, told to whoever watches. Knows nothing of Ray or of Prometheus."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plumbline.serving.openai_answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    CompletionChoice,
    TextCompletion,
)

if TYPE_CHECKING:
    from plumbline.serving.chat import ServedModel

log = logging.getLogger(__name__)

ROUTES = {"/v1/chat/completions": "chat", "/v1/completions": "text", "/v1/embeddings": "embeddings"}
CLIENT_GONE = 499  # as nginx calls it: no status of HTTP says that nobody waits any more
Observer = Callable[["Observed"], None]
A = TypeVar("A", ChatCompletion, ChatCompletionChunk, TextCompletion)


@dataclass(frozen=True)
class Observed:
    """One finished request.

    Attributes:
        route: `chat`, `text` or `embeddings`.
        model: name of the served model; empty where none was found, so that no name a client made up is kept.
        version: fingerprint of the model that answered; empty likewise.
        key: public name of the API key; empty without keys.
        status: HTTP status; 500 where a stream broke after its status line, 499 where the client left.
        seconds: from the first byte of the request to the last of the answer.
        first_token_seconds: to the first token, of streams; others learn of their tokens all at once.
        prompt_tokens, completion_tokens: read and drawn, of all choices.
        cached_tokens: of the prompt, that were in the engine's cache.
        finish_reason: of the first choice; None where there is none.
        text: of the first choice. For checks of answers; it must not be logged.
        headers: of the request, for who follows a trace.
    """

    route: str
    model: str
    version: str
    key: str
    status: int
    seconds: float
    first_token_seconds: float | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    finish_reason: str | None
    text: str = field(repr=False)
    headers: Sequence[tuple[bytes, bytes]] = field(default=(), repr=False)

    @property
    def ok(self) -> bool:
        """Answered in full."""
        return self.status < 400

    @property
    def failed(self) -> bool:
        """The server is at fault: not a wrong request, a limit or a client that left."""
        return self.status >= 500

    @property
    def token_seconds(self) -> float | None:
        """Mean time between tokens after the first, of streams with more than one."""
        if self.first_token_seconds is None or self.completion_tokens < 2:
            return None
        return (self.seconds - self.first_token_seconds) / (self.completion_tokens - 1)


@dataclass
class Observation:
    """What is known of a request under way. Routes fill it in: `request.state.observation`."""

    route: str
    began: float = field(default_factory=time.perf_counter)
    model: str = ""
    version: str = ""
    status: int = 500
    first_token_seconds: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    text: str = field(default="", repr=False)

    def asks(self, model: ServedModel) -> None:
        """Which model it is for."""
        self.model, self.version = model.name, model.reference.fingerprint or ""

    def saw(self, answer: A, *, stream: bool = False) -> A:
        """A whole answer, or a piece of a stream, which it hands on."""
        for choice in answer.choices:
            text = _text(choice)
            calls = isinstance(choice, ChunkChoice) and choice.delta.tool_calls
            if stream and self.first_token_seconds is None and (text or calls or choice.finish_reason):
                self.first_token_seconds = time.perf_counter() - self.began
            if choice.index == 0:
                self.text += text
                self.finish_reason = choice.finish_reason or self.finish_reason
        if answer.usage is not None:
            self.prompt_tokens, self.completion_tokens = answer.usage.prompt_tokens, answer.usage.completion_tokens
            self.cached_tokens = answer.usage.prompt_tokens_details.cached_tokens
        return answer

    def finished(self, seconds: float, key: str, headers: Sequence[tuple[bytes, bytes]]) -> Observed:
        """What became of it."""
        return Observed(
            route=self.route,
            model=self.model,
            version=self.version,
            key=key,
            status=self.status,
            seconds=seconds,
            first_token_seconds=self.first_token_seconds,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            finish_reason=self.finish_reason,
            text=self.text,
            headers=headers,
        )


class Observing:
    """ASGI middleware: one `Observed` for each request to `ROUTES`, whoever answered it. Must be the outermost."""

    def __init__(self, app: ASGIApp, observers: Sequence[Observer]) -> None:
        self._app, self._observers = app, observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = ROUTES.get(scope["path"].removeprefix(scope.get("root_path", ""))) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        observation = state["observation"] = Observation(route)
        whole = False

        async def observed_send(message: Message) -> None:
            nonlocal whole
            if message["type"] == "http.response.start":
                observation.status = message["status"]
            elif message["type"] == "http.response.body":
                whole = whole or not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
            gone = not whole and observation.status < 400
        except (asyncio.CancelledError, OSError):  # Starlette's word for a client that left is an OSError too
            gone = not whole
            raise
        except Exception:  # answered outside of here
            observation.status, gone = 500, False
            raise
        finally:
            if gone:
                observation.status = CLIENT_GONE
            seconds = time.perf_counter() - observation.began
            self._tell(observation.finished(seconds, getattr(state.get("key"), "name", ""), scope["headers"]))

    def _tell(self, observed: Observed) -> None:
        for observer in self._observers:
            try:
                observer(observed)
            except Exception:  # the client has its answer; the next one must get its own too
                log.exception("an observer of requests failed")


def _text(choice: Choice | ChunkChoice | CompletionChoice) -> str:
    if isinstance(choice, CompletionChoice):
        return choice.text
    return (choice.delta.content if isinstance(choice, ChunkChoice) else choice.message.content) or ""
