"""Embeddings of an encoder through the openai client, against transformers alone."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import openai
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, BertLMHeadModel

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.external import TINY
from plumbline.models.encoder import is_encoder, load_encoder
from plumbline.models.reference import ModelReference
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.embeddings import PASS_TEXTS, EmbeddingModel, EncoderThread, _Job, in_turns, passes
from plumbline.serving.http import create_app
from plumbline.serving.models import Models, load
from plumbline.serving.openai_answers import OpenAIError
from plumbline.serving.openai_requests import EmbeddingRequest
from support.encoders import LONGEST, encoder_folder
from support.web import listening

TEXTS = ["the cat sat on the mat .", "a big dog", "cats"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def model(folder: Path) -> EmbeddingModel:
    (loaded,) = load([ServedModel("org/encoder", ModelReference(str(folder)), max_tokens=8)], slots=4)
    assert isinstance(loaded, EmbeddingModel)
    return loaded


@pytest.fixture(scope="module")
def client(model: EmbeddingModel) -> Iterator[openai.OpenAI]:
    (chat,) = load([ServedModel("tiny", ModelReference(TINY), max_tokens=8)], slots=2)
    assert isinstance(chat, ChatModel)
    models = Models.of({"org/encoder": model, "tiny": chat})  # type: ignore[dict-item]
    with (
        listening(create_app(models)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client
    models.close()


@torch.no_grad()
def expected(folder: Path, tokens: list[int], pooling: str = "mean") -> list[float]:
    """One text alone, by the definition."""
    states = AutoModel.from_pretrained(folder).eval()(torch.tensor([tokens])).last_hidden_state[0]
    vector = states.mean(0) if pooling == "mean" else states[0]
    found: list[float] = (vector / vector.norm()).tolist()
    return found


def test_vectors_are_the_mean_of_the_states_and_of_length_1(client: openai.OpenAI, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answer = client.embeddings.create(model="org/encoder", input=TEXTS)  # the client asks for base64
    assert [one.index for one in answer.data] == [0, 1, 2]
    for text, one in zip(TEXTS, answer.data, strict=True):
        assert one.embedding == pytest.approx(expected(folder, tokenizer.encode(text)), abs=1e-5)
        assert sum(x * x for x in one.embedding) == pytest.approx(1, abs=1e-5)
    tokens = sum(len(tokenizer.encode(text)) for text in TEXTS)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
    assert answer.model == "org/encoder"


def test_every_form_of_input_and_encoding(client: openai.OpenAI, folder: Path) -> None:
    tokens = [AutoTokenizer.from_pretrained(folder).encode(text) for text in TEXTS]
    whole = [
        one.embedding for one in client.embeddings.create(model="org/encoder", input=TEXTS, encoding_format="float").data
    ]
    forms: list[tuple[Any, int]] = [(TEXTS[0], 1), (tokens[0], 1), (tokens, 3)]
    for given, count in forms:
        for encoding in ("float", "base64", openai.omit):
            answer = client.embeddings.create(model="org/encoder", input=given, encoding_format=encoding, dimensions=32)  # type: ignore[arg-type]
            assert len(answer.data) == count
            first = answer.data[0].embedding
            if isinstance(first, str):
                first = numpy.frombuffer(base64.b64decode(first), "<f4").tolist()
            assert first == pytest.approx(whole[0], abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": ["a", ""]}, "input", "empty"),
        ({"input": []}, "input", "give a text"),
        ({"input": [[]]}, "input", "empty"),
        ({"input": ["a", [1]]}, "input", "give a text"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"input": "cat " * LONGEST}, "input", f"maximum context length is {LONGEST} tokens"),
        ({"input": "cat " * 10_000}, "input", "maximum context length"),
        ({"input": [[1, 10**9]]}, "input", "token 1000000000"),
        ({"input": [[-1]]}, "input", "token -1"),
        ({"dimensions": 16}, "dimensions", "32 numbers"),
        ({"encoding_format": "int8"}, "encoding_format", "base64"),
    ],
)
def test_wrong_requests_say_what_is_wrong(client: openai.OpenAI, fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.post("/embeddings", body={"model": "org/encoder", "input": "a", **fields}, cast_to=object)
    assert caught.value.param == param


def test_each_kind_of_model_refuses_the_others_work(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="use /v1/embeddings"):
        client.chat.completions.create(model="org/encoder", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.BadRequestError, match="use /v1/embeddings"):
        client.completions.create(model="org/encoder", prompt="a")
    with pytest.raises(openai.BadRequestError, match="use /v1/chat/completions"):
        client.embeddings.create(model="tiny", input="a")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="a")
    assert {card.id for card in client.models.list()} == {"org/encoder", "tiny"}


# --- batches


def test_texts_of_all_readers_go_in_turns_and_like_lengths_together() -> None:
    many, few = _Job([(1,) * (1 + i % 7) for i in range(200)]), _Job([(1,)] * 3)
    some = in_turns([many, few])
    assert len(some) == PASS_TEXTS
    assert [(job is few, place) for job, place, _ in some[:4]] == [(False, 0), (True, 0), (False, 1), (True, 1)]
    assert not few.waiting
    assert len(many.waiting) == 200 - (PASS_TEXTS - 3)
    found = passes(some)
    assert sum(map(len, found)) == PASS_TEXTS
    assert [len(text) for batch in found for *_, text in batch] == sorted(len(text) for *_, text in some)
    long = [(many, i, (1,) * 6000) for i in range(5)] + [(many, 5, (1,) * 20_000)]
    assert [len(batch) for batch in passes(long)] == [2, 2, 1, 1]


def test_batches_change_nothing_and_readers_that_left_are_forgotten(model: EmbeddingModel) -> None:
    texts = [tuple(range(5, 6 + i % 15)) for i in range(150)]

    async def everyone() -> list[list[torch.Tensor]]:
        leaving = asyncio.create_task(model.engine.embed(texts))
        await asyncio.sleep(0)
        leaving.cancel()
        found = await asyncio.gather(*(model.engine.embed(texts[i : i + 10]) for i in range(0, 150, 10)))
        assert model.engine.running == 0
        assert model.engine.tokens_in_flight == 0
        return list(found)

    found = [vector for some in asyncio.run(everyone()) for vector in some]
    for text, vector in list(zip(texts, found, strict=True))[::29]:
        assert vector.tolist() == pytest.approx(model._encoder.embed([text])[0].tolist(), abs=1e-5)


def test_a_failed_encoder_is_told_to_everyone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.excepthook", lambda _: None)  # the thread's own traceback is not what is tested
    encoder = load_encoder(ModelReference(str(folder)))
    object.__setattr__(encoder, "model", None)
    thread = EncoderThread(encoder, "broken")
    with pytest.raises(PlumblineError, match="encoder of model 'broken' failed"):
        asyncio.run(thread.embed([(7,)]))
    with pytest.raises(PlumblineError, match="failed"):
        thread.check()


def test_a_text_of_no_tokens_does_not_reach_the_encoder(folder: Path, tmp_path: Path) -> None:
    bare = changed(folder, tmp_path / "bare")
    for name, field, value in (
        ("tokenizer.json", "post_processor", None),
        ("tokenizer_config.json", "tokenizer_class", "PreTrainedTokenizerFast"),  # as its file says, and no more
    ):
        file = Path(bare.base) / name
        file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    model = EmbeddingModel.load(ServedModel("bare", bare, max_tokens=8))
    assert len(model.read(EmbeddingRequest(model="bare", input="a cat"))[0]) == 2
    with pytest.raises(OpenAIError, match="has no tokens"):
        model.read(EmbeddingRequest(model="bare", input=["a cat", " "]))
    model.engine.close()


def test_who_asks_a_closed_encoder_is_told(folder: Path) -> None:
    thread = EncoderThread(load_encoder(ModelReference(str(folder))), "gone")

    async def both() -> None:
        waiting = asyncio.create_task(thread.embed([(7,)] * (PASS_TEXTS + 1)))
        await asyncio.sleep(0)
        thread.close()
        for one in (waiting, thread.embed([(7,)])):
            with pytest.raises(PlumblineError, match="'gone' was let go; ask again"):
                await asyncio.wait_for(one, 60)

    asyncio.run(both())


def test_a_closed_encoder_ends_its_thread(folder: Path) -> None:
    before = set(threading.enumerate())
    thread = EncoderThread(load_encoder(ModelReference(str(folder))), "short")
    [own] = set(threading.enumerate()) - before
    thread.close()
    own.join(30)
    assert not own.is_alive()


# --- loading


def test_what_is_an_encoder(folder: Path, tmp_path: Path) -> None:
    config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForMaskedLM(config).save_pretrained(tmp_path / "masked")
    BertLMHeadModel(BertConfig(**{**config.to_dict(), "is_decoder": True})).save_pretrained(tmp_path / "decoder")
    found = {path: is_encoder(ModelReference(str(path))) for path in (folder, tmp_path / "masked", tmp_path / "decoder")}
    assert list(found.values()) == [True, True, False]
    assert not is_encoder(ModelReference(TINY))
    both = changed(folder, tmp_path / "both")
    (tmp_path / "both" / "config.json").write_text(json.dumps({"model_type": "bart", "is_encoder_decoder": True}))
    assert not is_encoder(both)


def changed(folder: Path, to: Path, **pooling: Any) -> ModelReference:
    shutil.copytree(folder, to)
    if pooling:
        (to / "1_Pooling").mkdir()
        (to / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    return ModelReference(str(to))


def test_pooling_is_what_the_folder_says(folder: Path, tmp_path: Path) -> None:
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    encoder = load_encoder(changed(folder, tmp_path / "cls", **modes))
    assert encoder.embed([(2, 7, 3)])[0].tolist() == pytest.approx(expected(folder, [2, 7, 3], "cls"), abs=1e-5)
    with pytest.raises(InvalidInput, match="pools by pooling_mode_max_tokens"):
        load_encoder(changed(folder, tmp_path / "max", pooling_mode_max_tokens=True))


def test_steps_that_are_not_known_are_refused_and_not_left_out(folder: Path, tmp_path: Path) -> None:
    steps = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize", "Dense")]
    reference = changed(folder, tmp_path / "steps")
    listed = Path(reference.base) / "modules.json"
    listed.write_text(json.dumps(steps[:3]))
    assert load_encoder(reference).pooling == "mean"
    listed.write_text(json.dumps(steps))
    with pytest.raises(InvalidInput, match="makes its vectors by Dense"):
        load_encoder(reference)


def test_what_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    pickled = changed(folder, tmp_path / "pickled")
    torch.save({}, Path(pickled.base) / "pytorch_model.bin")
    (Path(pickled.base) / "model.safetensors").unlink()
    with pytest.raises(InvalidInput, match="can run code"):
        load_encoder(pickled)
    deeper = changed(folder, tmp_path / "deeper")
    config = json.loads((folder / "config.json").read_text())
    (Path(deeper.base) / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(InvalidInput, match=r"weights lack encoder\.layer\.4"):
        load_encoder(deeper)
