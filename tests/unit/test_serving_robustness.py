"""What clients can do to a server: bodies of every kind, connections of every kind, and too much at a time."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.serving.body_limit import MAX_BODY_BYTES
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.http import create_app
from plumbline.serving.metrics import Observed
from plumbline.serving.models import Models
from support.patience import wait_for
from support.served import ENDLESS, endless_model
from support.web import listening

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Reverse the letters q k d."}]
STREAMS = 1000
LONG = 50_000  # tokens; minutes of work
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    endless = endless_model(tmp_path_factory.mktemp("models") / "endless")
    served = [ServedModel("tiny", ModelReference(TINY), 64), ServedModel("endless", endless, ENDLESS)]
    models = Models.of({model.name: ChatModel.load(model, slots=16) for model in served})
    yield models
    models.close()


@pytest.fixture(scope="module")
def seen() -> list[Observed]:
    return []


@pytest.fixture(scope="module")
def url(models: Models, seen: list[Observed]) -> Iterator[str]:
    with listening(create_app(models, observers=[seen.append])) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    """The server must work as before when a test is over."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client
        assert client.get("/readyz").json()["status"] == "ok"
        assert client.post(CHAT, json=body(max_tokens=2)).json()["usage"]["completion_tokens"] == 2


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": MESSAGES, "temperature": 0, **fields}


def raw(path: str, content: bytes, **headers: str) -> bytes:
    """A request as bytes."""
    told = {"Host": "x", "Content-Type": "application/json", "Content-Length": str(len(content)), **headers}
    return "\r\n".join([f"POST {path} HTTP/1.1", *(f"{k}: {v}" for k, v in told.items()), "", ""]).encode() + content


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def wait_until(running: bool, models: Models) -> None:
    """Whether any answer is worked on; nobody waits for one of `LONG` tokens, which takes minutes."""
    wait_for(lambda: any(model.engine.running for model in models.loaded()) is running)


def check_error(response: httpx.Response, status: int) -> str:
    """The error has OpenAI's shape; gives its message."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return str(error["message"])


# --- bodies


def nested(depth: int, inside: str = "0") -> str:
    return "[" * depth + inside + "]" * depth


CALL = '{"id": "1", "function": {"name": "f", "arguments": %s}}'
BROKEN = {
    "empty": b"",
    "no JSON": b"model=tiny",
    "cut off": b'{"model": "tiny", "mess',
    "a list": b"[]",
    "a text": b'"tiny"',
    "null": b"null",
    "invalid UTF-8": b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff\xfe\xc3"}]}',
    "NUL bytes": b"\0\0\0\0",
    "UTF-16 of nothing": b"\xff\xfe",
    "nested deep": nested(200_000).encode(),
    "nested deep in a field": ('{"model": "tiny", "messages": ' + nested(900) + "}").encode(),
    "nested deep in a tool": json.dumps(body())[:-1].encode()
    + b', "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": '
    + nested(800).encode()
    + b"}}}]}",
    "nested deep in a call": json.dumps(body(messages=[]))[:-3].encode()
    + b'[{"role": "assistant", "tool_calls": ['
    + (CALL % json.dumps('{"a": ' + nested(5000) + "}")).encode()
    + b"]}]}",
    "half a character": b'{"model": "tiny", "messages": [{"role": "user", "content": "a\\ud800b"}]}',
    "half a character in a tool": json.dumps(body())[:-1].encode()
    + b', "tools": [{"type": "function", "function": {"name": "f", "description": "\\ud800"}}], "stop": "\\ud800", "seed": "x"}',
    "a number without end": b'{"model": "tiny", "messages": [], "seed": ' + b"9" * 100_000 + b"}",
    "not a number": b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    "infinite": b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "top_p": 1e999}',
    "far too many tokens": json.dumps(body(max_tokens=10**40)).encode(),
    "a text as long as allowed": json.dumps(
        body(messages=[{"role": "user", "content": "a" * (MAX_BODY_BYTES - 200)}])
    ).encode(),
    "many messages": json.dumps(body(messages=[{"role": "user", "content": "a"}] * 100_000)).encode(),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_bodies_are_the_clients_fault(client: httpx.Client, kind: str) -> None:
    for path in (CHAT, "/v1/completions", "/v1/embeddings"):
        assert check_error(client.post(path, content=BROKEN[kind], headers=JSON), 400)


def test_nul_in_a_text_is_a_character(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "a\0b"}]
    assert client.post(CHAT, json=body(messages=messages, max_tokens=2)).status_code == 200
    assert "does not exist" in check_error(client.post(CHAT, json=body(model="\0\u202e")), 404)
    assert "does not exist" in check_error(
        client.post(CHAT, content=b'{"model":"\\ud800","messages":[{"role":"user","content":"a"}]}', headers=JSON), 404
    )


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "\xff", "application/json; charset"]
)
def test_other_types_of_content_are_refused_or_read_as_json(client: httpx.Client, kind: str) -> None:
    response = client.post(CHAT, content=json.dumps(body(max_tokens=1)), headers={"Content-Type": kind.encode("latin-1")})
    if response.status_code != 200:
        assert "Content-Type: application/json" in check_error(response, 400)
    assert (response.status_code == 200) is kind.startswith("application/json")


def test_other_paths_and_methods_have_openais_shape(client: httpx.Client) -> None:
    check_error(client.get("/v1/nothing"), 404)
    check_error(client.get("/v1/models/nothing"), 404)
    wrong = client.put(CHAT, json=body())
    assert check_error(wrong, 405)
    assert wrong.headers["allow"] == "POST"
    check_error(client.delete("/v1/models/tiny"), 405)


def test_a_body_that_is_announced_too_long_is_not_read(url: str, client: httpx.Client) -> None:
    with connected(url) as connection:
        connection.sendall(raw(CHAT, b"{", **{"Content-Length": str(10 * 2**20)}))
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"type": "invalid_request_error"' in answer
    check_error(client.post(CHAT, content=b" " * (10 * 2**20), headers=JSON), 413)


def test_a_body_without_a_length_is_counted(client: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(10):
            yield b" " * 2**20

    assert str(MAX_BODY_BYTES) in check_error(client.post(CHAT, content=pieces(), headers=JSON), 413)


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 30, "²"])
def test_lengths_that_are_none(url: str, client: httpx.Client, length: str) -> None:
    with connected(url) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{{}}".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 4")


# --- connections


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_client_that_leaves_ends_the_work(
    url: str, models: Models, client: httpx.Client, seen: list[Observed], path: str, stream: bool
) -> None:
    seen.clear()
    asked = {"model": "endless", "stream": stream, "max_tokens": LONG, "n": 2, "messages": MESSAGES, "prompt": "one two"}
    with connected(url) as connection:
        connection.sendall(raw(path, json.dumps(asked).encode()))
        wait_until(True, models)
    wait_until(False, models)
    wait_for(lambda: bool(seen))
    assert [(one.model, one.status, one.failed) for one in seen] == [("endless", 499, False)]


def test_a_half_closed_connection_is_a_client_that_left(url: str, models: Models, client: httpx.Client) -> None:
    for stream in (False, True):
        with connected(url) as connection:
            connection.sendall(raw(CHAT, json.dumps(body(model="endless", stream=stream, max_tokens=LONG)).encode()))
            wait_until(True, models)
            connection.shutdown(socket.SHUT_WR)
            wait_until(False, models)


def test_clients_that_send_slowly_or_nonsense_hold_up_nobody(url: str, client: httpx.Client) -> None:
    slow = [connected(url) for _ in range(200)]
    for number, connection in enumerate(slow):
        whole = raw(CHAT, json.dumps(body(max_tokens=1)).encode())
        connection.sendall([b"", b"POST", whole[:60], whole[:-5], b"\0\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"][number % 6])
    assert client.post(CHAT, json=body(max_tokens=2)).status_code == 200
    patient = slow[3]
    patient.sendall(raw(CHAT, json.dumps(body(max_tokens=1)).encode())[-5:])
    assert patient.recv(65536).startswith(b"HTTP/1.1 200")
    for connection in slow:
        connection.close()


def test_a_client_that_does_not_read_holds_up_nobody(url: str, models: Models, client: httpx.Client) -> None:
    with connected(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(raw(CHAT, json.dumps(body(model="endless", stream=True, max_tokens=LONG)).encode()))
        wait_until(True, models)
        for _ in range(5):
            assert client.post(CHAT, json=body(model="endless", max_tokens=20)).status_code == 200
    wait_until(False, models)


def test_a_thousand_streams_at_the_same_time(url: str, models: Models, client: httpx.Client) -> None:
    parts = urlsplit(url)
    request = raw(
        CHAT,
        json.dumps(body(stream=True, max_tokens=4, stream_options={"include_usage": True})).encode(),
        Connection="close",
    )
    opened = 0
    all_open = asyncio.Event()

    async def one() -> bytes:
        nonlocal opened
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        opened += 1
        if opened == STREAMS:
            all_open.set()
        await all_open.wait()
        writer.write(request)
        found = await reader.read()
        writer.close()
        return found

    async def everyone() -> list[bytes]:
        return await asyncio.gather(*(one() for _ in range(STREAMS)))

    answers = asyncio.run(everyone())
    assert len(answers) == STREAMS
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"completion_tokens":4' in answer
        assert b"data: [DONE]" in answer
    wait_until(False, models)


# --- ready


def test_a_server_whose_engine_failed_is_neither_ready_nor_healthy(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(create_app(models)) as url, httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        for path in ("/readyz", "/healthz"):
            assert (client.get(path).status_code, client.get(path).json()["status"]) == (200, "ok")
        monkeypatch.setattr(models.loaded()[0].engine, "failure", RuntimeError("out of memory"))
        for path in ("/readyz", "/healthz"):
            assert (client.get(path).status_code, client.get(path).json()["status"]) == (503, "failed")
