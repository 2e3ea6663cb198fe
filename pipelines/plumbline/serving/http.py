"""The HTTP interface: OpenAI's completions, of chats and of text, over loaded models. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.rollout.engine import Request as EngineRequest
from plumbline.rollout.engine import Token
from plumbline.serving import completions
from plumbline.serving.chat import ChatModel
from plumbline.serving.merging import gathered, merged
from plumbline.serving.openai_schema import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionRequest,
    Delta,
    ModelCard,
    ModelList,
    OpenAIError,
    TokenLogprob,
    TopLogprob,
    Usage,
    server_sent_event,
)
from plumbline.serving.text import REPLACEMENT

LONG = 50_000  # characters; more take milliseconds to read
T = TypeVar("T")


def create_app(models: Mapping[str, ChatModel]) -> FastAPI:
    """The web application over loaded models, by name."""
    app = FastAPI(title="Plumbline", openapi_url=None)

    def find(name: str) -> ChatModel:
        if name not in models:
            known = ", ".join(f"'{known}'" for known in models)
            name = name.encode(errors="replace").decode()  # halves of characters
            raise OpenAIError(
                404, f"The model '{name}' does not exist; served here: {known}.", param="model", code="model_not_found"
            )
        return models[name]

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatCompletionRequest) -> Response | ChatCompletion:
        model = find(body.model)
        requests = await _read(model.read, sum(len(message.content) for message in body.messages), body)
        model.engine.check()
        if body.stream:
            return StreamingResponse(_events(model, requests, body), media_type="text/event-stream")
        return await _completion(model, requests, body)

    @app.post("/v1/completions", response_model=None)
    async def text_completions(body: CompletionRequest) -> Response:
        model = find(body.model)
        prompts = await _read(completions.read, sum(map(len, body.prompt)), model, body)
        model.engine.check()
        if body.stream:
            return StreamingResponse(_text_events(model, body, prompts), media_type="text/event-stream")
        whole = await completions.complete(model, body, prompts)
        # Written by pydantic itself: of a long echo this is much of the work.
        return Response(whole.model_dump_json(), media_type="application/json")

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[_card(model) for model in models.values()])

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> ModelCard:
        return _card(find(name))

    # Models have answered a token before they are handed to this application: what is left to check is the engines.
    @app.get("/healthz")
    async def health() -> JSONResponse:
        failed = [name for name, model in models.items() if model.engine.failure is not None]
        state = [
            {"name": name, "fingerprint": model.served.reference.fingerprint, "running": model.engine.running}
            for name, model in models.items()
        ]
        return JSONResponse({"status": "failed" if failed else "ok", "models": state}, 503 if failed else 200)

    app.add_exception_handler(OpenAIError, _error_response)
    app.add_exception_handler(RequestValidationError, _error_response)
    app.add_exception_handler(HTTPException, _error_response)
    app.add_exception_handler(PlumblineError, _error_response)
    app.add_exception_handler(Exception, _error_response)
    return app


async def _read(read: Callable[..., T], size: int, *args: Any) -> T:
    """What `read` makes of a request of so many characters; long ones in a thread, so that streams do not stand still meanwhile."""
    return await asyncio.to_thread(read, *args) if size > LONG else read(*args)


async def _completion(model: ChatModel, requests: list[EngineRequest], body: ChatCompletionRequest) -> ChatCompletion:
    async def whole(index: int, request: EngineRequest) -> tuple[Choice, int]:
        async with aclosing(model.answer(request, body.stop, stream=False)) as pieces:
            piece = await anext(pieces)
        assert piece.finish_reason is not None
        message = AnswerMessage(content=piece.text)
        logprobs = _logprobs(model, piece.drawn) if body.logprobs else None
        choice = Choice(index=index, message=message, logprobs=logprobs, finish_reason=piece.finish_reason)
        return choice, piece.completion_tokens

    answers = await gathered(whole(index, request) for index, request in enumerate(requests))
    return ChatCompletion(
        **_head(model, requests[0]),
        choices=[choice for choice, _ in answers],
        usage=Usage.of(len(requests[0].prompt), sum(count for _, count in answers)),
    )


async def _events(model: ChatModel, requests: list[EngineRequest], body: ChatCompletionRequest) -> AsyncIterator[str]:
    head = _head(model, requests[0])

    def event(index: int, delta: Delta, **rest: Any) -> str:
        return ChatCompletionChunk(**head, choices=[ChunkChoice(index=index, delta=delta, **rest)]).event()

    counts = [0] * len(requests)
    for index in range(len(requests)):
        yield event(index, Delta(role="assistant", content=""))
    try:
        async with aclosing(merged([model.answer(request, body.stop, stream=True) for request in requests])) as pieces:
            async for index, piece in pieces:
                counts[index] = piece.completion_tokens
                if piece.text or (body.logprobs and piece.drawn):
                    logprobs = _logprobs(model, piece.drawn) if body.logprobs else None
                    yield event(index, Delta(content=piece.text), logprobs=logprobs)
                if piece.finish_reason:
                    yield event(index, Delta(), finish_reason=piece.finish_reason)
    except PlumblineError as error:  # the status line is sent: the error can only travel as an event
        yield server_sent_event(OpenAIError(500, str(error)).body())
        return
    if body.stream_options and body.stream_options.include_usage:
        usage = Usage.of(len(requests[0].prompt), sum(counts))
        yield ChatCompletionChunk(**head, choices=[], usage=usage).event()
    yield server_sent_event("[DONE]")


async def _text_events(model: ChatModel, body: CompletionRequest, prompts: list[completions.Prompt]) -> AsyncIterator[str]:
    try:
        async with aclosing(completions.stream(model, body, prompts)) as pieces:
            async for piece in pieces:
                yield server_sent_event(piece.model_dump(exclude={"usage"} if piece.usage is None else None))
    except PlumblineError as error:
        yield server_sent_event(OpenAIError(500, str(error)).body())
        return
    yield server_sent_event("[DONE]")


def _logprobs(model: ChatModel, drawn: list[Token]) -> ChoiceLogprobs:
    return ChoiceLogprobs(
        content=[
            TokenLogprob(
                **_named(model, token.token, token.logprob),
                top_logprobs=[TopLogprob(**_named(model, other, logprob)) for other, logprob in token.likeliest],
            )
            for token in drawn
        ]
    )


def _named(model: ChatModel, token: int, logprob: float) -> dict[str, Any]:
    name = model.names[token]
    return {
        "token": name,
        "logprob": completions.finite(logprob),
        "bytes": None if REPLACEMENT in name else list(name.encode()),
    }


def _head(model: ChatModel, request: EngineRequest) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{request.id}",
        "created": int(time.time()),
        "model": model.served.name,
        "system_fingerprint": model.served.reference.fingerprint,
    }


def _card(model: ChatModel) -> ModelCard:
    return ModelCard(
        id=model.served.name,
        created=model.created,
        fingerprint=model.served.reference.fingerprint,
        max_model_len=model.max_length,
    )


async def _error_response(_: Request, error: Exception) -> JSONResponse:
    shaped = as_openai_error(error)
    return JSONResponse(shaped.body(), shaped.status)


def as_openai_error(error: Exception) -> OpenAIError:
    """Any error of a request, in OpenAI's form."""
    if isinstance(error, OpenAIError):
        return error
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:] if first["type"] != "json_invalid") or None
        return OpenAIError(400, f"{field or 'body'}: {first['msg'].removeprefix('Value error, ')}", param=field)
    if isinstance(error, HTTPException):
        return OpenAIError(error.status_code, str(error.detail))
    return OpenAIError(400 if isinstance(error, InvalidInput) else 500, str(error))
