"""Adapters of several runs on one base through the web application: loaded when asked for, let go, refused. Without Ray."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from peft import IA3Config

from plumbline.api.base import ArtifactType
from plumbline.api.run import AlignmentRun
from plumbline.api.stages.adapters import AdaptersSpec
from plumbline.api.stages.serve import ServeSpec
from plumbline.artifacts import Workspace
from plumbline.errors import InvalidInput
from plumbline.external import TINY, model_identity
from plumbline.models.load import load_merged, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.plan import make_plan
from plumbline.serving import adapters as module
from plumbline.serving.adapters import Adapters, Base, ServedAdapters
from plumbline.serving.chat import ServedModel
from plumbline.serving.engine_process import EngineProcess
from plumbline.serving.engine_thread import AdapterEngine
from plumbline.serving.http import create_app
from plumbline.serving.models import Models
from plumbline.serving.openai_requests import ChatCompletionRequest
from support.adapters import adapter_artifact

MESSAGES = [{"role": "user", "content": "Reverse the letters q k d."}]
PRINTS = {name: f"{number:020x}" for number, name in enumerate(("fr", "de", "it", "dora"), 1)}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(str(tmp_path_factory.mktemp("workspace")))
    adapter_artifact(workspace, PRINTS["fr"], 1)
    adapter_artifact(workspace, PRINTS["de"], 2, kind="preference", r=8, use_rslora=True)
    adapter_artifact(workspace, PRINTS["it"], 3, target_modules=["q_proj", "down_proj"])
    adapter_artifact(workspace, PRINTS["dora"], 4, use_dora=True)
    return workspace


def described(workspace: Workspace, **limits: Any) -> ServedAdapters:
    kinds = dict.fromkeys(PRINTS, "sft") | {"de": "preference"}
    models = tuple(
        ServedModel(name, ModelReference(TINY, workspace=workspace.uri, kind=kinds[name], fingerprint=fingerprint), 64)
        for name, fingerprint in PRINTS.items()
    )
    base = ServedModel("base", ModelReference(TINY), 64)
    wanted = {"discover": False, "max_loaded": 8, "max_bytes": 10**9, "max_rank": 16, **limits}
    return ServedAdapters(base, model_identity(TINY), models, workspace=workspace.uri, **wanted)


@pytest.fixture(scope="module")
def base(workspace: Workspace) -> Iterator[Base]:
    base = Base(described(workspace), slots=6)
    yield base
    base.engine.close()


@pytest.fixture(scope="module")
def expected(workspace: Workspace) -> dict[str, str]:
    """Greedy answers by transformers alone, of each adapter merged."""
    references = {served.name: served.reference for served in described(workspace).models}
    return {name: answer(reference) for name, reference in [*references.items(), ("base", ModelReference(TINY))]}


def answer(reference: ModelReference) -> str:
    tokenizer, model = load_tokenizer(reference), load_merged(reference)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    end = tokenizer.eos_token_id
    out = model.generate(**prompt, do_sample=False, max_new_tokens=24, eos_token_id=end, pad_token_id=end)
    return str(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


class Client:
    """The application in this event loop."""

    def __init__(self, base: Base, served: ServedAdapters) -> None:
        self.adapters = Adapters(served, base)
        self.models = Models({"base": base.bare()}, self.adapters)
        self._http = httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(self.models), raise_app_exceptions=False), base_url="http://test"
        )

    async def send(self, name: str, **fields: Any) -> httpx.Response:
        body = {"model": name, "messages": MESSAGES, "temperature": 0, "max_tokens": 24, **fields}
        return await self._http.post("/v1/chat/completions", json=body, timeout=60)

    async def ask(self, name: str, **fields: Any) -> str:
        response = await self.send(name, **fields)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    async def refused(self, name: str) -> tuple[int, str, str]:
        response = await self.send(name)
        error = response.json()["error"]
        return response.status_code, error["code"], error["message"]

    async def cards(self) -> dict[str, dict[str, Any]]:
        return {card["id"]: card for card in (await self._http.get("/v1/models")).json()["data"]}

    async def loaded(self) -> set[str]:
        return {name for name, card in (await self.cards()).items() if card["loaded"] and card["parent"]}


def over(base: Base, served: ServedAdapters, test: Callable[[Client], Awaitable[None]]) -> None:
    """Run a test in an event loop, with adapters of its own on the shared base."""

    async def run() -> None:
        client = Client(base, served)
        await test(client)
        for name in list(client.adapters._loaded):
            client.adapters._let_go(name)

    asyncio.run(run())


def test_each_adapter_answers_as_merged_alone_in_one_batch(
    base: Base, workspace: Workspace, expected: dict[str, str]
) -> None:
    assert len(set(expected.values())) == len(expected)

    async def test(client: Client) -> None:
        names = ["fr", "base", "de", "it", "fr", "dora"] * 3
        assert await asyncio.gather(*map(client.ask, names)) == [expected[name] for name in names]
        kinds = {model.served.name: type(model.engine) for model in client.adapters.loaded()}
        assert kinds == {"fr": AdapterEngine, "de": AdapterEngine, "it": AdapterEngine, "dora": EngineProcess}
        assert all(model.engine.running == model.engine.tokens_in_flight == 0 for model in client.models.loaded())

    over(base, described(workspace), test)


def test_one_that_many_ask_for_is_loaded_once_even_where_the_first_leaves(
    base: Base, workspace: Workspace, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = base.load
    monkeypatch.setattr(base, "load", lambda served: loads.append(served.name) or load(served))

    async def test(client: Client) -> None:
        first = asyncio.create_task(client.models.find("fr"))
        await asyncio.sleep(0)
        first.cancel()
        answers = await asyncio.gather(*(client.ask("fr") for _ in range(5)), client.ask("base"))
        assert answers == [expected["fr"]] * 5 + [expected["base"]]
        assert loads == ["fr"]

    over(base, described(workspace), test)


def test_the_longest_unused_is_let_go_and_none_that_answers(
    base: Base, workspace: Workspace, expected: dict[str, str]
) -> None:
    async def test(client: Client) -> None:
        await client.ask("fr")
        await client.ask("de")
        await client.ask("fr")
        assert await client.ask("it") == expected["it"]
        assert await client.loaded() == {"fr", "it"}
        # Two that answer leave no room for a third.
        busy = [await client.models.find(name) for name in ("fr", "it")]
        requests = [model.read(ChatCompletionRequest(model="x", messages=MESSAGES, max_tokens=64)) for model in busy]
        answers = [model.answer(request, [], stream=True) for model, (request,) in zip(busy, requests, strict=True)]
        for running in answers:
            await anext(running)
        assert await client.refused("de") == (
            503,
            "adapters_busy",
            "The model 'de' has no room beside the 2 that answer now; try again soon.",
        )
        for running in answers:
            await running.aclose()
        assert await client.ask("de") == expected["de"]
        # Whoever found it before it was let go is still answered.
        late = await client.models.find("it")
        await client.ask("fr")
        await client.ask("de")
        assert await client.loaded() == {"fr", "de"}
        body = ChatCompletionRequest(model="it", messages=MESSAGES, max_tokens=24, temperature=0)
        pieces = [piece.text async for piece in late.answer(late.read(body)[0], [], stream=False)]
        assert "".join(pieces) == expected["it"]

    over(base, described(workspace, max_loaded=2), test)


def test_memory_is_bounded(base: Base, workspace: Workspace, expected: dict[str, str]) -> None:
    sizes = {served.name: base.load(served)[1] for served in described(workspace).models if served.name != "dora"}
    assert 0 < sizes["it"] < sizes["fr"] < sizes["de"]

    async def test(client: Client) -> None:
        for name in ("fr", "it", "fr"):
            assert await client.ask(name) == expected[name]
        assert await client.loaded() == {"fr", "it"}
        status, code, message = await client.refused("de")
        assert (status, code) == (400, "model_not_loadable")
        assert "adapters.maxMegabytes allows" in message
        # DoRA has an engine of its own, of which nothing is left once it is refused.
        for _ in range(2):
            assert "adapters.maxMegabytes allows" in (await client.refused("dora"))[2]
        for thread in [one for one in threading.enumerate() if one.name == "engine-dora"]:
            thread.join(120)
            assert not thread.is_alive()
        assert client.adapters._failed["dora"][1].__traceback__ is None  # its frames would hold the model

    over(base, described(workspace, max_bytes=sizes["fr"] + sizes["it"]), test)


def test_cards_tell_what_stands_on_the_base(base: Base, workspace: Workspace) -> None:
    async def test(client: Client) -> None:
        cards = await client.cards()
        assert list(cards) == ["base", *PRINTS]
        assert cards["base"]["parent"] is None
        assert cards["de"] | {"created": 0} == {
            "id": "de",
            "object": "model",
            "created": 0,
            "owned_by": "plumbline",
            "fingerprint": PRINTS["de"],
            "max_model_len": base.max_length,
            "parent": "base",
            "loaded": False,
        }
        await client.ask("de")
        assert (await client.cards())["de"]["loaded"]
        status, code, message = await client.refused("none")
        assert (status, code) == (404, "model_not_found")
        assert message == "The model 'none' does not exist; served here: 'base', 'fr', 'de', 'it', 'dora'."

    over(base, described(workspace), test)


def test_what_is_no_adapter_of_this_base_is_refused(base: Base, tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    made = {
        "other": adapter_artifact(workspace, "a1" * 10, 1, details={"base": "hf://org/other", "baseIdentity": "commit:1"}),
        "extended": adapter_artifact(workspace, "a2" * 10, 1, details={"weights": {"kind": "sft", "fingerprint": "b" * 20}}),
        "plain": adapter_artifact(workspace, "a3" * 10, 1, details={"adapter": None}),
        "scores": adapter_artifact(workspace, "a4" * 10, 1, type=ArtifactType.REWARD_MODEL),
        "large": adapter_artifact(workspace, "a5" * 10, 1, r=17),
        "gone": ModelReference(TINY, workspace=workspace.uri, kind="sft", fingerprint="a6" * 10),
    }
    served = ServedAdapters(
        ServedModel("base", ModelReference(TINY), 64),
        model_identity(TINY),
        tuple(ServedModel(name, reference, 64) for name, reference in made.items()),
        False,
        workspace.uri,
        8,
        10**9,
        16,
    )
    sentences = {
        "other": "is an adapter of hf://org/other, which is not what is served here",
        "extended": "is an adapter of weights or embedding rows that training made of builtin://tiny",
        "plain": f"sft/{'a3' * 10} is no adapter; serve it in a stage of its own",
        "scores": "is no adapter",
        "large": "its rank is 17, and adapters.maxRank 16; raise maxRank",
    }

    async def test(client: Client) -> None:
        for name, sentence in sentences.items():
            status, code, message = await client.refused(name)
            assert (status, code) == (400, "model_not_loadable")
            assert sentence in message
        status, code, message = await client.refused("gone")
        assert (status, code) == (503, "model_not_loadable")
        assert workspace.uri not in message  # clients need not know where it should be
        assert await client.loaded() == set()
        await client.ask("base")

    over(base, served, test)


def test_a_failure_is_told_and_tried_again_later(
    base: Base, workspace: Workspace, tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(workspace.root, tmp_path / "copy"))
    file = copied / "artifacts/sft" / PRINTS["fr"] / "adapter/adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")

    async def test(client: Client) -> None:
        assert (await client.refused("fr"))[:2] == (503, "model_not_loadable")
        file.write_bytes(whole)
        assert (await client.refused("fr"))[:2] == (503, "model_not_loadable")  # it was asked a moment ago
        monkeypatch.setattr(module, "FAILED_SECONDS", 0)
        assert await client.ask("fr") == expected["fr"]

    over(base, described(Workspace(str(copied))), test)


def run_of(workspace: Workspace, **adapters: Any) -> AlignmentRun:
    return AlignmentRun.model_validate(
        {
            "apiVersion": "plumbline.dev/v1alpha1",
            "kind": "AlignmentRun",
            "metadata": {"name": "served"},
            "spec": {
                "model": {"base": TINY},
                "workspace": {"uri": workspace.uri},
                "stages": [{"name": "serve", "serve": {"ungated": True, "adapters": adapters}}],
            },
        },
        by_alias=True,
        by_name=False,
    )


def test_a_workspaces_models_are_found_by_artifact_and_by_run(
    base: Base, workspace: Workspace, expected: dict[str, str]
) -> None:
    plan = make_plan(run_of(workspace, discover=True))
    served = ServedAdapters.of(plan, "serve")
    assert served is not None
    tuned = plan.to_json()
    tuned["run"]["spec"]["stages"] = [{"name": "tune", "sft": {}}]
    tuned["run"]["spec"]["stages"].insert(0, {"name": "curate", "curate": {"sources": [{"uri": "builtin://skills"}]}})
    tuned["fingerprints"] = {"curate": "c" * 20, "tune": PRINTS["fr"]}
    folder = Path(workspace.path("runs", "earlier"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(tuned))

    async def test(client: Client) -> None:
        assert await client.ask(f"preference/{PRINTS['de']}") == expected["de"]
        assert await client.ask("earlier/tune") == expected["fr"]
        assert await client.loaded() == {f"preference/{PRINTS['de']}", "earlier/tune"}
        for name in ("earlier/curate", "earlier/none", "later/tune", f"sft/{'0' * 20}", "../tune", f"sft/../{PRINTS['de']}"):
            assert (await client.refused(name))[:2] == (404, "model_not_found")

    over(base, served, test)
    over(base, described(workspace), lambda client: unknown(client, "earlier/tune"))  # where discovery is off


async def unknown(client: Client, name: str) -> None:
    assert (await client.refused(name))[:2] == (404, "model_not_found")


def test_the_block_of_a_stage_says_what_is_served(workspace: Workspace) -> None:
    source = {"name": "support/fr", "kind": "sft", "fingerprint": PRINTS["fr"]}
    elsewhere = {"name": "de", "kind": "preference", "fingerprint": PRINTS["de"], "workspace": "s3://bucket/other"}
    plan = make_plan(run_of(workspace, models=[source, elsewhere], baseName="plain", maxMegabytes=7, maxRank=8))
    served = ServedAdapters.of(plan, "serve")
    assert served is not None
    here, there = served.models
    assert (here.name, here.reference) == (
        "support/fr",
        ModelReference(TINY, workspace=workspace.uri, kind="sft", fingerprint=PRINTS["fr"]),
    )
    assert (there.reference.workspace, there.reference.kind) == ("s3://bucket/other", "preference")
    assert (served.base.name, served.max_bytes, served.max_rank) == ("plain", 7 * 10**6, 8)
    assert served.identity == model_identity(TINY)
    bare = make_plan(run_of(workspace))
    assert bare.fingerprints == plan.fingerprints  # another adapter is no other endpoint


def test_two_of_one_name_are_refused() -> None:
    sources = [{"name": name, "kind": "sft", "fingerprint": "a" * 20} for name in ("x", "y", "x")]
    spec = ServeSpec(adapters=AdaptersSpec.model_validate({"models": sources}, by_alias=True))
    assert spec.problems() == [("adapters.models", "two have the name 'x'; give each its own")]
    spec = ServeSpec(model_name="tuned", adapters=AdaptersSpec(base_name="tuned"))
    (problem,) = spec.problems()
    assert problem == ("adapters.baseName", "'tuned' is the served model's `modelName`; give the base another name")


def test_an_adapter_cannot_have_the_name_of_the_served_model(workspace: Workspace) -> None:
    source = {"name": "served", "kind": "sft", "fingerprint": PRINTS["fr"]}
    for block in ({"baseName": "served"}, {"models": [source]}):
        with pytest.raises(InvalidInput, match="serves its model as 'served'"):
            ServedAdapters.of(make_plan(run_of(workspace, **block)), "serve")


def test_a_released_model_shares_the_base_where_it_can(base: Base, workspace: Workspace, tmp_path: Path) -> None:
    models = {served.name: served for served in described(workspace).models}
    for name, kind, size in (("fr", AdapterEngine, True), ("dora", EngineProcess, True)):
        model, taken = base.load(models[name])
        assert isinstance(model.engine, kind)
        assert bool(taken) is size
        model.engine.close()
    bare, taken = base.load(ServedModel("again", ModelReference(TINY), 8))
    assert isinstance(bare.engine, AdapterEngine)
    assert taken == 0
    scaled = adapter_artifact(Workspace(str(tmp_path)), "e" * 20, 1, config=ia3())
    model, taken = base.load(ServedModel("ia3", scaled, 8))
    assert isinstance(model.engine, EngineProcess)
    assert taken == base.bytes
    model.engine.close()


def ia3() -> IA3Config:
    return IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        init_ia3_weights=False,
    )
