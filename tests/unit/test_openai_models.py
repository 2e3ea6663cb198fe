"""The OpenAI interface without Ray: schema, text assembly, and the web application over a real model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from transformers import PreTrainedTokenizerBase

from plumbline.errors import PlumblineError
from plumbline.external import TINY
from plumbline.models.load import load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.rollout.engine import Request, Sampling, build_engine
from plumbline.serving.application import build
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.engine_loading import cache_plan
from plumbline.serving.engine_thread import EngineThread
from plumbline.serving.http import create_app
from plumbline.serving.models import Models
from plumbline.serving.openai_answers import ChatCompletionChunk, ChunkChoice, Delta, Usage
from plumbline.serving.openai_requests import ChatCompletionRequest
from plumbline.serving.text import Detokenizer, StopStrings

MESSAGES = [{"role": "user", "content": "Reverse the letters q k d."}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": MESSAGES, "temperature": 0, **fields}


# --- requests and chunks


def test_request_defaults_null_stop_and_text_parts() -> None:
    request = ChatCompletionRequest.model_validate(
        {
            "model": "m",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}],
            "stop": "END",
            "temperature": None,
            "logit_bias": {},
            "unheard_of": 1,
        }
    )
    assert request.messages[0].content == "a b"
    assert request.stop == ["END"]
    assert (request.temperature, request.top_p, request.stream, request.token_limit) == (1.0, 1.0, False, None)


def test_the_newer_token_limit_wins() -> None:
    request = ChatCompletionRequest.model_validate(body(max_tokens=3, max_completion_tokens=5))
    assert request.token_limit == ("max_completion_tokens", 5)
    assert ChatCompletionRequest.model_validate(body(max_tokens=3)).token_limit == ("max_tokens", 3)


def test_all_that_a_template_may_write_counts_as_size() -> None:
    call = {"id": "1", "function": {"name": "f" * 30, "arguments": "{}"}}
    for message, least in (
        ({"role": "user", "content": ""}, 4),
        ({"role": "user", "content": "", "name": "n" * 30}, 30),
        ({"role": "assistant", "tool_calls": [call]}, 30),
    ):
        assert ChatCompletionRequest.model_validate(body(messages=[message] * 100)).size >= 100 * least


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"n": 17}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": list("abcde")}, "stop"),
        ({"stop": ""}, "stop"),
    ],
)
def test_invalid_requests_name_the_field(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate(body(**fields))
    assert caught.value.errors()[0]["loc"][0] == where


def test_chunk_is_a_server_sent_event_without_empty_parts() -> None:
    head = {"id": "c", "created": 1, "model": "m", "system_fingerprint": None}
    event = ChatCompletionChunk(**head, choices=[ChunkChoice(delta=Delta(content="ä\n"))]).event()
    assert event.startswith("data: ")
    assert event.endswith("}\n\n")
    assert event.count("\n") == 2
    data = json.loads(event[6:])
    assert data["choices"] == [{"index": 0, "delta": {"content": "ä\n"}, "finish_reason": None}]
    assert "usage" not in data
    last = json.loads(ChatCompletionChunk(**head, choices=[], usage=Usage.of(2, 3, 1)).event()[6:])
    told = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}
    assert last["usage"] == told


# --- text


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelReference(TINY))


@pytest.mark.parametrize("text", ["plain words, 12 + 3.", "héllo 😀 naïve", "日本語 text 👩‍🚀!", " leading and trailing  "])
def test_detokenizer_gives_whole_characters_that_join_to_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([token]) for token in tokens]
    assert detokenizer.flush() == ""
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert any(pieces[:-1])
    bulk = Detokenizer(tokenizer)
    assert bulk.push(tokens) + bulk.flush() == text


def test_detokenizer_gives_an_unfinished_character_only_at_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenizer.encode("a😀", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.push([token]) for token in tokens[:-1]) == "a"
    assert "\ufffd" in detokenizer.flush()


def test_detokenizer_leaves_special_tokens_out(tokenizer: PreTrainedTokenizerBase) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push([*tokenizer.encode("ab", add_special_tokens=False), tokenizer.eos_token_id]) == "ab"


@pytest.mark.parametrize(
    ("pieces", "stops", "given", "reached"),
    [
        (["hello ", "EN", "D more"], ["END"], ["hello ", "", ""], True),
        (["hello EN", "X"], ["END"], ["hello ", "ENX"], False),
        (["a b", "c"], [], ["a b", "c"], False),
        (["xaab"], ["aab", "ab"], ["x"], True),
        (["one two"], ["two", "one"], [""], True),
        (["aa", "ab", "!"], ["aab"], ["", "a", ""], True),
        (["ab", "ab", "ac"], ["abac"], ["", "ab", ""], True),
    ],
)
def test_stop_strings(pieces: list[str], stops: list[str], given: list[str], reached: bool) -> None:
    stopper = StopStrings(stops)
    assert [stopper.push(piece) for piece in pieces] == given
    assert stopper.reached is reached
    assert stopper.flush() == ""


def test_held_back_text_comes_at_the_end() -> None:
    stopper = StopStrings(["END"])
    assert stopper.push("the EN") == "the "
    assert stopper.flush() == "EN"


def test_cache_plan_prefers_context_then_slots_then_cuts_context() -> None:
    assert cache_plan(10**9, 1000, 2048, 64) == (64, 2048)
    assert cache_plan(100 * 2048 * 1000, 1000, 2048, 128) == (100, 2048)
    assert cache_plan(8 * 2048 * 1000, 1000, 2048, 128) == (16, 1024)
    assert cache_plan(8 * 2048 * 1000, 1000, 2048, 4) == (4, 2048)
    # An adapter beside each of 128 slots would take all; it fits beside 20.
    assert cache_plan(20 * 3048 * 1000, 1000, 2048, 128, beside=1000 * 1000) == (20, 2048)
    with pytest.raises(PlumblineError, match="too few"):
        cache_plan(1000, 1000, 2048, 4)


# --- the web application


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return ChatModel.load(ServedModel("tiny", ModelReference(TINY), max_tokens=64), slots=4)


@pytest.fixture(scope="module")
def client(model: ChatModel) -> Iterator[TestClient]:
    with TestClient(create_app(Models.of({"tiny": model})), raise_server_exceptions=False) as client:
        yield client
    model.engine.close()


def ask(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json=body(**fields))
    assert response.status_code == 200, response.text
    return response.json()


def streamed(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    with client.stream("POST", "/v1/chat/completions", json=body(stream=True, **fields)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line[6:] for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])


def test_completion_and_stream_say_the_same(client: TestClient) -> None:
    for fields in ({"max_tokens": 20}, {"temperature": 1.3, "seed": 4, "max_tokens": 20}, {"stop": ["k"], "max_tokens": 20}):
        whole = ask(client, **fields)
        chunks = streamed(client, stream_options={"include_usage": True}, **fields)
        assert text_of(chunks) == whole["choices"][0]["message"]["content"]
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == whole["choices"][0]["finish_reason"]
        assert chunks[-1]["usage"] == whole["usage"]
        assert "usage" not in chunks[0]


def test_max_tokens_and_usage(client: TestClient, tokenizer: PreTrainedTokenizerBase) -> None:
    answer = ask(client, max_tokens=2)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    told = {"prompt_tokens": len(prompt), "completion_tokens": 2, "total_tokens": len(prompt) + 2}
    assert answer["usage"].items() >= told.items()
    assert answer["choices"][0]["finish_reason"] == "length"
    longer = ask(client, max_tokens=6)["choices"][0]["message"]["content"]
    assert longer.startswith(answer["choices"][0]["message"]["content"])
    assert longer != answer["choices"][0]["message"]["content"]


def test_stop_string_cuts_before_it_and_ends_the_work(client: TestClient) -> None:
    whole = ask(client)["choices"][0]["message"]["content"]
    stop = whole[len(whole) // 2]
    cut = ask(client, stop=[stop])
    assert cut["choices"][0]["message"]["content"] == whole[: whole.index(stop)]
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert client.get("/healthz").json()["models"][0]["running"] == 0


def test_seed_repeats_an_answer(client: TestClient) -> None:
    first, again, other = (ask(client, temperature=1.5, seed=s)["choices"][0]["message"]["content"] for s in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "other"}, 404, "model", "model_not_found"),
        ({"n": 17}, 400, "n", None),
        ({"top_logprobs": 21, "logprobs": True}, 400, "top_logprobs", None),
        ({"top_logprobs": 2}, 400, None, None),
        ({"messages": "hi"}, 400, "messages", None),
        ({"max_tokens": 65}, 400, "max_tokens", None),
        ({"messages": [{"role": "user", "content": "a " * 3000}]}, 400, "messages", "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": "a " * 3000}], "max_tokens": 5},
            400,
            "messages",
            "context_length_exceeded",
        ),
    ],
)
def test_errors_have_openais_shape(client: TestClient, fields: dict[str, Any], status: int, param: str, code: str) -> None:
    for stream in (False, True):
        response = client.post("/v1/chat/completions", json=body(stream=stream, **fields))
        assert response.status_code == status
        error = response.json()["error"]
        assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
        assert error["message"]


def test_broken_json_and_unknown_paths_have_openais_shape(client: TestClient) -> None:
    broken = client.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"})
    assert (broken.status_code, broken.json()["error"]["param"]) == (400, None)
    assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert client.get("/v1/models/other").status_code == 404


def test_models_and_health(client: TestClient) -> None:
    card = client.get("/v1/models").json()["data"][0]
    assert (card["id"], card["owned_by"], card["fingerprint"], card["max_model_len"]) == ("tiny", "plumbline", None, 2048)
    assert client.get("/v1/models/tiny").json() == card
    health = client.get("/healthz")
    assert (health.status_code, health.json()["status"]) == (200, "ok")


def test_failed_engine_is_told_to_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ChatModel.load(ServedModel("tiny", ModelReference(TINY), max_tokens=64), slots=2)
    monkeypatch.setattr("threading.excepthook", lambda _: None)  # the thread's own traceback is not what is tested

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.engine._engine, "step", fail)
    with TestClient(create_app(Models.of({"tiny": model})), raise_server_exceptions=False) as client:
        response = client.post("/v1/chat/completions", json=body())
        assert response.status_code == 500
        assert "out of memory" in response.json()["error"]["message"]
        assert client.get("/healthz").status_code == 503
        assert client.post("/v1/chat/completions", json=body(stream=True)).status_code == 500
    with pytest.raises(PlumblineError, match="out of memory"):
        model.engine.check()


def test_reader_that_leaves_cancels_in_the_engine() -> None:
    engine = build_engine(load_base(ModelReference(TINY)), None, [], 2, max_length=2000)
    thread = EngineThread(engine, "tiny")

    async def leave_early() -> None:
        async with aclosing(thread.tokens(Request("r", (7,), Sampling(max_tokens=1900)), stream=True)) as tokens:
            assert await anext(tokens)
            assert thread.running == 1
        assert thread.running == 0

    asyncio.run(leave_early())
    thread.close()
    thread._thread.join(30)
    assert not thread._thread.is_alive()
    assert not engine.busy


def test_build_takes_plain_arguments_as_a_ray_service_gives_them() -> None:
    models = [{"name": "tiny", "reference": {"base": TINY}, "max_tokens": 64}]
    arguments = {"models": models, "replicas": 2, "max_ongoing_requests": 8, "num_cpus": 0.5, "num_gpus": 0}
    application = call_user_app_builder_with_args_if_necessary(build, json.loads(json.dumps(arguments)))
    assert application._bound_deployment.num_replicas == 2
    with pytest.raises(ValidationError, match="replica"):
        build({**arguments, "replica": 1})
