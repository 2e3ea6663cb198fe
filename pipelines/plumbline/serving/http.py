"""The HTTP interface: OpenAI's chat completions over loaded models. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from plumbline.errors import PlumblineError
from plumbline.rollout.engine import Request as EngineRequest
from plumbline.serving.chat import ChatModel
from plumbline.serving.openai_schema import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Choice,
    ChunkChoice,
    Delta,
    ModelCard,
    ModelList,
    OpenAIError,
    Usage,
    server_sent_event,
)


def create_app(models: Mapping[str, ChatModel]) -> FastAPI:
    """The web application over loaded models, by name."""
    app = FastAPI(title="Plumbline", openapi_url=None)

    def find(name: str) -> ChatModel:
        if name not in models:
            known = ", ".join(f"'{known}'" for known in models)
            raise OpenAIError(
                404, f"The model '{name}' does not exist; served here: {known}.", param="model", code="model_not_found"
            )
        return models[name]

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatCompletionRequest) -> Response | ChatCompletion:
        model = find(body.model)
        request = model.read(body)
        model.engine.check()
        if body.stream:
            return StreamingResponse(_events(model, request, body), media_type="text/event-stream")
        return await _completion(model, request, body)

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
    return app


async def _completion(model: ChatModel, request: EngineRequest, body: ChatCompletionRequest) -> ChatCompletion:
    async with aclosing(model.answer(request, body.stop, stream=False)) as pieces:
        piece = await anext(pieces)
    assert piece.finish_reason is not None
    return ChatCompletion(
        **_head(model, request),
        choices=[Choice(message=AnswerMessage(content=piece.text), finish_reason=piece.finish_reason)],
        usage=Usage.of(len(request.prompt), piece.completion_tokens),
    )


async def _events(model: ChatModel, request: EngineRequest, body: ChatCompletionRequest) -> AsyncIterator[str]:
    head = _head(model, request)

    def event(delta: Delta, **rest: Any) -> str:
        return ChatCompletionChunk(**head, choices=[ChunkChoice(delta=delta, **rest)]).event()

    yield event(Delta(role="assistant", content=""))
    count = 0
    try:
        async with aclosing(model.answer(request, body.stop, stream=True)) as pieces:
            async for piece in pieces:
                count = piece.completion_tokens
                if piece.text:
                    yield event(Delta(content=piece.text))
                if piece.finish_reason:
                    yield event(Delta(), finish_reason=piece.finish_reason)
    except PlumblineError as error:  # the status line is sent: the error can only travel as an event
        yield server_sent_event(OpenAIError(500, str(error)).body())
        return
    if body.stream_options and body.stream_options.include_usage:
        yield ChatCompletionChunk(**head, choices=[], usage=Usage.of(len(request.prompt), count)).event()
    yield server_sent_event("[DONE]")


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
        return OpenAIError(400, f"{field or 'body'}: {first['msg']}", param=field)
    if isinstance(error, HTTPException):
        return OpenAIError(error.status_code, str(error.detail))
    return OpenAIError(500, str(error))
