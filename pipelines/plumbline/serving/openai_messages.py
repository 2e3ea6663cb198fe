"""What a chat is made of in OpenAI's API: messages, tools and calls of them, as clients send them.

Source: https://platform.openai.com/docs/api-reference/chat/create.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

MAX_DEPTH = 64  # of a tool's parameters


class RequestModel(BaseModel):
    """A part of a request. Unknown fields are ignored; null is as good as leaving a field out."""

    model_config = ConfigDict(extra="ignore")

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Null is allowed wherever a field may be left out."""
        schema = handler.resolve_ref_schema(handler(core))
        for name, field in schema.get("properties", {}).items():
            if name not in schema.get("required", ()) and {"type": "null"} not in field.get(
                "anyOf", [{"type": field.get("type")}]
            ):
                told = {key: field.pop(key) for key in ("title", "default", "description") if key in field}
                schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **told}
        return schema

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, body: Any) -> Any:
        if isinstance(body, dict):
            return {name: value for name, value in body.items() if value is not None}
        return body


class TextPart(RequestModel):
    """A piece of a message; other types than text are refused."""

    type: Literal["text"]
    text: str


def _joined_parts(value: Any) -> Any:
    return "".join(TextPart.model_validate(part).text for part in value) if isinstance(value, list) else value


_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
Content = Annotated[
    str, BeforeValidator(_joined_parts), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]})
]
"""Text, or parts of text, which are joined."""

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class FunctionCall(RequestModel):
    """`arguments` is a JSON object, written as text."""

    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _an_object(cls, value: str) -> str:
        try:
            whole = isinstance(json.loads(value or "{}"), dict)
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            raise ValueError("give the text of a JSON object")
        return value


class ToolCall(RequestModel):
    """A call that the assistant made earlier in the chat."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Function(RequestModel):
    """What a tool is called and takes. `parameters` is a JSON schema. `strict` is not enforced: answers are not constrained."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False

    @field_validator("parameters")
    @classmethod
    def _not_too_deep(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        level: list[Any] = [value or {}]
        for _ in range(MAX_DEPTH):
            level = [
                x for one in level for x in (one.values() if isinstance(one, dict) else one) if isinstance(x, dict | list)
            ]
            if not level:
                return value
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels; chat templates write it out")


class Tool(RequestModel):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function


class Message(RequestModel):
    """One turn.

    Attributes:
        content: text; only an assistant that calls tools may say none.
        name: of the participant.
        tool_calls: what the assistant asked for in this turn.
        tool_call_id: which call the `tool` answers.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = ""
    name: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise ValueError("content is missing; only an assistant that calls tools may say nothing")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("tool_call_id is missing; it says which call this answers")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it: what is not said is left out, and arguments are values.

        Source: https://huggingface.co/docs/transformers/chat_extras
        """
        turn: dict[str, Any] = {"role": self.role, "content": self.content}
        turn |= {key: value for key in ("name", "tool_call_id") if (value := getattr(self, key)) is not None}
        if self.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": json.loads(call.function.arguments or "{}")},
                }
                for call in self.tool_calls
            ]
        return turn
