"""Completions of plain text and log-probabilities through the web application, against the model's plain forward pass."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks.benchmark import likelihoods
from plumbline.evaluation.client import Question, Sampling, ask
from plumbline.evaluation.journal import Journal
from plumbline.external import TINY
from plumbline.models.load import load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.rollout.engine import Request, Scoring, build_engine
from plumbline.rollout.engine import Sampling as Drawing
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.engine_thread import EngineThread
from plumbline.serving.http import create_app
from plumbline.serving.merging import AT_ONCE, gathered, merged
from plumbline.serving.models import Models
from plumbline.serving.text import TokenNames

TEXT = "Reverse the letters q k d, naïve 😀 friend."
SAID = [{"role": "user", "content": TEXT}]
CONTEXT = 2048


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelReference(TINY))


@pytest.fixture(scope="module")
def plain() -> PreTrainedModel:
    return load_base(ModelReference(TINY))


@pytest.fixture(scope="module")
def served() -> Iterator[ChatModel]:
    model = ChatModel.load(ServedModel("tiny", ModelReference(TINY), max_tokens=64), slots=4)
    yield model
    model.engine.close()


@pytest.fixture(scope="module")
def client(served: ChatModel) -> Iterator[TestClient]:
    with TestClient(create_app(Models.of({"tiny": served})), raise_server_exceptions=False) as client:
        yield client


def complete(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={"model": "tiny", "prompt": TEXT, "temperature": 0, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def events(client: TestClient, path: str, **fields: Any) -> list[dict[str, Any]]:
    with client.stream("POST", path, json={"model": "tiny", "temperature": 0, "stream": True, **fields}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@torch.no_grad()
def expected(plain: PreTrainedModel, tokens: list[int]) -> list[float]:
    logprobs = plain(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
    found: list[float] = logprobs.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
    return found


# --- tokens and their names


@pytest.mark.parametrize("text", ["plain words, 12 + 3.", "héllo 😀 naïve", "日本語 text 👩‍🚀!", " leading and trailing  "])
def test_names_are_the_text_where_they_are_whole_characters(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    names, tokens = TokenNames(tokenizer), tokenizer.encode(text, add_special_tokens=False)
    called = names.of(tokens, begin=True)
    offsets = names.offsets(tokens, called)
    assert names.text(tokens, begin=True) == text
    assert offsets[0] == 0
    for name, start, following in zip(called, offsets, [*offsets[1:], len(text)], strict=True):
        if "\ufffd" in name:
            assert 0 <= following - start <= 1
        else:
            assert text[start:following] == name


def test_names_of_special_tokens_are_told(tokenizer: PreTrainedTokenizerBase) -> None:
    assert TokenNames(tokenizer)[int(tokenizer.eos_token_id)] == tokenizer.eos_token


def offsets_of(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[int]:
    names = TokenNames(tokenizer)
    return names.offsets(tokens, names.of(tokens, begin=True))


# --- echo


def test_echo_tells_what_the_model_thinks_of_the_prompt(
    client: TestClient, plain: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokens = tokenizer.encode(TEXT)
    answer = complete(client, echo=True, logprobs=2, max_tokens=0)
    [choice] = answer["choices"]
    told = choice["logprobs"]
    assert (choice["text"], choice["finish_reason"], choice["index"]) == (TEXT, "length", 0)
    assert answer["object"] == "text_completion"
    assert (
        answer["usage"].items()
        >= {"prompt_tokens": len(tokens), "completion_tokens": 0, "total_tokens": len(tokens)}.items()
    )
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    assert told["token_logprobs"][1:] == pytest.approx(expected(plain, tokens), abs=1e-4)
    assert told["text_offset"] == offsets_of(tokenizer, tokens)
    for name, logprob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        if top is not None:
            assert len(top) in (1, 2, 3)  # parts of characters share a name
            assert max(top.values()) >= logprob
            assert top[name] >= logprob


def test_prompts_of_all_four_kinds(client: TestClient, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["one two", "three 😀 four"]
    ids = [tokenizer.encode(text) for text in texts]
    fields = {"echo": True, "logprobs": 1, "max_tokens": 3}
    as_texts, as_tokens = complete(client, prompt=texts, **fields), complete(client, prompt=ids, **fields)
    assert [choice["index"] for choice in as_texts["choices"]] == [0, 1]
    for i in range(2):
        alone, of_tokens = complete(client, prompt=texts[i], **fields), complete(client, prompt=ids[i], **fields)
        for other in (as_texts["choices"][i], as_tokens["choices"][i], of_tokens["choices"][0]):
            assert alone["choices"][0]["text"] == other["text"]
            assert alone["choices"][0]["logprobs"]["tokens"] == other["logprobs"]["tokens"]
            assert alone["choices"][0]["logprobs"]["text_offset"] == other["logprobs"]["text_offset"]
            ours, theirs = (one["logprobs"]["token_logprobs"][1:] for one in (alone["choices"][0], other))
            assert ours == pytest.approx(theirs, abs=1e-4)
    assert as_texts["usage"] == as_tokens["usage"]
    assert as_texts["usage"]["completion_tokens"] == 6


def test_the_answer_continues_the_text_and_its_logprobs(
    client: TestClient, plain: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    answer = complete(client, max_tokens=5, logprobs=1, echo=True)["choices"][0]
    bare = complete(client, max_tokens=5, logprobs=1)["choices"][0]
    tokens = tokenizer.encode(TEXT)
    out = plain.generate(
        torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens)), do_sample=False, max_new_tokens=5, pad_token_id=0
    )
    drawn = out[0, len(tokens) :].tolist()
    assert answer["text"] == TEXT + bare["text"]
    assert answer["text"] == tokenizer.decode(out[0], skip_special_tokens=True)
    assert bare["logprobs"]["token_logprobs"] == pytest.approx(expected(plain, tokens + drawn)[-len(drawn) :], abs=1e-4)
    assert answer["logprobs"]["tokens"][len(tokens) :] == bare["logprobs"]["tokens"]
    assert [at - len(TEXT) for at in answer["logprobs"]["text_offset"][len(tokens) :]] == bare["logprobs"]["text_offset"]
    for logprob, top in zip(bare["logprobs"]["token_logprobs"], bare["logprobs"]["top_logprobs"], strict=True):
        assert logprob == max(top.values())  # it was greedy; harnesses look for exactly this


def test_echo_from_gives_the_choices_alone(
    client: TestClient, plain: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    context, choices = "The opposite of cold is", [" hot", " warm and", "x"]
    answer = complete(
        client, prompt=[context + c for c in choices], echo=True, logprobs=0, max_tokens=0, echo_from=len(context)
    )
    number = len(tokenizer.encode(context))
    for text, choice in zip(choices, answer["choices"], strict=True):
        tokens = tokenizer.encode(context + text)
        assert choice["text"] == text
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected(plain, tokens)[number - 1 :], abs=1e-4)
        assert choice["logprobs"]["top_logprobs"] is None
        assert choice["logprobs"]["text_offset"] == offsets_of(tokenizer, tokens)[number:]


def test_without_a_context_the_first_token_comes_after_the_end_of_another_text(
    client: TestClient, plain: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokens = tokenizer.encode("Yes.")
    for prompt in ("Yes.", tokens):
        [choice] = complete(client, prompt=prompt, echo=True, logprobs=0, max_tokens=0, echo_from=0)["choices"]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(
            expected(plain, [tokenizer.eos_token_id, *tokens]), abs=1e-4
        )
        assert choice["text"] == "Yes."


def test_a_context_that_is_the_whole_text_leaves_its_last_token(
    client: TestClient, tokenizer: PreTrainedTokenizerBase
) -> None:
    [choice] = complete(client, prompt="a b c", echo=True, logprobs=0, max_tokens=0, echo_from=99)["choices"]
    assert len(choice["logprobs"]["token_logprobs"]) == 1


def test_one_token_has_no_probability(client: TestClient) -> None:
    [choice] = complete(client, prompt=[7], echo=True, logprobs=1, max_tokens=0)["choices"]
    assert choice["logprobs"]["token_logprobs"] == choice["logprobs"]["top_logprobs"] == [None]


def test_long_prompts_lose_their_beginning_where_that_is_asked_for(
    client: TestClient, plain: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    context = "word " * 1500
    tokens = tokenizer.encode(context + "end")
    assert len(tokens) > CONTEXT + 1
    fields = {"echo": True, "logprobs": 0, "max_tokens": 0, "echo_from": len(context.rstrip())}
    refused = client.post("/v1/completions", json={"model": "tiny", "prompt": context + "end", **fields})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    [choice] = complete(client, prompt=context + "end", truncate_prompt_tokens=-1, **fields)["choices"]
    told = choice["logprobs"]["token_logprobs"]
    assert told == pytest.approx(expected(plain, tokens[-CONTEXT - 1 :])[-len(told) :], abs=1e-4)
    assert choice["prompt_tokens_cut"] == len(tokens) - CONTEXT - 1
    [short] = complete(client, prompt=tokens, truncate_prompt_tokens=3, echo=True, logprobs=0, max_tokens=0)["choices"]
    assert len(short["logprobs"]["tokens"]) == 3
    assert short["text"] == TokenNames(tokenizer).text(tokens[-3:])
    [room] = complete(client, prompt=tokens, truncate_prompt_tokens=-1, max_tokens=4)["choices"]
    assert room["prompt_tokens_cut"] == len(tokens) - CONTEXT + 4


# --- answers


def test_default_length_stop_and_several_answers(client: TestClient) -> None:
    assert complete(client)["usage"]["completion_tokens"] <= 16
    whole = complete(client, max_tokens=20)["choices"][0]["text"]
    stop = whole[len(whole) // 2]
    [cut] = complete(client, max_tokens=20, stop=stop)["choices"]
    assert (cut["text"], cut["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    answer = complete(client, prompt=["a b", "c d"], n=3, temperature=1.5, seed=5, max_tokens=8)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert len({choice["text"] for choice in answer["choices"][:3]}) > 1
    assert (
        complete(client, prompt=["a b", "c d"], n=3, temperature=1.5, seed=5, max_tokens=8)["choices"] == answer["choices"]
    )


def test_a_space_before_the_answer_is_the_answers(client: TestClient) -> None:
    prompts = ["Reverse the letters", "a b c d", "one two"]
    answers = complete(client, prompt=prompts, max_tokens=12)["choices"]
    echoed = complete(client, prompt=prompts, max_tokens=12, echo=True)["choices"]
    assert any(choice["text"].startswith(" ") for choice in answers)
    for prompt, choice, echo in zip(prompts, answers, echoed, strict=True):
        assert echo["text"] == prompt + choice["text"]


@pytest.mark.parametrize(
    "fields", [{}, {"echo": True, "logprobs": 1}, {"n": 2, "seed": 3, "temperature": 1.2, "logprobs": 0}]
)
def test_a_stream_says_the_same(client: TestClient, fields: dict[str, Any]) -> None:
    fields = {"prompt": ["one 😀", "two"], "max_tokens": 12, "temperature": 0, **fields}
    whole = complete(client, **fields)
    chunks = events(client, "/v1/completions", stream_options={"include_usage": True}, **fields)
    assert chunks[-1]["usage"] == whole["usage"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    for choice in whole["choices"]:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]
        if choice["logprobs"] is not None:
            for name in ("tokens", "text_offset", "token_logprobs"):
                joined = [one for part in parts for one in part["logprobs"][name]]
                values = choice["logprobs"][name]
                assert joined[1:] == (pytest.approx(values[1:], abs=1e-4) if name == "token_logprobs" else values[1:])


def test_an_echo_alone_can_be_streamed(client: TestClient) -> None:
    [chunk] = events(client, "/v1/completions", prompt="a b", max_tokens=0, echo=True, logprobs=0)
    assert (chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) == ("a b", "length")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": []}, "prompt", "none may be left out"),
        ({"prompt": ""}, "prompt", "no tokens"),
        ({"prompt": [[]]}, "prompt", "no tokens"),
        ({"prompt": ["a", [1]]}, "prompt", "list of"),
        ({"prompt": [1, "a"]}, "prompt", "list of"),
        ({"prompt": [True]}, "prompt", "list of"),
        ({"prompt": [1.5]}, "prompt", "list of"),
        ({"prompt": {"a": 1}}, "prompt", "list of"),
        ({"prompt": [522]}, "prompt", "token 522 must be 0 to 521"),
        ({"prompt": [-1]}, "prompt", "token -1"),
        ({"prompt": [10**30]}, "prompt", "token 1000"),
        ({"prompt": "\ud800"}, "prompt", "half a character"),
        ({"prompt": "a " * 3000}, "prompt", "maximum context length is 2048"),
        ({"prompt": ["a"] * 600, "n": 2}, None, "at most 1024"),
        ({"max_tokens": 0}, None, "needs echo"),
        ({"max_tokens": -1}, "max_tokens", "0"),
        ({"max_tokens": 65}, "max_tokens", "at most 64"),
        ({"logprobs": 6}, "logprobs", "5"),
        ({"suffix": "x"}, "suffix", "leave it out"),
        ({"best_of": 3}, None, "best_of 3 must be n"),
        ({"echo_from": 3}, None, "echo_from needs echo"),
        ({"truncate_prompt_tokens": 0}, None, ""),
        ({"temperature": math.nan}, "temperature", ""),
        ({"stop": [""]}, None, ""),
        ({"n": 0}, "n", ""),
        ({"logit_bias": {"522": 1}}, "logit_bias", "token 522 must be 0 to 521"),
        ({"presence_penalty": 3}, "presence_penalty", "2"),
        ({"frequency_penalty": math.inf}, "frequency_penalty", ""),
    ],
)
def test_errors_have_openais_shape(client: TestClient, fields: dict[str, Any], param: str | None, words: str) -> None:
    for stream in (False, True):
        text = json.dumps({"model": "tiny", "prompt": "a", "stream": stream, **fields})
        response = client.post("/v1/completions", content=text, headers={"Content-Type": "application/json"})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert words in error["message"]
        assert error["type"] == "invalid_request_error"
        assert param is None or error["param"] == param
    assert client.get("/healthz").status_code == 200


def test_half_a_character_in_a_chat_is_refused(client: TestClient) -> None:
    text = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "a \ud800"}]})
    response = client.post("/v1/chat/completions", content=text, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")


# --- chats


def test_chats_tell_logprobs_and_give_several_answers(
    client: TestClient, plain: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    messages = [{"role": "user", "content": "Reverse the letters q k d."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    body = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    answer = client.post("/v1/chat/completions", json=body).json()
    told = answer["choices"][0]["logprobs"]["content"]
    assert len(told) == answer["usage"]["completion_tokens"]
    text = "".join(one["token"] for one in told).removesuffix(str(tokenizer.eos_token))
    assert text == answer["choices"][0]["message"]["content"]
    with torch.no_grad():
        first = plain(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).topk(3).values.tolist()
    assert [one["logprob"] for one in told[0]["top_logprobs"]] == pytest.approx(first, abs=1e-4)
    for one in told:
        assert one["bytes"] == list(one["token"].encode())
        assert len(one["top_logprobs"]) == 3
        assert one["top_logprobs"][0]["logprob"] == one["logprob"]
    several = client.post("/v1/chat/completions", json={**body, "n": 4, "temperature": 1.5, "seed": 1}).json()
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert len({choice["message"]["content"] for choice in several["choices"]}) > 1
    fields = {**body, "n": 4, "temperature": 1.5, "seed": 1}
    chunks = [chunk["choices"][0] for chunk in events(client, "/v1/chat/completions", **fields)]
    for choice in several["choices"]:
        parts = [chunk for chunk in chunks if chunk["index"] == choice["index"]]
        assert "".join(part["delta"].get("content", "") for part in parts) == choice["message"]["content"]
        told = [one["token"] for part in parts for one in (part.get("logprobs") or {"content": []})["content"]]
        assert told == [one["token"] for one in choice["logprobs"]["content"]]


# --- our own client


def test_the_client_of_evaluations_gets_the_likelihoods(
    served: ChatModel, plain: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    server = uvicorn.Server(uvicorn.Config(create_app(Models.of({"tiny": served})), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        examples = "Question: what is cold?\nAnswer: ice\n\n"
        contexts = [
            f"{examples}Question: what is {word}?\nAnswer:{end}" for word in ("hot", "red", "wet") for end in ("", " ")
        ]
        choices = (" fire", " blood", " water and more", "😀")
        asked = [
            Question("tiny", "f", [{"role": "user", "content": c}], Sampling(0, 1, 1), tuple(choices)) for c in contexts
        ]
        with Journal(str(tmp_path)) as journal:
            replies = ask(f"http://127.0.0.1:{port}/v1", asked, concurrency=4, journal=journal)
    finally:
        server.should_exit = True
        thread.join(30)
    for context, reply in zip(contexts, replies, strict=True):
        assert reply.finish_reason == "stop"
        number = len(tokenizer.encode(context.rstrip()))
        sums = [sum(expected(plain, tokenizer.encode(context + choice))[number - 1 :]) for choice in choices]
        assert likelihoods(reply.text) == pytest.approx(sums, abs=1e-3)


# --- the thread and several answers at once


def test_scores_come_between_tokens_and_a_reader_that_leaves_is_forgotten() -> None:
    engine = build_engine(load_base(ModelReference(TINY)), None, [], 2, max_length=2000)
    thread = EngineThread(engine, "tiny")

    async def both() -> None:
        stream = thread.tokens(Request("r", (7,), Drawing(max_tokens=1900)), stream=True)
        assert await anext(stream)
        found = await thread.scores([Scoring("a", (7, 8, 9)), Scoring("b", (7, 8, 10), 2)])
        assert [one.request_id for one in found] == ["a", "b"]
        assert [len(one.logprobs) for one in found] == [2, 1]
        assert await thread.scores([]) == []
        assert thread.running == 1  # the answer goes on
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(thread.scores([Scoring("long", tuple(range(300)) * 6)]), 1e-6)
        assert thread.running == 1
        await stream.aclose()

    asyncio.run(both())
    thread.close()
    thread._thread.join(30)
    assert not thread._thread.is_alive()


def test_a_failed_engine_fails_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ChatModel.load(ServedModel("tiny", ModelReference(TINY), max_tokens=64), slots=2)
    monkeypatch.setattr("threading.excepthook", lambda _: None)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.engine._engine, "score", fail)
    with TestClient(create_app(Models.of({"tiny": model})), raise_server_exceptions=False) as client:
        for stream in (False, True):
            body = {"model": "tiny", "prompt": "a b", "echo": True, "logprobs": 0, "max_tokens": 0, "stream": stream}
            assert "out of memory" in client.post("/v1/completions", json=body).json()["error"]["message"]


def test_merged_answers_end_together() -> None:
    closed: list[str] = []

    async def source(name: str, number: int, fails: bool = False) -> AsyncGenerator[str, None]:
        try:
            for i in range(number):
                await asyncio.sleep(0)
                yield f"{name}{i}"
            if fails:
                raise ValueError(name)
        finally:
            closed.append(name)

    async def run() -> None:
        found = [one async for one in merged([source("a", 3), source("b", 1)])]
        assert sorted(found) == [(0, "a0"), (0, "a1"), (0, "a2"), (1, "b0")]
        with pytest.raises(ValueError, match="c"):
            [one async for one in merged([source("c", 1, fails=True), source("d", 10**6)])]
        early = merged([source("e", 10**6), source("f", 10**6)])
        await anext(early)
        await early.aclose()
        with pytest.raises(ValueError, match="bad"):
            await gathered([asyncio.sleep(1000), failing()])

    async def failing() -> None:
        raise ValueError("bad")

    asyncio.run(run())
    assert sorted(closed) == list("abcdef")


@pytest.mark.parametrize("fields", [{"top_p": 1e-300}, {"temperature": 1e-38}, {"temperature": 1e-30, "top_p": 1e-9}])
def test_values_that_float32_takes_for_0_draw_the_likeliest_and_end_nothing(
    client: TestClient, fields: dict[str, Any]
) -> None:
    greedy = complete(client, max_tokens=6)["choices"][0]["text"]
    assert complete(client, max_tokens=6, **{"temperature": 1.0, **fields})["choices"][0]["text"] == greedy
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(("path", "asked"), [("completions", {"prompt": TEXT}), ("chat/completions", {"messages": SAID})])
def test_biases_and_penalties_are_obeyed(
    client: TestClient, tokenizer: PreTrainedTokenizerBase, path: str, asked: dict[str, Any]
) -> None:
    def tokens(**fields: Any) -> list[str]:
        wanted = {"logprobs": 1} if path == "completions" else {"logprobs": True}
        body = {"model": "tiny", "temperature": 0, "max_tokens": 8, **asked, **wanted, **fields}
        found = client.post(f"/v1/{path}", json=body)
        assert found.status_code == 200, found.text
        told = found.json()["choices"][0]["logprobs"]
        return told["tokens"] if path == "completions" else [one["token"] for one in told["content"]]

    a, b = tokenizer.convert_ids_to_tokens([40, 41])
    assert tokens(logit_bias={"40": 100}) == [a] * 8
    both = {"logit_bias": {"40": 100, "41": 99}}
    of_both = [tokens(**both, **penalty) for penalty in ({}, {"presence_penalty": 2}, {"frequency_penalty": 2})]
    assert of_both[0] == [a] * 8
    assert set(of_both[1]) == set(of_both[2]) == {a, b}
    first = tokens()[0]
    banned = {str(token): -100 for token in range(522) if tokenizer.decode(token) == first}
    assert first not in tokens(logit_bias=banned)
    answer = client.post(f"/v1/{path}", json={"model": "tiny", **asked, "logit_bias": {"999999": 1}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logit_bias")


def test_seeds_of_any_sign_give_answers_of_their_own(client: TestClient) -> None:
    texts = [c["text"] for c in complete(client, max_tokens=12, temperature=1.5, n=3, seed=-1)["choices"]]
    assert len(set(texts)) == 3


def test_names_that_cannot_be_written_and_far_too_long_texts_are_refused(client: TestClient) -> None:
    unknown = client.post(
        "/v1/completions", content=b'{"model": "\\ud800", "prompt": "x"}', headers={"content-type": "application/json"}
    )
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    long = "word " * 200_000
    for path, field in (
        ("completions", {"prompt": long}),
        ("chat/completions", {"messages": [{"role": "user", "content": long}]}),
    ):
        refused = client.post(f"/v1/{path}", json={"model": "tiny", **field})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_what_an_engine_refuses_is_one_readers_matter() -> None:
    model = load_base(ModelReference(TINY))
    engine = build_engine(model, None, [0], 2, max_length=64)
    thread = EngineThread(engine, "tiny")
    unknown = model.get_input_embeddings().weight.shape[0]

    async def run() -> None:
        async def answer(request: Request) -> int:
            return sum([len(tokens) async for tokens in thread.tokens(request, stream=False)])

        good = asyncio.create_task(answer(Request("good", (5, 6), Drawing(max_tokens=8))))
        with pytest.raises(InvalidInput, match="token ids"):
            await answer(Request("bad", (unknown,), Drawing(max_tokens=8)))
        scores = asyncio.create_task(thread.scores([Scoring(f"g{i}", (5, 6, 7 + i), 1) for i in range(100)]))
        with pytest.raises(InvalidInput, match="token ids"):
            await thread.scores([Scoring("b", (5, unknown), 1)])
        assert len(await scores) == 100
        assert 1 <= await good <= 8
        assert (thread.failure, thread.running) == (None, 0)

    asyncio.run(run())
    thread.close()


def test_no_more_than_some_answers_of_one_request_are_under_way() -> None:
    most = running = 0

    async def work(number: int) -> int:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    async def pieces(number: int) -> AsyncGenerator[int, None]:
        for _ in range(2):
            yield await work(number)

    async def run() -> None:
        assert await gathered(work(i) for i in range(3 * AT_ONCE)) == list(range(3 * AT_ONCE))
        told = [one async for one in merged([pieces(i) for i in range(3 * AT_ONCE)])]
        assert sorted(told) == sorted((i, i) for i in range(3 * AT_ONCE) for _ in range(2))

    asyncio.run(run())
    assert most <= AT_ONCE
