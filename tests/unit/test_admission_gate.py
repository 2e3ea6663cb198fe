"""Admission through a real server: keys, limits, a bounded queue, timeouts, the audit log, ids of requests."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from plumbline.api.stages.admission import API_KEYS, AdmissionSpec, ApiKeysSpec, AuditSpec
from plumbline.api.stages.serve import ServeSpec
from plumbline.errors import InvalidInput
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.serving.admission.audit import Audit
from plumbline.serving.admission.gate import SPARE, Admission, AdmissionSettings
from plumbline.serving.admission.keys import LOOK_SECONDS, ApiKey, digest, new_key, write_keys
from plumbline.serving.admission.middleware import OPEN, AdmissionMiddleware
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.http import create_app
from plumbline.serving.models import Models
from support.patience import PATIENCE, wait_for
from support.web import listening

MESSAGES: list[Any] = [{"role": "user", "content": "Reverse the letters q k d."}]
ASK = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
KEYED = ApiKeysSpec(secret="keys")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def admission(clock: Clock | None = None, *, slots: int = 4, owner: str | None = None, **spec: Any) -> Admission:
    """Admission of one replica; `keys` is the file."""
    keys = spec.pop("keys", None)
    serve = ServeSpec(
        max_ongoing_requests=slots, admission=AdmissionSpec(api_keys=KEYED if keys else None, **spec), ungated=True
    )
    settings = AdmissionSettings.of(serve, "live", owner=owner, environment={API_KEYS: str(keys)})
    return Admission.of(settings, echoes=True, clock=clock or Clock())


def file_of(path: Path, **limits: dict[str, Any]) -> dict[str, str]:
    """A file of new keys with these limits; the keys."""
    keys = {name: new_key() for name in limits}
    write_keys(path, [ApiKey(name=name, digest=digest(key), **limits[name]) for name, key in keys.items()])
    return keys


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    models = Models.of({"tiny": ChatModel.load(ServedModel("tiny", ModelReference(TINY), max_tokens=64), slots=4)})
    yield models
    models.close()


def client(url: str, key: str = "none", retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=retries)


# Keys


def test_nothing_is_answered_without_a_key_and_everything_with_one(models: Models, tmp_path: Path) -> None:
    keys = file_of(tmp_path / "keys.yaml", alice={})
    with listening(create_app(models, admission=admission(keys=tmp_path / "keys.yaml"))) as url:
        for wrong in ("none", f"{keys['alice']}x", digest(keys["alice"])):
            with pytest.raises(openai.AuthenticationError) as refused:
                client(url, wrong).chat.completions.create(**ASK)
            assert refused.value.code == "invalid_api_key"
            assert refused.value.response.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{url}/v1/models", timeout=PATIENCE).status_code == 401
        assert httpx.post(f"{url}/v1/anything-new", timeout=PATIENCE).status_code == 401
        assert httpx.get(f"{url}/healthz", timeout=PATIENCE).status_code == 200
        alice = client(url, keys["alice"])
        assert [model.id for model in alice.models.list()] == ["tiny"]
        assert alice.chat.completions.create(**ASK).choices[0].message.content
        chunks = list(alice.chat.completions.create(**ASK, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_who_put_the_model_up_asks_with_a_key_of_its_own(models: Models, tmp_path: Path) -> None:
    file_of(tmp_path / "keys.yaml", alice={})
    app = create_app(models, admission=admission(keys=tmp_path / "keys.yaml", owner="random"))
    with listening(app) as url:
        assert client(url, "random").chat.completions.create(**ASK).choices
        with pytest.raises(openai.AuthenticationError):
            client(url, digest("random")).chat.completions.create(**ASK)


def test_keys_change_while_serving(models: Models, tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.yaml", Clock()
    old = file_of(path, alice={})["alice"]
    with listening(create_app(models, admission=admission(clock, keys=path))) as url:
        assert client(url, old).models.list().data
        new = file_of(path, alice={})["alice"]
        clock.now += LOOK_SECONDS
        assert client(url, new).models.list().data
        with pytest.raises(openai.AuthenticationError):
            client(url, old).models.list()
        path.write_text("keys: [")
        clock.now += LOOK_SECONDS
        assert client(url, new).models.list().data, "a broken file changes nothing"


def test_a_model_is_never_open_by_oversight(tmp_path: Path) -> None:
    serve = ServeSpec(admission=AdmissionSpec(api_keys=KEYED))
    with pytest.raises(InvalidInput, match=r"'live'.*PLUMBLINE_API_KEYS is not set.*'keys'"):
        AdmissionSettings.of(serve, "live", environment={})
    with pytest.raises(InvalidInput, match="cannot be read"):
        AdmissionSettings.of(serve, "live", environment={API_KEYS: str(tmp_path / "none.yaml")})
    open_to_all = AdmissionSettings.of(ServeSpec(), "live", environment={API_KEYS: "/some/file"})
    assert open_to_all.keys is None, "keys are for runs that ask for them"


@settings(deadline=None)
@given(
    path=st.text(st.characters(exclude_categories=["Cs"]), max_size=30).map(lambda text: f"/{text}"),
    root=st.sampled_from(["", "/app"]),
)
def test_every_path_but_the_open_ones_needs_a_key(path: str, root: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "closed"
    folder.mkdir(exist_ok=True)
    if not (folder / "keys.yaml").exists():
        file_of(folder / "keys.yaml", alice={})
    sent: list[Any] = []
    reached = False

    async def app(*_: Any) -> None:
        nonlocal reached
        reached = True

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": root + path, "root_path": root, "headers": []}
    asyncio.run(AdmissionMiddleware(app, admission(keys=folder / "keys.yaml"))(scope, None, send))  # type: ignore[arg-type]
    assert reached == (path in OPEN)
    assert reached or sent[0]["status"] == 401


# Limits


def test_the_openai_client_reads_what_the_limits_say(models: Models, tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.yaml", Clock()
    keys = file_of(path, small={"requests_per_minute": 2}, large={})
    with listening(create_app(models, admission=admission(clock, keys=path, requests_per_minute=100))) as url:
        small = client(url, keys["small"])
        for left in (1, 0):
            answer = small.chat.completions.with_raw_response.create(**ASK)
            assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        with pytest.raises(openai.RateLimitError, match="2 requests per minute") as refused:
            small.chat.completions.create(**ASK)
        headers = refused.value.response.headers
        assert (refused.value.code, headers["retry-after"], headers["x-ratelimit-limit-requests"]) == (
            "rate_limit_exceeded",
            "30",
            "2",
        )
        assert small.models.list().data, "only what takes a model's time counts"
        assert client(url, keys["large"]).chat.completions.create(**ASK).choices
        clock.now += 30
        assert small.chat.completions.create(**ASK).choices


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_charged_as_the_answer_counts_them(models: Models, stream: bool) -> None:
    with listening(create_app(models, admission=admission(tokens_per_minute=10_000))) as url:
        asked = client(url)
        options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        answer = asked.chat.completions.create(**ASK, **options)
        usage = list(answer)[-1].usage if stream else answer.usage
        with pytest.raises(openai.BadRequestError) as refused:  # takes none, and tells what is left
            asked.chat.completions.create(**{**ASK, "max_tokens": 10**6})
        reserved = int(refused.value.response.request.headers["content-length"]) // 4  # for the second request
        left = int(refused.value.response.headers["x-ratelimit-remaining-tokens"])
        assert left == 10_000 - usage.total_tokens - reserved


def test_a_stream_that_is_left_is_charged_for_what_was_drawn(models: Models) -> None:
    gate = admission(tokens_per_minute=10_000)
    with listening(create_app(models, admission=gate)) as url:
        with client(url).chat.completions.create(**ASK, stream=True) as stream:
            next(iter(stream))
        caller = gate.callers.find(None)
        wait_for(lambda: caller.ongoing == 0)
    assert caller.tokens is not None
    assert caller.tokens.level < 10_000


# The queue


def test_a_flood_is_sent_away_in_openais_form_and_who_is_let_in_is_answered(models: Models) -> None:
    with listening(create_app(models, admission=admission(slots=2, max_queued=3))) as url:

        def ask(_: int) -> tuple[int, dict[str, Any], str]:
            answer = httpx.post(f"{url}/v1/chat/completions", json={**ASK, "max_tokens": 32}, timeout=60)
            return answer.status_code, answer.json(), answer.headers.get("retry-after", "")

        with ThreadPoolExecutor(20) as pool:
            found = list(pool.map(ask, range(40)))
        assert {status for status, _, _ in found} == {200, 429}
        refused = [(body["error"]["code"], int(after) >= 1) for status, body, after in found if status == 429]
        assert set(refused) == {("queue_full", True)}
        assert all(body["choices"][0]["finish_reason"] for status, body, _ in found if status == 200)
        assert client(url).chat.completions.create(**ASK).choices, "and the places are free again"


class Held:
    """An application whose answers wait until they are let go."""

    def __init__(self) -> None:
        self.waiting = 0
        self.go = asyncio.Event()
        self.app = Starlette(routes=[Route("/v1/{path:path}", self.answer, methods=["GET", "POST"])])

    async def answer(self, request: Request) -> Response:
        await request.body()
        if request.headers.get("x-stream"):
            return StreamingResponse(self.stream(), media_type="text/event-stream")
        self.waiting += 1
        try:
            await self.go.wait()
        finally:
            self.waiting -= 1
        return JSONResponse({})

    async def stream(self) -> AsyncIterator[str]:
        yield "data: {}\n\n"
        self.waiting += 1
        try:
            await self.go.wait()
        finally:
            self.waiting -= 1


def test_exactly_so_many_wait_as_may_and_places_come_back() -> None:
    async def run() -> None:
        held = Held()
        gate = admission(slots=2, max_queued=3)
        transport = httpx.ASGITransport(AdmissionMiddleware(held.app, gate))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as web:
            tasks = [asyncio.create_task(web.post("/v1/x")) for _ in range(9)]
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            while len(done) < 4:
                more, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                done |= more
            assert [task.result().status_code for task in done] == [429] * 4
            assert held.waiting == 5
            held.go.set()
            assert [(await task).status_code for task in pending] == [200] * 5
            assert (await web.post("/v1/x")).status_code == 200
        assert gate.backlog.ongoing == 0

    asyncio.run(run())


async def ask_and_leave(web: httpx.AsyncClient, held: Held) -> None:
    """A client that goes while its request is worked on."""
    task = asyncio.create_task(web.post("/v1/x"))
    while not held.waiting:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_client_that_leaves_gives_its_place_back() -> None:
    async def run() -> None:
        held = Held()
        gate = admission(slots=1, max_queued=0, max_concurrent_requests=1)
        transport = httpx.ASGITransport(AdmissionMiddleware(held.app, gate))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as web:
            await ask_and_leave(web, held)
            held.go.set()
            assert (await web.post("/v1/x")).status_code == 200
        assert (gate.backlog.ongoing, gate.callers.find(None).ongoing) == (0, 0)

    asyncio.run(run())


def test_a_replica_takes_in_what_it_sends_away() -> None:
    serve = ServeSpec(max_ongoing_requests=8, admission=AdmissionSpec(max_queued=2))
    assert AdmissionSettings.of(serve, "live", environment={}).places == 8 + 2 + SPARE


# Timeouts


def timed(held: Held, **spec: Any) -> AdmissionMiddleware:
    return AdmissionMiddleware(held.app, dataclasses.replace(admission(**spec), timeout=1.0))


def test_an_answer_that_takes_too_long_is_ended_with_504() -> None:
    held = Held()
    with listening(timed(held)) as url:
        answer = httpx.post(f"{url}/v1/x", json={}, timeout=PATIENCE)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert answer.json()["error"]["type"] == "server_error"
        wait_for(lambda: held.waiting == 0)


def test_a_stream_that_takes_too_long_ends_with_an_error_event() -> None:
    held = Held()
    with listening(timed(held)) as url:
        answer = httpx.post(f"{url}/v1/x", json={}, headers={"x-stream": "1"}, timeout=PATIENCE)
        first, error = answer.text.strip().split("\n\n")
        assert (answer.status_code, first) == (200, "data: {}")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "timeout"
        wait_for(lambda: held.waiting == 0)


def test_a_request_that_does_not_arrive_is_ended_with_408() -> None:
    held = Held()
    gate = timed(held)
    with listening(gate) as url:
        host, port = url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
        connection.putrequest("POST", "/v1/x")
        connection.putheader("content-length", "100")
        connection.endheaders(b"{")
        answer = connection.getresponse()
        assert (answer.status, json.load(answer)["error"]["code"]) == (408, "timeout")
        connection.close()


def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plumbline.serving.admission.middleware.LAST_WORDS_SECONDS", 0.05)

    begun = threading.Event()

    async def endless() -> AsyncIterator[bytes]:
        begun.set()
        while True:
            yield b"data: x\n\n" * 10_000

    app = Starlette(
        routes=[Route("/v1/x", lambda _: StreamingResponse(endless(), media_type="text/event-stream"), methods=["POST"])]
    )
    gate = dataclasses.replace(admission(), timeout=1.0)
    with listening(AdmissionMiddleware(app, gate)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            assert begun.wait(PATIENCE)
            wait_for(lambda: gate.backlog.ongoing == 0)


# Ids and the audit log


def test_a_request_has_an_id_that_is_told() -> None:
    held = Held()
    with listening(AdmissionMiddleware(held.app, admission())) as url:
        held.go.set()
        own = httpx.post(f"{url}/v1/x", headers={"x-request-id": "mine-1"}, timeout=PATIENCE)
        assert own.headers.get_list("x-request-id") == ["mine-1"]
        made = {
            httpx.post(f"{url}/v1/x", headers=headers, timeout=PATIENCE).headers["x-request-id"]
            for headers in ({}, {"x-request-id": "a b"})
        }
        assert len(made) == 2
        assert all(len(one) == 32 for one in made)


def test_a_failure_of_ours_is_told_with_the_id_and_without_its_cause(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: str) -> Any:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(models, "find", fail)
    with listening(create_app(models, admission=admission())) as url:
        answer = httpx.post(f"{url}/v1/chat/completions", json=ASK, headers={"x-request-id": "mine-2"}, timeout=PATIENCE)
    assert answer.status_code == 500
    assert "mine-2" in answer.json()["error"]["message"]
    assert "secret" not in answer.text


def lines(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("audit-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_audit_log_has_a_line_for_each_request_without_what_was_said(models: Models, tmp_path: Path) -> None:
    keys = file_of(tmp_path / "keys.yaml", alice={"requests_per_minute": 2})
    gate = admission(keys=tmp_path / "keys.yaml", audit=AuditSpec(folder=str(tmp_path / "audit")))
    with listening(create_app(models, admission=gate)) as url:
        alice = client(url, keys["alice"])
        answer = alice.chat.completions.create(**ASK, extra_headers={"x-request-id": "first"})
        list(alice.chat.completions.create(**ASK, stream=True))
        with pytest.raises(openai.RateLimitError):
            alice.chat.completions.create(**ASK)
        with pytest.raises(openai.AuthenticationError):
            client(url).chat.completions.create(**ASK)
        httpx.get(f"{url}/healthz", timeout=PATIENCE)
        wait_for(lambda: len(lines(tmp_path / "audit")) == 4)
    first, stream, limited, refused = found = lines(tmp_path / "audit")
    assert first.pop("time").endswith("+00:00")
    assert first.pop("seconds") >= 0
    assert answer.usage is not None
    assert first == {
        "id": "first",
        "key": "alice",
        "method": "POST",
        "path": "/v1/chat/completions",
        "model": "tiny",
        "status": 200,
        "promptTokens": answer.usage.prompt_tokens,
        "completionTokens": answer.usage.completion_tokens,
    }
    assert stream["completionTokens"] == answer.usage.completion_tokens
    assert [one["status"] for one in found] == [200, 200, 429, 401]
    assert (limited["key"], refused["key"]) == ("alice", "")
    text = json.dumps(found)
    assert "Reverse" not in text
    assert keys["alice"] not in text


def test_what_was_said_is_kept_where_that_is_wanted(models: Models, tmp_path: Path) -> None:
    gate = admission(audit=AuditSpec(folder=str(tmp_path), prompts=True))
    with listening(create_app(models, admission=gate)) as url:
        answer = client(url).chat.completions.create(**ASK)
        httpx.post(f"{url}/v1/chat/completions", content=b"no json", timeout=PATIENCE)
        wait_for(lambda: len(lines(tmp_path)) == 2)
    first, second = lines(tmp_path)
    assert (first["asked"], first["answered"]) == (MESSAGES, answer.choices[0].message.content)
    assert (second["status"], second["asked"]) == (400, None)


def test_an_audit_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"audit\.folder"):
        admission(audit=AuditSpec(folder=str(tmp_path / "file")))


def test_a_client_that_left_is_499_in_the_audit_log(tmp_path: Path) -> None:
    async def run() -> None:
        held = Held()
        gate = admission(audit=AuditSpec(folder=str(tmp_path)))
        transport = httpx.ASGITransport(AdmissionMiddleware(held.app, gate))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as web:
            await ask_and_leave(web, held)

    asyncio.run(run())
    assert [one["status"] for one in lines(tmp_path)] == [499]


def test_a_line_that_cannot_be_written_is_told_without_what_was_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    audit = Audit(AuditSpec(folder=str(tmp_path), prompts=True))
    (file,) = tmp_path.iterdir()
    file.unlink()
    tmp_path.rmdir()
    audit.write({"asked": "a secret"})
    assert "could not be written" in caplog.text
    assert "a secret" not in caplog.text + "".join(capfd.readouterr())
    audit.close()
