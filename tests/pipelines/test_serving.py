"""The Ray Serve application through the openai client: several models, one of them with an adapter."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from plumbline.artifacts import Workspace
from plumbline.errors import InvalidInput
from plumbline.external import TINY, model_identity
from plumbline.models.load import load_merged, load_tokenizer
from plumbline.models.reference import ModelReference
from support.adapters import adapter_artifact
from support.encoders import encoder_folder
from support.patience import wait_for
from support.served import ENDLESS, endless_model

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

MESSAGES = [{"role": "user", "content": "Reverse the letters q k d."}]
SLOTS = 4


@dataclass(frozen=True)
class Served:
    client: openai.OpenAI
    url: str
    tuned: ModelReference
    adapter: ModelReference

    def ask(self, model: str = "base", **fields: Any) -> Any:
        fields = {"temperature": 0, "max_tokens": 24, "messages": MESSAGES, **fields}
        return self.client.chat.completions.create(model=model, **fields)

    def running(self) -> int:
        with urllib.request.urlopen(self.url.replace("/v1", "/healthz"), timeout=120) as response:
            return sum(model["running"] for model in json.load(response)["models"])


@pytest.fixture(scope="module")
def served(ray_session: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from plumbline.serving.adapters import ServedAdapters
    from plumbline.serving.application import ServedModel
    from plumbline.serving.local import deployment

    workspace = Workspace(str(tmp_path_factory.mktemp("workspace")))
    tuned = adapter_artifact(workspace, "f" * 20, 0)
    other = ServedModel("support/fr", adapter_artifact(workspace, "e" * 20, 1, kind="preference", r=8), 64)
    adapters = ServedAdapters(
        ServedModel("plain", ModelReference(TINY), 64), model_identity(TINY), (other,), False, workspace.uri, 4, 10**9, 16
    )
    endless = endless_model(tmp_path_factory.mktemp("models") / "endless")
    models = [
        ServedModel("base", ModelReference(TINY), 64),
        ServedModel("org/tuned", tuned, 64),
        ServedModel("endless", endless, ENDLESS),
        ServedModel("encoder", ModelReference(str(encoder_folder(tmp_path_factory.mktemp("encoder")))), 64),
    ]
    with deployment(models, application="test", port=None, replicas=1, max_ongoing_requests=SLOTS, adapters=adapters) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
        yield Served(client, url, tuned, other.reference)
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


def expected(reference: ModelReference, max_tokens: int = 24) -> str:
    """Greedy answer by transformers alone."""
    tokenizer, model = load_tokenizer(reference), load_merged(reference)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    end = tokenizer.eos_token_id
    out = model.generate(**prompt, do_sample=False, max_new_tokens=max_tokens, eos_token_id=end, pad_token_id=end)
    return tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def test_each_model_answers_as_transformers_does_with_its_adapter(served: Served) -> None:
    base, tuned = served.ask("base"), served.ask("org/tuned")
    assert base.choices[0].message.content == expected(ModelReference(TINY))
    assert tuned.choices[0].message.content == expected(served.tuned)
    assert base.choices[0].message.content != tuned.choices[0].message.content
    assert (base.system_fingerprint, tuned.system_fingerprint) == (None, served.tuned.fingerprint)


def test_an_adapter_is_loaded_when_it_is_asked_for(served: Served) -> None:
    assert not served.client.models.retrieve("support/fr").loaded
    answer = served.ask("support/fr")
    assert answer.choices[0].message.content == expected(served.adapter)
    assert answer.system_fingerprint == served.adapter.fingerprint
    card = served.client.models.retrieve("support/fr")
    assert (card.loaded, card.parent) == (True, "plain")
    assert served.ask("plain").choices[0].message.content == expected(ModelReference(TINY))


def test_stream_gives_the_same_text_and_usage(served: Served) -> None:
    whole = served.ask("org/tuned")
    chunks = list(served.ask("org/tuned", stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_limits_and_stop_strings(served: Served) -> None:
    short = served.ask(max_tokens=3)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (3, "length")
    whole = served.ask().choices[0].message.content
    stop = whole[len(whole) // 2]
    cut = served.ask(stop=stop)
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_models_are_listed_with_their_fingerprints(served: Served) -> None:
    cards = {card.id: card for card in served.client.models.list()}
    assert set(cards) == {"base", "org/tuned", "endless", "plain", "support/fr", "encoder"}
    assert {card.owned_by for card in cards.values()} == {"plumbline"}
    assert cards["org/tuned"].fingerprint == served.tuned.fingerprint
    assert served.client.models.retrieve("org/tuned") == cards["org/tuned"]


def test_an_encoder_makes_embeddings_and_no_text(served: Served) -> None:
    [vector] = served.client.embeddings.create(model="encoder", input="the cat sat .").data
    assert sum(x * x for x in vector.embedding) == pytest.approx(1, abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="use /v1/embeddings"):
        served.ask("encoder")


def test_wrong_requests_raise_openais_errors(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        served.ask("other")
    with pytest.raises(openai.BadRequestError, match="n: ") as caught:
        served.ask(n=17)
    assert caught.value.param == "n"
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048") as caught:
        served.ask(messages=[{"role": "user", "content": "a " * 3000}])
    assert caught.value.code == "context_length_exceeded"


def test_completions_of_plain_text_and_their_logprobs(served: Served) -> None:
    fields: dict[str, Any] = {"model": "org/tuned", "prompt": ["one two", "three"], "temperature": 0, "max_tokens": 6}
    whole = served.client.completions.create(**fields, echo=True, logprobs=2)
    tokenizer, model = load_tokenizer(served.tuned), load_merged(served.tuned)
    for text, choice in zip(fields["prompt"], whole.choices, strict=True):
        ids = tokenizer(text, return_tensors="pt")
        out = model.generate(**ids, do_sample=False, max_new_tokens=6, pad_token_id=tokenizer.eos_token_id)
        logprobs = model(out).logits[0, :-1].log_softmax(-1).gather(1, out[0, 1:, None])[:, 0].tolist()
        assert choice.text == tokenizer.decode(out[0], skip_special_tokens=True)
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(logprobs, abs=1e-4)
    bare = served.client.completions.create(**fields)
    chunks = list(served.client.completions.create(**fields, stream=True))
    for choice in bare.choices:
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert parts[-1].finish_reason == choice.finish_reason
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048") as caught:
        served.client.completions.create(model="base", prompt="a " * 3000)
    assert caught.value.code == "context_length_exceeded"


def test_chats_tell_logprobs_and_give_several_answers(served: Served) -> None:
    answer = served.ask(n=3, logprobs=True, top_logprobs=2, temperature=1.0, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    told = [one for choice in answer.choices for one in choice.logprobs.content]
    assert len(told) == answer.usage.completion_tokens
    assert {len(one.top_logprobs) for one in told} == {2}
    parts = list(served.ask(n=3, logprobs=True, temperature=1.0, seed=3, stream=True))
    for choice in answer.choices:
        mine = [c for chunk in parts for c in chunk.choices if c.index == choice.index]
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content


def test_more_requests_than_slots_answer_as_alone(served: Served) -> None:
    def one(i: int) -> str:
        return served.ask(("base", "org/tuned")[i % 2], temperature=1.0, seed=i).choices[0].message.content

    alone = [one(i) for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(16))) == alone
    assert served.running() == 0


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_frees_its_slots(served: Served, stream: bool) -> None:
    if stream:
        streams = [served.ask("endless", stream=True, max_tokens=ENDLESS) for _ in range(SLOTS - 1)]
        for opened in streams:
            next(iter(opened))
        assert served.running() == SLOTS - 1
        for opened in streams:
            opened.close()
    else:
        hurried = served.client.with_options(timeout=0.5)
        with pytest.raises(openai.APITimeoutError):
            hurried.chat.completions.create(model="endless", messages=MESSAGES, temperature=0, max_tokens=ENDLESS)
    # The answers themselves would take much longer.
    wait_for(lambda: not served.running(), 60, lambda: f"{served.running()} requests still run")
    assert served.ask().usage.completion_tokens > 0


def test_a_port_belongs_to_one() -> None:
    from plumbline.serving.local import _claim_port

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"port {taken} .* taken; set `port`"):
            _claim_port(taken)
    first, lock = _claim_port(None)
    second, other = _claim_port(None)  # nothing listens on the first yet, and it is claimed all the same
    assert 8000 <= first < second
    with pytest.raises(InvalidInput, match=f"port {first} .* taken"):
        _claim_port(first)
    lock.close()
    third, again = _claim_port(first)
    assert third == first
    other.close()
    again.close()
