"""Endpoints that a local run has left: how they are asked whether they answer, and ended."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from plumbline import local_endpoint
from plumbline.local_endpoint import PROGRAM, Record

ENDS_SLOWLY = """
import pathlib, signal, sys, threading
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())
print("ready", flush=True)
asked.wait()
record, over = map(pathlib.Path, sys.argv[1:3])
record.unlink()
threading.Event().wait(0.5)  # with its last answer
over.touch()
"""


def test_an_endpoint_has_ended_when_stop_returns_and_not_only_its_record_has_gone(tmp_path: Path) -> None:
    record, over = tmp_path / "endpoint-live.json", tmp_path / "over"
    command = [sys.executable, "-c", ENDS_SLOWLY, str(record), str(over), PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        record.write_text(json.dumps({"pid": process.pid, "serve": {"drainSeconds": 60}}))
        assert local_endpoint.stop(record)
        assert over.exists()
        assert process.wait() == 0
    assert not local_endpoint.stop(record)


class Silent(BaseHTTPRequestHandler):
    """Answers when the test is over."""

    over: threading.Event

    def do_GET(self) -> None:
        self.over.wait()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(("autoscaling", "found"), [(None, False), ({"minReplicas": 1}, False), ({"minReplicas": 0}, True)])
def test_an_endpoint_that_does_not_answer_serves_only_where_asking_it_would_bring_a_replica_up(
    autoscaling: dict[str, int] | None, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Silent.over = threading.Event()
    monkeypatch.setattr(local_endpoint, "ANSWER_SECONDS", 0.1)
    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        record: Record = {
            "url": f"http://127.0.0.1:{server.server_port}/v1",
            "model": "ours",
            "serve": {"autoscaling": autoscaling},
        }
        try:
            assert local_endpoint.answers(record) is found
        finally:
            Silent.over.set()
            server.shutdown()
            thread.join()
