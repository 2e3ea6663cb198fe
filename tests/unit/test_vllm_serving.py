"""`serve.engine: vllm`: what it refuses everywhere, and where vLLM is installed the same API as with our own engine."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from peft import PromptTuningConfig
from starlette.testclient import TestClient

from plumbline.api.run import AlignmentRun
from plumbline.api.stages.adapters import AdaptersSpec
from plumbline.api.stages.release import ReleaseSpec
from plumbline.api.stages.serve import ServeSpec
from plumbline.artifacts import Workspace
from plumbline.errors import InvalidInput
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.plan import make_plan
from plumbline.rollout.engine import Request, Sampling
from plumbline.rollout.vllm import PAGE_TOKENS
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.embeddings import EmbeddingModel
from plumbline.serving.engine_process import EngineProcess, HostProcess
from plumbline.serving.http import create_app
from plumbline.serving.models import Models
from plumbline.serving.release import policy
from plumbline.serving.release.controller import ReleaseArguments
from support.adapters import adapter_artifact
from support.encoders import encoder_folder

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Reverse the word: stone"}]
TEXT = "The quick brown fox jumps over the lazy dog."


def test_the_field_names_its_library_and_enters_no_fingerprint() -> None:
    asked = ServeSpec(engine="vllm")
    assert asked.libraries() == {"engine": ("vllm", "vllm")}
    assert not asked.problems()
    assert (ServeSpec().engine, ServeSpec().libraries()) == ("auto", {})
    assert "engine" in ServeSpec.unfingerprinted


def test_the_same_stage_on_another_engine_is_served_on_that_without_a_release(tmp_path: Path) -> None:
    releases = []
    for engine in ("auto", "vllm"):
        spec = {
            "model": {"base": TINY},
            "workspace": {"uri": str(tmp_path)},
            "stages": [{"name": "live", "serve": {"ungated": True, "engine": engine}}],
        }
        value = {"apiVersion": "plumbline.dev/v1alpha1", "kind": "AlignmentRun", "metadata": {"name": "small"}, "spec": spec}
        plan = make_plan(AlignmentRun.model_validate(value, by_name=False, by_alias=True))
        releases.append(ReleaseArguments.of(plan, "live", ServedModel.of(plan, "live"), holder=engine))
    before, after = releases
    assert before.version.fingerprint == after.version.fingerprint
    served = policy.begin(None, before.version, None, "before", now=0)
    for rules in (None, ReleaseSpec()):
        record = policy.begin(served, after.version, rules, "after", now=1)
        assert (record.phase, record.candidate, record.stable.model["engine"]) == ("full", None, "vllm")


def test_adapters_are_for_our_own_engine() -> None:
    ((where, what),) = ServeSpec(engine="vllm", adapters=AdaptersSpec(discover=True)).problems()
    assert (where, "set engine: auto" in what) == ("engine", True)


def test_a_replica_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vllm", "vllm.platforms"):
        monkeypatch.setitem(sys.modules, name, None)  # as Python has it for what must not be imported
    with pytest.raises(
        InvalidInput, match=r"^serve\.engine: .*pip install 'plumbline\[vllm\]' there, or set serve\.engine: auto"
    ):
        ChatModel.load(ServedModel("m", ModelReference(TINY), 8, "vllm"), slots=2)


def test_models_that_vllm_does_not_serve_here_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    prompt = adapter_artifact(Workspace(str(tmp_path / "ws")), "f" * 20, 1, config=config)
    with pytest.raises(InvalidInput, match=r"^serve\.engine: .*virtual tokens; set serve\.engine: auto"):
        ChatModel.load(ServedModel("m", prompt, 8, "vllm"), slots=2)
    encoder = ModelReference(str(encoder_folder(tmp_path / "encoder")))
    with pytest.raises(
        InvalidInput, match=r"^serve\.engine: vllm is for models that write text; .* set serve\.engine: auto"
    ):
        EmbeddingModel.load(ServedModel("m", encoder, 8, "vllm"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ChatModel]]:
    """The tiny model and one with an adapter, each in vLLM and in our own engine."""
    pytest.importorskip("vllm")
    tuned = adapter_artifact(Workspace(str(tmp_path_factory.mktemp("ws"))), "a" * 20, 3)
    loaded = {}
    for name, reference in {"plain": ModelReference(TINY), "tuned": tuned}.items():
        loaded[f"{name}-auto"] = ChatModel.load(ServedModel(f"{name}-auto", reference, 1900), slots=4)
        served = ServedModel(f"{name}-vllm", reference, 1900, "vllm")
        loaded[served.name] = ChatModel.load(served, slots=4, host=HostProcess())
    yield loaded
    for model in loaded.values():
        model.engine.close()


@pytest.fixture(scope="module")
def client(models: dict[str, ChatModel]) -> Iterator[TestClient]:
    with TestClient(create_app(Models.of(models)), raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, model: str, path: str = CHAT, **fields: Any) -> dict[str, Any]:
    asked = {"messages": MESSAGES} if path == CHAT else {"prompt": TEXT}
    response = client.post(path, json={"model": model, "temperature": 0, **asked, **fields})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("name", ["plain", "tuned"])
def test_a_chat_is_answered_as_by_our_own_engine(client: TestClient, name: str) -> None:
    """Also where an adapter is merged: greedily, with the same log-probabilities and likeliest tokens."""
    fields = {"max_tokens": 24, "logprobs": True, "top_logprobs": 3}
    own, found = (ask(client, f"{name}-{engine}", **fields) for engine in ("auto", "vllm"))
    assert found["choices"][0]["message"] == own["choices"][0]["message"]
    assert found["usage"]["total_tokens"] == own["usage"]["total_tokens"]
    there, here = (answer["choices"][0]["logprobs"]["content"] for answer in (own, found))
    assert [token["logprob"] for token in here] == pytest.approx([token["logprob"] for token in there], abs=1e-3)
    assert [[top["token"] for top in token["top_logprobs"]] for token in here] == [
        [top["token"] for top in token["top_logprobs"]] for token in there
    ]


def test_an_adapter_changes_the_answer(client: TestClient) -> None:
    plain, tuned = (ask(client, f"{name}-vllm", max_tokens=24) for name in ("plain", "tuned"))
    assert plain["choices"][0]["message"] != tuned["choices"][0]["message"]


def test_a_stream_is_the_answer_in_pieces(client: TestClient) -> None:
    whole = ask(client, "plain-vllm", max_tokens=24)["choices"][0]
    body = {"model": "plain-vllm", "messages": MESSAGES, "temperature": 0, "max_tokens": 24, "stream": True}
    with client.stream("POST", CHAT, json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == whole["message"]["content"]
    assert choices[-1]["finish_reason"] == whole["finish_reason"]


def test_seeds_stop_strings_and_several_answers(client: TestClient) -> None:
    fields = {"max_tokens": 24, "temperature": 1, "n": 3, "seed": 5}
    texts = [[choice["message"]["content"] for choice in ask(client, "plain-vllm", **fields)["choices"]] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    whole = ask(client, "plain-vllm", max_tokens=24)["choices"][0]["message"]["content"]
    stop = whole[len(whole) // 2 :][:3]
    cut = ask(client, "plain-vllm", max_tokens=24, stop=[stop])["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == (whole[: whole.index(stop)], "stop")


@pytest.mark.parametrize("name", ["plain", "tuned"])
def test_given_text_is_as_likely_as_our_own_engine_says(client: TestClient, name: str) -> None:
    fields = {"echo": True, "logprobs": 4, "max_tokens": 0, "prompt": [TEXT, TEXT[:20]]}
    own, found = (ask(client, f"{name}-{engine}", "/v1/completions", **fields) for engine in ("auto", "vllm"))
    for there, here in zip(own["choices"], found["choices"], strict=True):
        assert here["text"] == there["text"]
        assert here["logprobs"]["token_logprobs"][0] is None
        assert here["logprobs"]["token_logprobs"][1:] == pytest.approx(there["logprobs"]["token_logprobs"][1:], abs=1e-3)
        assert [set(top) for top in here["logprobs"]["top_logprobs"][1:]] == [
            set(top) for top in there["logprobs"]["top_logprobs"][1:]
        ]


def test_what_was_in_the_cache_is_told(client: TestClient) -> None:
    fields = {"prompt": [list(range(20, 320))], "max_tokens": 2}
    first, second = (ask(client, "plain-vllm", "/v1/completions", **fields) for _ in range(2))
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (first, second)]
    assert cached == [0, 2 * PAGE_TOKENS]
    assert first["choices"][0]["text"] == second["choices"][0]["text"]


def test_who_leaves_is_forgotten(models: dict[str, ChatModel]) -> None:
    """More leave than there are slots, and one that stays is answered."""
    engine = models["plain-vllm"].engine

    async def run() -> int:
        for number in range(8):
            request = Request("one id", (7, 8), Sampling(max_tokens=1900, seed=number))  # refused while it is not done
            async with aclosing(engine.tokens(request, stream=True)) as tokens:
                assert await anext(tokens)
        assert engine.running == 0
        drawn = [
            token async for some in engine.tokens(Request("a", (7,), Sampling(max_tokens=5)), stream=False) for token in some
        ]
        return len(drawn)

    assert asyncio.run(run()) <= 5
    assert isinstance(engine, EngineProcess)
    assert engine.failure is None


def test_what_vllm_does_not_do_is_this_requests_matter(client: TestClient) -> None:
    body = {"model": "plain-vllm", "messages": MESSAGES, "temperature": 0.001}
    refused = client.post(CHAT, json=body)
    assert refused.status_code == 400
    assert "at least 0.01 with vLLM" in refused.json()["error"]["message"]
    assert ask(client, "plain-vllm", max_tokens=2)["usage"]["completion_tokens"] == 2
