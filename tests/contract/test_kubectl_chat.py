"""`kubectl plumbline chat`: a conversation with an endpoint, of the run or a given one."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from support.observed_run import AT_WORK, Command, ObservedRun, refused, serving

pytestmark = pytest.mark.apiserver


class Endpoint(BaseHTTPRequestHandler):
    """Speaks as much of the OpenAI API as a conversation needs; repeats what it is told."""

    def do_GET(self) -> None:
        self._say({"data": [{"id": "org/tiny"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (self.path, body["model"], body["stream"]) == ("/v1/chat/completions", "org/tiny", True)
        words = [message["content"] for message in body["messages"]]
        if words[-1] == "too long":
            self._say({"error": {"message": "maximum context length is 2048"}}, 400)
            return
        self.send_response(200)
        self.end_headers()
        for piece in ("you said: ", "|".join(words)):
            event = {"choices": [{"delta": {"content": piece}}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')

    def _say(self, value: dict[str, Any], code: int = 200) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[int]:
    with serving(Endpoint) as port:
        yield port


def test_a_conversation_with_a_given_endpoint_needs_no_cluster(
    endpoint: int, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    url = f"http://127.0.0.1:{endpoint}/v1"
    assert command("chat", "any", "--endpoint", url, "--message", "hello ä") == (0, "you said: hello ä\n", "")
    source = tmp_path / "questions"
    source.write_text("one\n\ntwo\n")
    with source.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert command("chat", "any", "--endpoint", f"{url}/")[1] == "you said: one\nyou said: one|you said: one|two\n"
    said = refused(command("chat", "any", "--endpoint", url, "--message", "too long"))
    assert said.endswith("answers 400: maximum context length is 2048")
    assert "nothing answers at" in refused(
        command("chat", "any", "--endpoint", "http://127.0.0.1:9/v1", "--message", "x"), 1
    )
    assert "is no http URL" in refused(command("chat", "any", "--endpoint", "file:///etc", "--message", "x"))


def fake_kubectl(folder: Path, code: str) -> None:
    path = folder / "kubectl"
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{code}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_an_endpoint_inside_the_cluster_is_reached_by_port_forward(
    cluster: ObservedRun, endpoint: int, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "has no endpoint: it serves nothing" in refused(command("chat", cluster.name), 1)
    cluster.status(AT_WORK)
    assert "has no endpoint: its serve stage is Pending" in refused(command("chat", cluster.name), 1)
    cluster.status({"endpoint": f"http://{cluster.name}-live-serve-svc.team.svc:8000/v1"})
    arguments = tmp_path / "arguments"
    fake_kubectl(
        tmp_path,
        f"open({str(arguments)!r}, 'w').write(' '.join([*sys.argv[1:], str(os.getpid()), str(os.getpgrp())]))\n"
        f"print('Forwarding from 127.0.0.1:{endpoint} -> 8000', flush=True)\ntime.sleep(600)\n",
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command("chat", cluster.name, "--context", "test", "--message", "hello")[:2] == (0, "you said: hello\n")
    *given, pid, group = arguments.read_text().split()
    assert pid == group, "Ctrl-C, which ends an answer, does not reach it"
    assert given == [
        "port-forward",
        "--namespace=team",
        "--address=127.0.0.1",
        "--context=test",
        f"service/{cluster.name}-live-serve-svc",
        ":8000",
    ]
    assert not Path(f"/proc/{pid}").exists(), "it ends with the conversation"

    fake_kubectl(tmp_path, "sys.exit('error: services not found')\n")
    assert "cannot be forwarded: error: services not found" in refused(command("chat", cluster.name, "--message", "x"), 1)
    (tmp_path / "kubectl").unlink()
    assert "`kubectl`, which would forward its port, is not there" in refused(command("chat", cluster.name), 1)
