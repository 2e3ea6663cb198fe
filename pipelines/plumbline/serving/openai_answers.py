"""What clients are answered, as OpenAI has it, as pydantic models: chats, plain text and events of their streams, embeddings, models,
health, errors.

Source: https://platform.openai.com/docs/api-reference/chat and …/completions.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, Field

LEAST_LOGPROB = -9999.0  # what OpenAI says of a token that cannot be; JSON has no infinity


class PromptTokensDetails(BaseModel):
    """How many tokens of the prompt were in the cache, as an earlier text began with them."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens read and drawn, an end-of-text token included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, prompt: int, completion: int, cached: int) -> Usage:
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )


FinishReason = Literal["stop", "length", "tool_calls"]


class AnsweredFunction(BaseModel):
    """`arguments` is a JSON object, written as text."""

    name: str
    arguments: str


class AnsweredCall(BaseModel):
    """A call that the model makes; its client answers with a message of role `tool`."""

    id: str
    type: Literal["function"] = "function"
    function: AnsweredFunction


def _said_nothing(value: Any) -> bool:
    return value is None


class AnswerMessage(BaseModel):
    """`content` is None where the answer is calls of tools alone."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[AnsweredCall] | None = Field(default=None, exclude_if=_said_nothing)


class TopLogprob(BaseModel):
    """A token and its log-probability; `bytes` only where the token is whole characters."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """One entry per token of the answer, an end-of-text token included."""

    content: list[TokenLogprob]
    refusal: None = None


class Choice(BaseModel):
    index: int = 0
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """Answer without streaming. `system_fingerprint` is that of the Model artifact."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[Choice]
    usage: Usage


class DeltaCall(AnsweredCall):
    """A whole call; `index` is its place among those of the answer."""

    index: int


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[DeltaCall] | None = None


class ChunkChoice(BaseModel):
    index: int = 0
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(BaseModel):
    """One server-sent event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChunkChoice]
    usage: Usage | None = None

    def event(self) -> str:
        """The chunk as a server-sent event; parts of the delta that say nothing are left out."""
        data = self.model_dump(mode="json")
        for choice in data["choices"]:
            choice["delta"] = {name: value for name, value in choice["delta"].items() if value is not None}
            if choice["logprobs"] is None:
                del choice["logprobs"]
        if self.usage is None:
            del data["usage"]
        return server_sent_event(data)


class CompletionLogprobs(BaseModel):
    """Lists with one entry per token. The first token of a text has no probability.

    Offsets are characters from where the prompt begins with `echo`, else from where the answer begins.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """Choices of the first prompt come first. `finish_reason` is None while a stream goes on.

    `prompt_tokens_cut` is ours: how many tokens `truncate_prompt_tokens` has left out.
    """

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None
    prompt_tokens_cut: int = 0


class TextCompletion(BaseModel):
    """Answer of /v1/completions, whole or as one event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[CompletionChoice]
    usage: Usage | None = None

    def event(self) -> str:
        """As a server-sent event."""
        return server_sent_event(self.model_dump(exclude={"usage"} if self.usage is None else None))


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """Answer of /v1/embeddings, one entry per text."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ModelCard(BaseModel):
    """One entry of /v1/models. `fingerprint` and `loaded` are ours: an adapter that is not loaded is when it is asked for.
    `max_model_len` and `parent`, what an adapter stands on, are vLLM's names."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["plumbline"] = "plumbline"
    fingerprint: str | None
    max_model_len: int
    parent: str | None = None
    loaded: bool = True


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ModelHealth(BaseModel):
    """`running`: requests that are queued or worked on."""

    name: str
    fingerprint: str | None
    running: int


class Health(BaseModel):
    """Whether the server works."""

    status: Literal["ok", "failed"]
    models: list[ModelHealth]


class OpenAIError(Exception):
    """An error that goes to the client as it is.

    Attributes:
        status: HTTP status.
        message: one sentence.
        param: request field at fault, if one is.
        code: machine-readable reason.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def server_sent_event(data: Any) -> str:
    """One event; strings go as they are, all else as JSON."""
    return f"data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
