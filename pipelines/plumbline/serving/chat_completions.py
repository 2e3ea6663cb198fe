"""Completions of chats, whole and as a stream of server-sent events."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from plumbline.rollout.engine import Request, Token
from plumbline.serving.chat import ChatModel, Piece
from plumbline.serving.completions import finite, usage
from plumbline.serving.merging import gathered, merged
from plumbline.serving.openai_answers import (
    AnsweredCall,
    AnsweredFunction,
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    DeltaCall,
    FinishReason,
    TokenLogprob,
    TopLogprob,
)
from plumbline.serving.openai_requests import ChatCompletionRequest
from plumbline.serving.text import REPLACEMENT
from plumbline.serving.tool_calls import Call, ToolCallReader


async def complete(model: ChatModel, body: ChatCompletionRequest, requests: list[Request]) -> ChatCompletion:
    """Every answer, in order."""

    async def whole(index: int, request: Request) -> tuple[Choice, Piece]:
        async with aclosing(model.answer(request, body.stop, stream=False)) as pieces:
            piece = await anext(pieces)
        reader = _reader(body)
        parts = _parts(reader, piece)
        calls = [AnsweredCall(**_call(part)) for part in parts if isinstance(part, Call)]
        text = "".join(part for part in parts if isinstance(part, str))
        message = AnswerMessage(content=None if calls and not text else text, tool_calls=calls or None)
        logprobs = _logprobs(model, piece.drawn) if body.logprobs else None
        reason = _reason(reader, piece)
        assert reason is not None
        return Choice(index=index, message=message, logprobs=logprobs, finish_reason=reason), piece

    answers = await gathered(whole(index, request) for index, request in enumerate(requests))
    return ChatCompletion(
        **head(model, requests[0]),
        choices=[choice for choice, _ in answers],
        usage=usage([len(requests[0].prompt)], [piece for _, piece in answers]),
    )


async def stream(
    model: ChatModel, body: ChatCompletionRequest, requests: list[Request]
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """The same in pieces, of all answers as they come; the last piece is the usage."""
    shared = head(model, requests[0])

    def chunk(index: int, delta: Delta, **rest: Any) -> ChatCompletionChunk:
        return ChatCompletionChunk(**shared, choices=[ChunkChoice(index=index, delta=delta, **rest)])

    latest = [Piece("", 0, None)] * len(requests)
    readers = [_reader(body) for _ in requests]
    called = [0] * len(requests)
    for index in range(len(requests)):
        yield chunk(index, Delta(role="assistant", content=""))
    async with aclosing(merged([model.answer(request, body.stop, stream=True) for request in requests])) as pieces:
        async for index, piece in pieces:
            latest[index] = piece
            logprobs = _logprobs(model, piece.drawn) if body.logprobs and piece.drawn else None
            parts = _parts(readers[index], piece)
            for part in parts or ([""] if logprobs else []):
                if isinstance(part, Call):
                    delta = Delta(tool_calls=[DeltaCall(**_call(part), index=called[index])])
                    called[index] += 1
                else:
                    delta = Delta(content=part)
                yield chunk(index, delta, logprobs=logprobs)
                logprobs = None
            if piece.finish_reason:
                yield chunk(index, Delta(), finish_reason=_reason(readers[index], piece))
    yield ChatCompletionChunk(**shared, choices=[], usage=usage([len(requests[0].prompt)], latest))


def _reader(body: ChatCompletionRequest) -> ToolCallReader | None:
    """Without tools there are no calls, whatever the text looks like."""
    return ToolCallReader(body.parallel_tool_calls) if body.tools and body.tool_choice != "none" else None


def _parts(reader: ToolCallReader | None, piece: Piece) -> list[str | Call]:
    if reader is None:
        return [piece.text] if piece.text else []
    return reader.push(piece.text) + (reader.flush() if piece.finish_reason else [])


def _reason(reader: ToolCallReader | None, piece: Piece) -> FinishReason | None:
    return "tool_calls" if reader and reader.calls and piece.finish_reason == "stop" else piece.finish_reason


def _call(call: Call) -> dict[str, Any]:
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "function": AnsweredFunction(name=call.name, arguments=call.arguments),
    }


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
    return {"token": name, "logprob": finite(logprob), "bytes": None if REPLACEMENT in name else list(name.encode())}


def head(model: ChatModel, request: Request) -> dict[str, Any]:
    """What the answer and every event of it begins with."""
    return {
        "id": f"chatcmpl-{request.id}",
        "created": int(time.time()),
        "model": model.served.name,
        "system_fingerprint": model.served.reference.fingerprint,
    }
