"""Tools: what the chat template is told, and calls in answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from plumbline.external import TINY
from plumbline.models.load import load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.rollout.engine import Request, Scored, Scoring, Token
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.engine_loop import EngineLimits
from plumbline.serving.engine_thread import EngineThread
from plumbline.serving.http import create_app
from plumbline.serving.models import Models
from plumbline.serving.openai_requests import ChatCompletionRequest
from plumbline.serving.tool_calls import Call, ToolCallReader
from support.web import listening

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASK: list[Any] = [{"role": "user", "content": "How is the weather in Prag and Rom?"}]
PRAG = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Prag"}}\n</tool_call>'
ROM = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Røm 😀"}}\n</tool_call>'
HALVED = r'<tool_call>{"name": "f", "arguments": {"a": "\ud83d"}}</tool_call>'  # half a character
CALLS = [Call("get_weather", '{"city": "Prag"}'), Call("get_weather", '{"city": "Røm 😀"}')]


def read(pieces: Sequence[str], parallel: bool = True) -> list[str | Call]:
    """What a reader makes of an answer; neighbouring pieces of text joined."""
    reader = ToolCallReader(parallel)
    parts = [part for piece in pieces for part in reader.push(piece)] + reader.flush()
    joined: list[str | Call] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    assert reader.calls == sum(isinstance(part, Call) for part in parts)
    return joined


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no call", ["no call"]),
        ("ends with space \n", ["ends with space \n"]),
        (PRAG, CALLS[:1]),
        (f"Let me see.\n\n{PRAG}\n{ROM}\n", ["Let me see.", *CALLS]),
        (f"{PRAG} and more", [CALLS[0], " and more"]),
        (PRAG.removesuffix("</tool_call>"), CALLS[:1]),  # some models do not end their last call
        ('<tool_call>{"name": "now"}</tool_call>', [Call("now", "{}")]),
        ('<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', [Call("f", '{"a": 1}')]),
        ("a <tool_call>{broken</tool_call> b", ["a <tool_call>{broken</tool_call> b"]),
        ('<tool_call>{"name": "f", "arguments": {"a": ', ['<tool_call>{"name": "f", "arguments": {"a": ']),
        ('<tool_call>["f"]</tool_call>', ['<tool_call>["f"]</tool_call>']),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', ['<tool_call>{"name": 3, "arguments": {}}</tool_call>']),
        (
            '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
            ['<tool_call>{"name": "f", "arguments": "x"}</tool_call>'],
        ),
        (f"<tool_call>{'[' * 200_000}</tool_call>", [f"<tool_call>{'[' * 200_000}</tool_call>"]),
        (HALVED, [HALVED]),
        ('<tool_call>{"name": "f", "arguments": {"a": NaN}}', ['<tool_call>{"name": "f", "arguments": {"a": NaN}}']),
        ("<tool_", ["<tool_"]),
        ("1 < 2", ["1 < 2"]),
    ],
)
def test_calls_are_told_from_text(text: str, expected: list[str | Call]) -> None:
    assert read([text]) == expected
    if len(text) < 1000:
        assert read(list(text)) == expected


FRAGMENTS = st.sampled_from(["<tool_call>", "</tool_call>", "<", "a", "\n", " ", PRAG, ROM, "{", '"name"'])


@settings(max_examples=200, deadline=None)
@given(st.lists(FRAGMENTS).map("".join), st.data())
def test_it_does_not_matter_how_an_answer_is_cut(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = read(pieces)
    assert found == read([text])
    if "<tool_call>" not in text:
        assert "".join(part for part in found if isinstance(part, str)) == text


def test_text_is_not_held_back_without_need() -> None:
    reader = ToolCallReader()
    assert reader.push("Let me") == ["Let me"]
    assert reader.push(" see <tool") == [" see"]
    assert reader.push("box>") == [" <toolbox>"]
    assert reader.push(" Well. <tool_call>{") == [" Well."]


def test_only_the_first_call_where_others_are_not_wanted() -> None:
    assert read([f"Well. {PRAG}\n{ROM} bye"], parallel=False) == ["Well.", CALLS[0]]


# --- requests


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": ASK, **fields}


@pytest.mark.parametrize(
    ("fields", "where", "words"),
    [
        ({"tools": [WEATHER], "tool_choice": "required"}, ("tool_choice",), "cannot be enforced"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
            ("tool_choice",),
            "cannot be enforced",
        ),
        ({"tools": [{"type": "web_search"}]}, ("tools", 0, "type"), "function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, ("tools", 0, "function", "name"), "pattern"),
        ({"tools": [WEATHER] * 129}, ("tools",), "128"),
        ({"response_format": {"type": "json_object"}}, ("response_format",), "cannot be enforced"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, ("response_format",), "cannot be enforced"),
        ({"frequency_penalty": 2.5}, ("frequency_penalty",), "less than or equal to 2"),
        ({"presence_penalty": -2.5}, ("presence_penalty",), "greater than or equal to -2"),
        ({"logit_bias": {"5": 101}}, ("logit_bias", 5), "less than or equal to 100"),
        ({"logit_bias": {"the": 1}}, ("logit_bias",), "numbers of tokens"),
        ({"logit_bias": {"05": 1}}, ("logit_bias",), "numbers of tokens"),
        ({"modalities": ["text", "audio"]}, ("modalities",), "answers are text"),
        ({"audio": {"voice": "x"}}, ("audio",), "answers are text"),
        ({"functions": [WEATHER["function"]]}, ("functions",), "give tools"),
        ({"function_call": {"name": "f"}}, ("function_call",), "give tool_choice"),
        ({"web_search_options": {}}, ("web_search_options",), "no web search"),
        ({"messages": [{"role": "user"}]}, ("messages", 0), "content is missing"),
        ({"messages": [{"role": "tool", "content": "4"}]}, ("messages", 0), "tool_call_id is missing"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[]"}}]}]},
            ("messages", 0, "tool_calls", 0, "function", "arguments"),
            "JSON object",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": ""}}]}
                ]
            },
            ("messages", 0),
            "only an assistant",
        ),
    ],
)
def test_what_cannot_be_obeyed_is_refused(fields: dict[str, Any], where: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        ChatCompletionRequest.model_validate(body(**fields))
    assert caught.value.errors()[0]["loc"] == where


def test_values_that_ask_for_nothing_are_accepted() -> None:
    neutral = {
        "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "modalities": ["text"], "audio": None,
        "functions": [], "function_call": "none", "tool_choice": "auto", "response_format": {"type": "text"},
        "parallel_tool_calls": True, "web_search_options": None, "unheard_of": {"a": 1},
    }  # fmt: skip
    assert ChatCompletionRequest.model_validate(body(**neutral)).offered_tools == []


def test_the_template_is_told_of_tools_calls_and_their_results() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Prag"}'}}
    messages = [
        {"role": "user", "content": "How is the weather?", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
    ]
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}  # type: ignore[operator]
    request = ChatCompletionRequest.model_validate(body(messages=messages, tools=[strict]))
    assert [message.for_template() for message in request.messages] == [
        {"role": "user", "content": "How is the weather?", "name": "ann"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call | {"function": {"name": "get_weather", "arguments": {"city": "Prag"}}}],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
    ]
    assert request.offered_tools == [WEATHER]
    assert request.size > sum(len(message.content) for message in request.messages)
    assert ChatCompletionRequest.model_validate(body(tools=[WEATHER], tool_choice="none")).offered_tools == []


# --- through the openai client, over an engine that draws the answers written here


class Writing:
    """An engine that draws given tokens, two in a step."""

    adapter_version, max_length, max_scored = -1, 2048, 2048

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.prompts: list[tuple[int, ...]] = []
        self._left: dict[str, list[int]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._left)

    def submit(self, request: Request) -> None:
        self.prompts.append(request.prompt)
        self._left[request.id] = self.tokens[: request.sampling.max_tokens]

    def cancel(self, request_id: str) -> None:
        self._left.pop(request_id, None)

    def step(self) -> list[Token]:
        drawn = []
        for request, left in list(self._left.items()):
            for _ in range(min(2, len(left))):
                token = left.pop(0)
                drawn.append(Token(request, token, -0.5, None if left else "stop" if token == self.tokens[-1] else "length"))
            if not left:
                del self._left[request]
        return drawn

    def score(self, requests: Sequence[Scoring]) -> Iterator[list[Scored]]:
        return iter(())


TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    "{% for message in messages %}<|user|>{{ message.content }}{% for call in message.tool_calls or [] %}"
    "{{ call.function.arguments.city }}{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def engine() -> Writing:
    return Writing()


@pytest.fixture(scope="module")
def model(engine: Writing) -> ChatModel:
    tokenizer = load_tokenizer(ModelReference(TINY))
    tokenizer.chat_template = TEMPLATE
    thread = EngineThread(engine, "tiny")  # type: ignore[arg-type]
    served = ServedModel("tiny", ModelReference(TINY), max_tokens=512)
    return ChatModel(served, tokenizer, thread, EngineLimits(2048, 2048, len(tokenizer)))


@pytest.fixture(scope="module")
def client(model: ChatModel) -> Iterator[openai.OpenAI]:
    with (
        listening(create_app(Models.of({"tiny": model}))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client
    model.engine.close()


@pytest.fixture
def ask(client: openai.OpenAI, engine: Writing, model: ChatModel) -> Any:
    def asked(answer: str, **fields: Any) -> Any:
        engine.tokens = [*model.tokenizer.encode(answer, add_special_tokens=False), int(model.tokenizer.eos_token_id or 0)]
        return client.chat.completions.create(model="tiny", **{"messages": ASK, "tools": [WEATHER], **fields})

    return asked


def test_an_answer_with_calls(ask: Any, engine: Writing, model: ChatModel) -> None:
    [choice] = ask(f"Let me see.\n{PRAG}\n{ROM}").choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    assert [(call.type, call.function.name, call.function.arguments) for call in choice.message.tool_calls] == [
        ("function", call.name, call.arguments) for call in CALLS
    ]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert '"name": "get_weather"' in model.tokenizer.decode(engine.prompts[-1])
    messages = [
        *ASK,
        choice.message.to_dict(),
        {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "9°"},
    ]
    [after] = ask("It is 9°.", messages=messages).choices
    assert (after.finish_reason, after.message.content, after.message.tool_calls) == ("stop", "It is 9°.", None)
    assert "Let me see.PragRøm 😀<|user|> 9°<|assistant|>" in model.tokenizer.decode(engine.prompts[-1])
    [bare] = ask(PRAG).choices
    assert bare.message.content is None


def test_a_stream_with_calls(ask: Any) -> None:
    chunks = list(ask(f"Let me see.\n{PRAG}\n{ROM}", stream=True, n=2))
    for index in (0, 1):
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in choices) == "Let me see."
        calls = [call for choice in choices for call in choice.delta.tool_calls or []]
        assert [(call.index, call.function.name, call.function.arguments) for call in calls] == [
            (i, call.name, call.arguments) for i, call in enumerate(CALLS)
        ]
        assert choices[-1].finish_reason == "tool_calls"


def test_the_clients_own_helper_puts_a_stream_together(client: openai.OpenAI, ask: Any) -> None:
    ask(f"{PRAG}\n{ROM}")
    with client.chat.completions.stream(model="tiny", messages=ASK, tools=[WEATHER]) as stream:  # type: ignore[list-item]
        whole = stream.get_final_completion()
    assert [json.loads(call.function.arguments)["city"] for call in whole.choices[0].message.tool_calls or []] == [
        "Prag",
        "Røm 😀",
    ]


def test_what_is_no_call_stays_text(ask: Any) -> None:
    for answer in ("<tool_call>{broken}</tool_call>", "plain", HALVED):
        for stream in (False, True):
            found = ask(answer, stream=stream)
            if stream:
                choices = [choice for chunk in found for choice in chunk.choices]
                text, reason = "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason
            else:
                text, reason = found.choices[0].message.content, found.choices[0].finish_reason
            assert (text, reason) == (answer, "stop")


def test_without_tools_there_are_no_calls(ask: Any, engine: Writing, model: ChatModel) -> None:
    for fields in ({"tools": openai.omit}, {"tool_choice": "none"}):
        [choice] = ask(PRAG, **fields).choices
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (PRAG, None, "stop")
        assert "get_weather" not in model.tokenizer.decode(engine.prompts[-1])


def test_one_call_at_a_time_and_a_call_that_is_cut_off(ask: Any) -> None:
    [choice] = ask(f"{PRAG}\n{ROM}", parallel_tool_calls=False).choices
    assert len(choice.message.tool_calls) == 1
    [choice] = ask(PRAG, max_tokens=10).choices
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)


def test_a_template_that_fails_is_a_wrong_request(
    client: openai.OpenAI, model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.tokenizer, "chat_template", "{{ messages[0].content + 1 }}")
    with pytest.raises(openai.BadRequestError, match="chat template refuses"):
        client.chat.completions.create(model="tiny", messages=ASK)
