"""The HTTP interface: OpenAI's completions, of chats and of text, over loaded models. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

import plumbline
from plumbline.errors import PlumblineError
from plumbline.serving import chat_completions, completions
from plumbline.serving.admission.gate import Admission
from plumbline.serving.admission.middleware import AdmissionMiddleware
from plumbline.serving.body_limit import BodyLimit
from plumbline.serving.chat import ChatModel
from plumbline.serving.client_gone import unless_gone
from plumbline.serving.embeddings import EmbeddingModel
from plumbline.serving.http_errors import add_error_handlers, as_openai_error
from plumbline.serving.metrics import Observation, Observer, Observing
from plumbline.serving.models import Models
from plumbline.serving.openai_answers import (
    ChatCompletion,
    ChatCompletionChunk,
    EmbeddingList,
    Health,
    ModelCard,
    ModelHealth,
    ModelList,
    OpenAIError,
    TextCompletion,
    server_sent_event,
)
from plumbline.serving.openai_requests import ChatCompletionRequest, CompletionRequest, EmbeddingRequest, StreamOptions
from plumbline.serving.openapi import ERRORS, answers, describe
from plumbline.serving.playground import page as playground

if TYPE_CHECKING:
    from plumbline.serving.release.replica import Release

log = logging.getLogger(__name__)

LONG = 50_000  # characters; more take milliseconds to read
EACH = 50  # characters that cost as much as a text by itself
T = TypeVar("T")
M = TypeVar("M", ChatModel, EmbeddingModel)
Asking = ChatCompletionRequest | CompletionRequest | EmbeddingRequest
OTHERWISE: dict[type, str] = {
    ChatModel: "makes embeddings and writes no text; use /v1/embeddings",
    EmbeddingModel: "writes text and makes no embeddings; use /v1/chat/completions or /v1/completions",
}
"""What a model does that is not of the wanted kind."""


def create_app(
    models: Models,
    *,
    observers: Sequence[Observer] = (),
    admission: Admission | None = None,
    release: Release | None = None,
) -> FastAPI:
    """The web application over models.

    Args:
        models: what to serve.
        observers: told of each finished request for an answer.
        admission: who may ask, and how much; None: anybody, anything.
        release: of which version a model answers whom; None: there is one of each.
    """
    app = FastAPI(title="Plumbline", version=plumbline.__version__, docs_url=None, redoc_url=None)

    async def find(kind: type[M], body: Asking, request: Request) -> M:
        name = body.model
        if release is not None:
            name = release.version(name, getattr(request.state, "key", None), body.user)
        model = await models.find(name)
        request.state.observation.asks(model.served)
        if not isinstance(model, kind):
            raise OpenAIError(400, f"model: '{body.model}' {OTHERWISE[kind]}", param="model")
        return model

    @app.post("/v1/chat/completions", response_model=None, responses=answers(ChatCompletion, ChatCompletionChunk))
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        """What the model says next in a chat; with `stream` in pieces."""
        model = await find(ChatModel, body, request)
        seen: Observation = request.state.observation
        requests = await _read(model.read, body.size, body)
        model.engine.check()
        if release is not None:
            release.mirror(body)
        if body.stream:
            return _events(chat_completions.stream(model, body, requests), seen, body.stream_options)
        return _json(seen.saw(await unless_gone(request, chat_completions.complete(model, body, requests))))

    @app.post("/v1/completions", response_model=None, responses=answers(TextCompletion, TextCompletion))
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """How the model goes on with text, and how likely it finds text; with `stream` in pieces."""
        model = await find(ChatModel, body, request)
        seen: Observation = request.state.observation
        prompts = await _read(completions.read, sum(map(len, body.prompt)), model, body)
        model.engine.check()
        if body.stream:
            return _events(completions.stream(model, body, prompts), seen, body.stream_options)
        return _json(seen.saw(await unless_gone(request, completions.complete(model, body, prompts))))

    @app.post("/v1/embeddings", response_model=EmbeddingList, responses=ERRORS)
    async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """The vector of each text, of length 1."""
        model = await find(EmbeddingModel, body, request)
        texts = await _read(model.read, sum(len(text) + EACH for text in body.input), body)
        found = await unless_gone(request, model.embed(body, texts))
        request.state.observation.prompt_tokens = found.usage.prompt_tokens
        return _json(found)

    @app.get("/v1/models", responses=ERRORS)
    async def list_models() -> ModelList:
        """Every model that is served."""
        return ModelList(data=models.cards())

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def retrieve_model(name: str) -> ModelCard:
        """One model; names may hold slashes."""
        return models.card(name)

    # Models have answered a token before they are handed to this application: what is left to check is the engines.
    # Ray Serve itself sends nothing to a replica that ends.
    @app.get("/healthz", response_model=Health, responses={503: {"model": Health}})
    @app.get("/readyz", response_model=Health, responses={503: {"model": Health}})
    async def health() -> JSONResponse:
        """Whether requests are answered: every model has answered a token, and every engine runs. 503: this must be replaced."""
        loaded = models.loaded()
        failed = any(model.engine.failure is not None for model in loaded)
        found = Health(
            status="failed" if failed else "ok",
            models=[
                ModelHealth(
                    name=model.served.name,
                    fingerprint=model.served.reference.fingerprint,
                    running=model.engine.running,
                )
                for model in loaded
            ],
        )
        return JSONResponse(found.model_dump(), 503 if failed else 200)

    describe(app, ChatCompletionChunk)
    playground.mount(app)
    add_error_handlers(app)
    app.add_middleware(BodyLimit)
    if admission is not None:
        app.add_middleware(AdmissionMiddleware, admission=admission)
    app.add_middleware(Observing, observers=observers)  # the last is the outermost: it sees what the others refuse
    return app


async def _read(read: Callable[..., T], size: int, *args: Any) -> T:
    """What `read` makes of a request of so many characters; long ones in a thread, so that streams do not stand still meanwhile."""
    return await asyncio.to_thread(read, *args) if size > LONG else read(*args)


def _json(whole: BaseModel) -> Response:
    """Written by pydantic itself: of a long answer this is much of the work."""
    return Response(whole.model_dump_json(), media_type="application/json")


def _events(
    chunks: AsyncGenerator[ChatCompletionChunk | TextCompletion, None], seen: Observation, options: StreamOptions | None
) -> StreamingResponse:
    """The chunks as server-sent events, that of the usage only where the client wants it."""
    wants_usage = options is not None and options.include_usage

    async def events() -> AsyncIterator[str]:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    seen.saw(chunk, stream=True)
                    if chunk.usage is None or wants_usage:
                        yield chunk.event()
        except Exception as error:  # the status line is sent: the error can only travel as an event
            if not isinstance(error, PlumblineError | OpenAIError):
                log.exception("a stream broke off")
            shaped = as_openai_error(error)
            seen.status = shaped.status
            yield server_sent_event(shaped.body())
            return
        yield server_sent_event("[DONE]")

    return StreamingResponse(events(), media_type="text/event-stream")
