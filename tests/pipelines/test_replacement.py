"""`plumbline run` on an edited run whose endpoint serves: the endpoint stays and takes the new model. `plumbline rollback`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from plumbline.external import tiny_folder
from support.embedded import Runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RUN = """
apiVersion: plumbline.dev/v1alpha1
kind: AlignmentRun
metadata: {name: small}
spec:
  model: {base: "builtin://tiny"}
  workspace: {uri: WORKSPACE}
  stages:
    - name: live
      serve: {ungated: true}
"""


class Asking(threading.Thread):
    """A client that asks without a pause."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.answers, self.failed = url, 0, list[str]()
        self.over = threading.Event()

    def run(self) -> None:
        body = {"model": "small", "messages": [{"role": "user", "content": "Sort c a b."}], "max_tokens": 8}
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        while not self.over.is_set():
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    self.answers += bool(json.load(answer)["choices"])
            except OSError as error:
                self.failed.append(repr(error))


def command(runs: Runs, *arguments: str) -> tuple[int, str]:
    """Exit code and all output of another command."""
    done = subprocess.run(
        [sys.executable, "-m", "plumbline.cli", *arguments],
        capture_output=True,
        text=True,
        env=runs.environment,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def endpoint(events: list[dict[str, Any]]) -> dict[str, Any]:
    return next(event for event in events if event["event"] == "endpoint")


def test_an_edited_run_replaces_its_model_in_place_and_rollback_brings_it_back(runs: Runs, tmp_path: Path) -> None:
    file = runs.file(RUN)
    other = tmp_path / "other"
    shutil.copytree(tiny_folder(), other)
    assert command(runs, "rollback", str(file))[0] == 2  # nothing has served yet
    code, events, err = runs.run(file)
    assert code == 0, err
    first = endpoint(events)
    asking = Asking(first["url"])
    asking.start()
    try:
        code, said = command(runs, "rollback", str(file))
        assert code == 2
        assert "nothing served before it" in said

        edited = ("--set", f"model.base={other}")
        code, events, err = runs.run(file, *edited)
        assert code == 0, err
        second = endpoint(events)
        assert (second["url"], second["pid"]) == (first["url"], first["pid"])
        assert second["fingerprint"] != first["fingerprint"]
        assert second["current"]
        code, events, _ = runs.run(file, *edited)
        assert [event["stage"] for event in events if event["event"] == "cached"] == ["live"]

        code, said = command(runs, "rollback", str(file), "--stage", "live")
        assert code == 0, said
        assert f"{first['fingerprint']} serves everyone" in said
        code, events, err = runs.run(file, *edited)
        assert code == 1
        assert "was rolled back" in err
        assert "by hand" in err
        code, said = command(runs, "rollback", str(file), "--to", "unknown")
        assert code == 2
        assert f"the record knows {first['fingerprint']}, {second['fingerprint']}" in said
        code, said = command(runs, "rollback", str(file), "--to", second["fingerprint"])
        assert (code, f"{second['fingerprint']} serves everyone" in said) == (0, True), said
        asking.over.set()
        asking.join()
        assert asking.failed == []
        assert asking.answers > 20
    finally:
        asking.over.set()
        asking.join()
        command(runs, "stop", str(file))
