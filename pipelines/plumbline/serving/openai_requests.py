"""What clients may ask, as OpenAI has it, as pydantic models: chat completions, completions of plain text, embeddings.

Source: https://platform.openai.com/docs/api-reference/chat and …/completions. Unknown request fields are ignored; known ones that
would change the answer and cannot be obeyed are refused, unless they ask for nothing.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from plumbline.serving.openai_messages import Message, RequestModel, Tool

MAX_STOPS = 4
MAX_PROMPTS = 1024
MAX_CHOICES = 16
MAX_TOOLS = 128
MAX_EMBEDDED = 2048
MAX_BIASED = 1024  # what vLLM takes on a GPU
COMPLETION_STOPS = 16  # OpenAI takes 4; evaluation harnesses send more
COMPLETION_TOKENS = 16


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _stops(most: int) -> Any:
    """Strings that end an answer before them; a single one is a list of one."""
    stop = {"type": "string", "minLength": 1}
    told = WithJsonSchema({"anyOf": [stop, {"type": "array", "items": stop, "maxItems": most}]})
    return Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=most), BeforeValidator(_listed), told]


ChatStops = _stops(MAX_STOPS)
TextStops = _stops(COMPLETION_STOPS)


TOKEN_NUMBER = "(0|[1-9][0-9]{0,8})"


def _by_token(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if not all(isinstance(name, str) and re.fullmatch(TOKEN_NUMBER, name) for name in value):
        raise ValueError('its names must be numbers of tokens, such as "42"')
    return {int(name): bias for name, bias in value.items()}


LogitBias = Annotated[
    dict[int, Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MAX_BIASED),
    BeforeValidator(_by_token),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": f"^{TOKEN_NUMBER}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_BIASED,
        }
    ),
]


class StreamOptions(RequestModel):
    include_usage: bool = False


class ResponseFormat(RequestModel):
    type: Literal["text"] = "text"


_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "modalities": ((["text"],), 'answers are text here; leave it out or give ["text"]'),
    "audio": ((), "answers are text here; leave it out"),
    "functions": (([],), "this is the older name of tools; give tools"),
    "function_call": (("none", "auto"), "this is the older name of tool_choice; give tool_choice"),
    "web_search_options": ((), "there is no web search here; leave it out"),
    "tool_choice": (("none", "auto"), 'a call of a tool cannot be enforced here; give "auto" or "none"'),
    "response_format": (
        ({"type": "text"},),
        "a format cannot be enforced here; ask for it in a message, and leave this out",
    ),
}
"""Fields of OpenAI's that cannot be obeyed → the values of them that ask for nothing, and what to do instead."""


class SampledRequest(RequestModel):
    """What chats and texts have in common."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: int | None = None
    user: str | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: LogitBias = {}

    @field_validator(*_NEUTRAL, mode="before", check_fields=False)
    @classmethod
    def _ask_for_nothing(cls, value: Any, info: ValidationInfo) -> Any:
        neutral, instead = _NEUTRAL[str(info.field_name)]
        if value not in neutral:
            raise ValueError(instead)
        return value


class ChatCompletionRequest(SampledRequest):
    """Body of POST /v1/chat/completions. Defaults are OpenAI's.

    Attributes:
        tools: functions that the chat template tells the model of; whether it does is the template's matter.
        tool_choice: `none` tells of no tools.
        parallel_tool_calls: false: of several calls in an answer only the first is told.
    """

    messages: list[Message] = Field(min_length=1)
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: ChatStops = []
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    tools: list[Tool] = Field(default=[], max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto"] = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    modalities: list[Literal["text"]] = ["text"]
    audio: None = None
    functions: Annotated[list[Any], Field(max_length=0)] = []
    function_call: Literal["none", "auto"] = "auto"
    web_search_options: None = None

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

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is told of, as chat templates take them."""
        if self.tool_choice == "none":
            return []
        return [tool.model_dump(exclude={"function": {"strict"}}, exclude_none=True) for tool in self.tools]

    @property
    def size(self) -> int:
        """Characters to read, about."""
        size = sum(len(turn.role) + len(turn.name or "") + len(turn.content) for turn in self.messages)
        calls = [call.function for turn in self.messages for call in turn.tool_calls]
        size += sum(len(call.name) + len(call.arguments) for call in calls)
        return size + (len(repr(self.offered_tools)) if self.tools else 0)


def _one_or_more_texts(value: Any) -> Any:
    """A text, texts, tokens or lists of tokens as a list.

    Raises:
        ValueError: it is something else.
    """
    one = isinstance(value, str) or (isinstance(value, list) and value and all(type(token) is int for token in value))
    found = [value] if one else value
    kinds = {type(prompt) for prompt in found} if isinstance(found, list) else set()
    whole = kinds == {str} or (kinds == {list} and all(type(token) is int for prompt in found for token in prompt))
    if not whole:
        raise ValueError(
            "give a text, a list of texts, a list of tokens, or a list of lists of tokens; none may be left out"
        )
    return found


def _texts(most: int) -> Any:
    """Texts or token lists; a single one of either is a list of one."""
    text, tokens = {"type": "string"}, {"type": "array", "items": {"type": "integer"}, "minItems": 1}
    several = [{"type": "array", "items": one, "minItems": 1, "maxItems": most} for one in (text, tokens)]
    told = WithJsonSchema({"anyOf": [text, tokens, *several]})
    kinds = list[str] | list[list[int]]
    return Annotated[kinds, Field(min_length=1, max_length=most), BeforeValidator(_one_or_more_texts), told]


Prompts = _texts(MAX_PROMPTS)
EmbeddedTexts = _texts(MAX_EMBEDDED)


class CompletionRequest(SampledRequest):
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

    prompt: Prompts
    suffix: Literal[""] = ""
    max_tokens: int = Field(default=COMPLETION_TOKENS, ge=0)
    best_of: int | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool = False
    stop: TextStops = []
    add_special_tokens: bool = True
    truncate_prompt_tokens: Literal[-1] | Annotated[int, Field(ge=1)] | None = None
    echo_from: Annotated[int, Field(ge=0)] | None = None

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


class EmbeddingRequest(RequestModel):
    """Body of POST /v1/embeddings.

    Attributes:
        input: texts or token lists; a single one of either is a list of one here.
        encoding_format: numbers, or the base64 of little-endian float32s.
        dimensions: the model's own width, if it is given.
    """

    model: str
    input: EmbeddedTexts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None
