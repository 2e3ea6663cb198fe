"""Every request for an answer is observed once, whatever became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from plumbline.errors import PlumblineError
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.rollout.engine import Request, Sampling
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.http import create_app
from plumbline.serving.metrics import CLIENT_GONE, Observed, Observing
from plumbline.serving.models import Models
from support.served import ENDLESS, endless_model

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "abc"}], "temperature": 0, "max_tokens": 6}
TEXT = {"model": "tiny", "prompt": "abc", "temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def model() -> Iterator[ChatModel]:
    reference = ModelReference(TINY, fingerprint="f1")
    model = ChatModel.load(ServedModel("tiny", reference, max_tokens=64), slots=4)
    yield model
    model.engine.close()


@pytest.fixture
def seen() -> list[Observed]:
    return []


@pytest.fixture
def client(model: ChatModel, seen: list[Observed]) -> Iterator[TestClient]:
    app = create_app(Models.of({"tiny": model}), observers=[seen.append])
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(("route", "path", "body"), [("chat", "chat/completions", CHAT), ("text", "completions", TEXT)])
def test_whole_answers_and_streams_are_seen_alike(
    client: TestClient, seen: list[Observed], route: str, path: str, body: dict[str, Any]
) -> None:
    answer = client.post(f"/v1/{path}", json=body).json()
    client.post(f"/v1/{path}", json={**body, "stream": True})
    whole, stream = seen
    for one in seen:
        assert (one.route, one.model, one.version, one.key, one.status, one.ok) == (route, "tiny", "f1", "", 200, True)
        assert one.prompt_tokens == answer["usage"]["prompt_tokens"]
        assert one.completion_tokens == answer["usage"]["completion_tokens"] == 6
        assert one.finish_reason == "length"
    choice = answer["choices"][0]
    assert whole.text == stream.text == (choice["message"]["content"] if route == "chat" else choice["text"])
    assert whole.first_token_seconds is None
    assert whole.token_seconds is None
    assert stream.first_token_seconds is not None
    assert 0 < stream.first_token_seconds <= stream.seconds
    assert stream.token_seconds == pytest.approx((stream.seconds - stream.first_token_seconds) / 5)
    assert "text=" not in repr(whole)


def test_usage_is_streamed_only_to_those_who_want_it(client: TestClient) -> None:
    for path, body in (("chat/completions", CHAT), ("completions", TEXT)):
        assert '"usage"' not in client.post(f"/v1/{path}", json={**body, "stream": True}).text
        wanted = {**body, "stream": True, "stream_options": {"include_usage": True}}
        assert client.post(f"/v1/{path}", json=wanted).text.count('"usage"') == 1


def test_refused_requests_are_seen_and_names_that_clients_make_up_are_not_kept(
    client: TestClient, seen: list[Observed]
) -> None:
    client.post("/v1/chat/completions", json={**CHAT, "model": "made-up"})
    client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 10**6})
    client.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"})
    assert [(one.status, one.model) for one in seen] == [(404, ""), (400, "tiny"), (400, "")]
    assert not any(one.ok or one.failed for one in seen)


def test_what_is_no_request_for_an_answer_is_not_seen(client: TestClient, seen: list[Observed]) -> None:
    client.get("/v1/models")
    client.get("/healthz")
    client.post("/v1/nothing", json={})
    assert seen == []


def test_failures_are_the_servers_before_and_after_the_status_line(
    client: TestClient, seen: list[Observed], model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise PlumblineError("out of memory")
        yield

    async def crash(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")
        yield

    for broken in (fail, crash):
        monkeypatch.setattr(model, "answer", broken)
        client.post("/v1/chat/completions", json=CHAT)
    monkeypatch.setattr(model, "answer", fail)
    assert "out of memory" in client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text
    assert [one.status for one in seen] == [500, 500, 500]
    assert all(one.failed and one.model == "tiny" for one in seen)


def test_an_observer_that_fails_harms_neither_answers_nor_others(model: ChatModel, seen: list[Observed]) -> None:
    def broken(_: Observed) -> None:
        raise RuntimeError("a bug")

    app = create_app(Models.of({"tiny": model}), observers=[broken, seen.append])
    with TestClient(app) as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert len(seen) == 1


def observe(app: Any, seen: list[Observed], **scope: Any) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None: ...

    whole = {"type": "http", "path": "/v1/completions", "headers": [], **scope}
    asyncio.run(Observing(app, [seen.append])(whole, receive, send))


def test_a_client_that_leaves_is_no_failure(seen: list[Observed]) -> None:
    async def cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    async def left(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data", "more_body": True})

    with pytest.raises(asyncio.CancelledError):
        observe(cancelled, seen)
    observe(left, seen)
    assert [one.status for one in seen] == [CLIENT_GONE, CLIENT_GONE]
    assert not any(one.ok or one.failed for one in seen)


def test_the_key_is_the_one_that_admission_found_and_the_path_is_below_the_applications(seen: list[Observed]) -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["key"] = SimpleNamespace(name="team-a", digest="0")
        await send({"type": "http.response.start", "status": 429, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    observe(refuse, seen, root_path="/model", path="/model/v1/chat/completions")
    assert [(one.key, one.status, one.route) for one in seen] == [("team-a", 429, "chat")]


def test_what_was_in_the_cache_is_told_in_the_usage_and_to_observers(client: TestClient, seen: list[Observed]) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "cached words " * 20}]}
    first, again = (client.post("/v1/chat/completions", json=body).json()["usage"] for _ in range(2))
    cached = again["prompt_tokens_details"]["cached_tokens"]
    assert cached == again["prompt_tokens"] - 1  # the last token is read again, for what comes after it
    assert first["prompt_tokens_details"]["cached_tokens"] < cached
    assert seen[-1].cached_tokens == cached
    several = client.post("/v1/completions", json={**TEXT, "prompt": ["one " * 40, "one " * 40], "n": 2}).json()["usage"]
    assert several["prompt_tokens_details"]["cached_tokens"] <= several["prompt_tokens"]


def test_what_waits_is_told_from_what_is_worked_on(tmp_path: Path) -> None:
    """More requests than slots: those are the batch, the rest waits."""
    slots = 2
    model = ChatModel.load(ServedModel("endless", endless_model(tmp_path / "endless"), ENDLESS), slots)
    engine = model.engine

    async def run() -> None:
        requests = [Request(f"w{i}", (7, i), Sampling(max_tokens=ENDLESS)) for i in range(slots + 3)]
        answers = [engine.tokens(request, stream=True) for request in requests]
        firsts = [asyncio.create_task(anext(answer)) for answer in answers]
        await asyncio.wait(firsts[:slots])
        assert (engine.running, engine.waiting) == (slots + 3, 3)
        for first in firsts:
            first.cancel()
        await asyncio.gather(*firsts, return_exceptions=True)
        for answer in answers:
            await answer.aclose()

    asyncio.run(run())
    engine.close()
