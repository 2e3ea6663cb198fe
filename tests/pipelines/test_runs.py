"""The embedded driver end to end: gates, endpoints, other drivers and other clusters."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

from plumbline.api.stages.admission import API_KEYS
from plumbline.serving.admission.keys import ApiKey, digest, new_key, write_keys
from support.embedded import RUN, Runs

SAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "samples"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_gate_holds_serving_back_and_an_endpoint_serves(runs: Runs) -> None:
    text = RUN.replace("limit: 60", "limit: 24").replace("maxSteps: 12", "maxSteps: 2").replace("steps: 6", "steps: 2")
    file = runs.file(text.replace("baseline: base, minEffect: -1.0", "threshold: 0.99"))
    code, events, err = runs.run(file)
    assert code == 3
    assert "the gate of 'check' says fail" in err
    assert [e["stage"] for e in events if e["event"] == "failed"] == ["live"]
    assert not any(e["event"] == "endpoint" for e in events)

    keyed = "serve: {modelName: ours, admission: {apiKeys: {secret: ours}}}"
    served = runs.file(text.replace("serve: {}", keyed), "served.yaml")
    key = new_key()
    write_keys(runs.folder / "keys.yaml", [ApiKey(name="a", digest=digest(key))])
    runs.environment |= {API_KEYS: str(runs.folder / "keys.yaml")}
    code, events, err = runs.run(served)
    assert code == 0, err
    endpoint = next(e for e in events if e["event"] == "endpoint")
    try:
        assert [e["stage"] for e in events if e["event"] == "cached"] == ["data", "sft", "align"]  # the gate changed
        client = openai.OpenAI(base_url=endpoint["url"], api_key=key, max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="none").models.list()
        assert [model.id for model in client.models.list()] == ["ours"]
        question: Any = [{"role": "user", "content": "Sort the letters c a b."}]
        whole = client.chat.completions.create(model="ours", messages=question, temperature=0, max_tokens=12)
        stream = client.chat.completions.create(model="ours", messages=question, temperature=0, max_tokens=12, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert whole.choices[0].message.content
        assert "".join(pieces) == whole.choices[0].message.content
        with urllib.request.urlopen(endpoint["url"].removesuffix("/v1") + "/healthz") as answer:
            assert answer.status == 200
        code, events, _ = runs.run(served)
        assert code == 0
        assert {e["event"] for e in events if e.get("stage")} == {"cached"}
        assert next(e for e in events if e["event"] == "endpoint")["pid"] == endpoint["pid"]
    finally:
        os.kill(endpoint["pid"], signal.SIGTERM)
        while Path(f"/proc/{endpoint['pid']}").exists():
            time.sleep(0.2)


def test_two_drivers_of_one_run_do_not_collide(runs: Runs) -> None:
    file = runs.file()
    first = runs.start(file, "--until", "data")
    assert first.stdout is not None
    assert json.loads(first.stdout.readline())["event"] == "started"
    first.send_signal(signal.SIGSTOP)  # else it may be done before the second looks
    try:
        code, _, err = runs.run(file, "--until", "data")
    finally:
        first.send_signal(signal.SIGCONT)
    assert code == 1
    assert "another `plumbline run`" in err
    first.communicate(timeout=120)
    assert first.returncode == 0


def test_preference_tuning_on_an_existing_cluster(runs: Runs, ray_session: str) -> None:
    """DPO over FSDP2, continuing the adapter of `sft`, on a Ray that is not ours."""
    runs.environment |= {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    small = {"chats.curate.sources.0.limit": 200, "pairs.curate.sources.0.limit": 64, "sft.sft.maxSteps": 4}
    small |= {"align.preference.batchSize": 8, "align.preference.optimizer.learningRate": 2e-3}
    options = [word for where, value in small.items() for word in ("--set", f"stages.{where}={value}")]
    code, events, err = runs.run(
        SAMPLES / "dpo.yaml", "--workspace", str(runs.folder), "--until", "align", "--ray-address", ray_session, *options
    )
    assert code == 0, err
    metrics = next(e["metrics"] for e in events if e["event"] == "finished" and e["stage"] == "align")
    assert metrics["step"] == 8
    history = [
        json.loads(line) for line in next(runs.folder.glob("artifacts/preference/*/metrics.jsonl")).read_text().splitlines()
    ]
    assert history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # policy = reference before the first update
    assert history[-1]["rewardAccuracy"] > 0.6
