"""The part of OpenAI's API that Plumbline speaks, as pydantic models: chat completions, and completions of plain text.

Source: https://platform.openai.com/docs/api-reference/chat and …/completions. Unknown request fields are ignored.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_STOPS = 4
MAX_PROMPTS = 1024
MAX_CHOICES = 16
COMPLETION_STOPS = 16  # OpenAI takes 4; evaluation harnesses send more
COMPLETION_TOKENS = 16
LEAST_LOGPROB = -9999.0  # what OpenAI says of a token that cannot be; JSON has no infinity

Stop = Annotated[str, Field(min_length=1)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, body: Any) -> Any:
        if isinstance(body, dict):
            return {name: value for name, value in body.items() if value is not None}
        return body


class TextPart(_Request):
    """A piece of a message; other types than text are refused."""

    type: Literal["text"]
    text: str


class Message(_Request):
    """One turn. `content` given as parts is joined."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, value: Any) -> Any:
        if isinstance(value, list):
            return "".join(TextPart.model_validate(part).text for part in value)
        return value


class StreamOptions(_Request):
    include_usage: bool = False


class ChatCompletionRequest(_Request):
    """Body of POST /v1/chat/completions. Defaults are OpenAI's."""

    model: str
    messages: list[Message] = Field(min_length=1)
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: list[Stop] = Field(default=[], max_length=MAX_STOPS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: int | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    user: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _likeliest_go_with_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is told with logprobs only; set logprobs to true")
        return self

    @property
    def token_limit(self) -> tuple[str, int] | None:
        """The longest answer asked for and the field that says so; `max_tokens` is the older name."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return None if self.max_tokens is None else ("max_tokens", self.max_tokens)


class CompletionRequest(_Request):
    """Body of POST /v1/completions: text that is continued, without a chat template. Defaults are OpenAI's.

    Attributes:
        prompt: texts or token lists; a single one of either is a list of one here.
        echo: the prompt is part of the answer, and with `logprobs` what the model thinks of it.
        logprobs: tell the log-probability of each token, and of so many of the likeliest in its place.
        add_special_tokens: whether texts begin with what the tokenizer puts before a text. vLLM's.
        truncate_prompt_tokens: of longer prompts only the last so many tokens are read; -1: as many as there is room for. vLLM's.
        echo_from: leave the first so many characters of texts (tokens of token lists) out of the echo. Ours, so that a long context is not
            sent back with every choice that is scored after it. To know a context's tokens it is encoded alone, and all after as many
            are told: at least one. After a context without tokens the first is scored as after the end of another text.
    """

    model: str
    prompt: list[str] | list[list[int]] = Field(min_length=1, max_length=MAX_PROMPTS)
    suffix: Literal[""] = ""
    max_tokens: int = Field(default=COMPLETION_TOKENS, ge=0)
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    best_of: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool = False
    stop: list[Stop] = Field(default=[], max_length=COMPLETION_STOPS)
    seed: int | None = None
    user: str | None = None
    add_special_tokens: bool = True
    truncate_prompt_tokens: Literal[-1] | Annotated[int, Field(ge=1)] | None = None
    echo_from: Annotated[int, Field(ge=0)] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt_is_a_list(cls, value: Any) -> Any:
        one = isinstance(value, str) or (isinstance(value, list) and value and all(type(token) is int for token in value))
        found = [value] if one else value
        kinds = {type(prompt) for prompt in found} if isinstance(found, list) else set()
        whole = kinds == {str} or (kinds == {list} and all(type(token) is int for prompt in found for token in prompt))
        if not whole:
            raise ValueError(
                "give a text, a list of texts, a list of tokens, or a list of lists of tokens; none may be left out"
            )
        return found

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("suffix", mode="before")
    @classmethod
    def _no_suffix(cls, value: Any) -> Any:
        if value != "":
            raise ValueError("text cannot be inserted before a suffix here; leave it out")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError(f"best_of {self.best_of} must be n, which is {self.n}: no choice is left out here")
        if not self.max_tokens and not self.echo:
            raise ValueError("max_tokens 0 needs echo: there would be no answer")
        if self.echo_from is not None and not self.echo:
            raise ValueError("echo_from needs echo")
        if len(self.prompt) * self.n > MAX_PROMPTS:
            raise ValueError(
                f"{len(self.prompt)} prompts of {self.n} answers each are too many: at most {MAX_PROMPTS} in all"
            )
        return self


class Usage(BaseModel):
    """Tokens read and drawn, an end-of-text token included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> Usage:
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


FinishReason = Literal["stop", "length"]


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


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


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


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


class ModelCard(BaseModel):
    """One entry of /v1/models. The last two fields are ours; `max_model_len` is vLLM's name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["plumbline"] = "plumbline"
    fingerprint: str | None
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


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
