"""Engines against transformers' own generate and forward, on small random models."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from plumbline.errors import InvalidInput
from plumbline.rollout.continuous import ContinuousEngine
from plumbline.rollout.decoder import disagreement
from plumbline.rollout.engine import NO_ADAPTER, Completion, Engine, Request, Sampling, Token, build_engine, generate
from plumbline.rollout.fallback import FallbackEngine
from plumbline.rollout.sampling import Running, draw, inverse_transform, nucleus
from plumbline.rollout.slots import SlotEngine, _batches
from support.engines import CONTEXT, EOS, VOCABULARY, drawn_with_pauses, make_prompts, random_model, requests_for

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,  # peaked distributions, so that greedy choices are no coin flips
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
NEOX = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "initializer_range": 0.3,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama-tied": LlamaConfig(**{**SHAPE, "tie_word_embeddings": True}),
    "llama3-rope": LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE),
    "llama-bias": LlamaConfig(**SHAPE, attention_bias=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "neox": GPTNeoXConfig(**NEOX, num_attention_heads=6, eos_token_id=EOS, pad_token_id=EOS, bos_token_id=EOS),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=6, initializer_range=0.3, eos_token_id=EOS, bos_token_id=EOS
    ),
}
FUSED = ["llama", "llama-tied", "llama3-rope", "llama-bias", "mistral", "qwen2", "qwen3"]
FALLBACK = ["llama", "qwen2", "neox", "gpt2"]
CONTINUOUS = ["qwen2", "neox", "gpt2"]
ENGINES = [
    (kind, name)
    for kind, names in (("slots", FUSED), ("fallback", FALLBACK), ("continuous", CONTINUOUS))
    for name in names
]  # fmt: skip
EACH = [("slots", "llama"), ("fallback", "llama"), ("continuous", "llama")]
KINDS: dict[str, type[SlotEngine | FallbackEngine | ContinuousEngine]] = {
    "slots": SlotEngine,
    "fallback": FallbackEngine,
    "continuous": ContinuousEngine,
}
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")


def make_model(name: str) -> PreTrainedModel:
    return random_model(CONFIGS[name])


def make_engine(kind: str, model: PreTrainedModel, lora: LoraConfig | None = None, slots: int = 4) -> Engine:
    return KINDS[kind](copy.deepcopy(model), lora, [EOS], slots, CONTEXT)


def expected_greedy(model: PreTrainedModel, prompt: tuple[int, ...], max_tokens: int = 12) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return out[0, len(prompt) :].tolist()


@torch.no_grad()
def teacher_forced(
    model: PreTrainedModel, prompt: tuple[int, ...], answer: list[int], temperature: float = 1.0
) -> list[float]:
    ids = torch.tensor([[*prompt, *answer]])
    logprobs = (model(ids).logits[0].float() / temperature).log_softmax(-1)
    return [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]


def adapter_of(
    model: PreTrainedModel, seed: int, config: LoraConfig = LORA
) -> tuple[dict[str, torch.Tensor], PreTrainedModel]:
    """LoRA tensors, and the model with them merged in by PEFT."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(copy.deepcopy(model), copy.deepcopy(config))
    for name, parameter in wrapped.named_parameters():
        if "magnitude" in name:  # it starts as the weight's own length
            parameter.data *= 0.5 + torch.rand(parameter.shape)
    tensors = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(wrapped).items()}
    return tensors, wrapped.merge_and_unload()


def check(completions: list[Completion], requests: list[Request], model: PreTrainedModel, temperature: float = 1.0) -> None:
    for request, done in zip(requests, completions, strict=True):
        assert done.request_id == request.id
        expected = teacher_forced(model, request.prompt, done.tokens, temperature)
        assert done.logprobs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("kind", "name"), ENGINES)
def test_greedy_equals_generate_with_ragged_prompts_and_refill(kind: str, name: str) -> None:
    model = make_model(name)
    prompts = make_prompts(11)
    requests = requests_for(prompts, temperature=0)
    completions = generate(make_engine(kind, model), requests)
    assert [c.tokens for c in completions] == [expected_greedy(model, p) for p in prompts]
    check(completions, requests, model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_those_of_teacher_forcing(kind: str, temperature: float) -> None:
    model = make_model("llama")
    requests = requests_for(make_prompts(9), temperature=temperature)
    check(generate(make_engine(kind, model), requests), requests, model, temperature)


def test_answers_do_not_depend_on_the_batch_or_the_engine() -> None:
    model = make_model("llama")
    requests = requests_for(make_prompts(9), max_tokens=20)
    together = [c.tokens for c in generate(make_engine("slots", model, slots=9), requests)]
    refilled = [c.tokens for c in generate(make_engine("slots", model, slots=2), requests)]
    alone = [generate(make_engine("slots", model, slots=1), [request])[0].tokens for request in requests]
    others = [[c.tokens for c in generate(make_engine(kind, model), requests)] for kind in ("fallback", "continuous")]
    assert together == refilled == alone == others[0] == others[1]
    assert len({tuple(tokens) for tokens in together}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_eos_max_tokens_and_context_end_answers(kind: str) -> None:
    model = make_model("llama")
    long = tuple(random.Random(3).randrange(6, VOCABULARY) for _ in range(CONTEXT - 3))
    requests = [*requests_for(make_prompts(40), max_tokens=30), Request("long", long, Sampling(max_tokens=30, seed=2))]
    completions = generate(make_engine(kind, model), requests)
    seen = set()
    for request, done in zip(requests, completions, strict=True):
        assert EOS not in done.tokens[:-1]
        if done.tokens[-1] == EOS:
            assert done.finish_reason == "stop"
            seen.add("eos")
        else:
            assert done.finish_reason == "length"
            full = len(request.prompt) + len(done.tokens) == CONTEXT
            assert full or len(done.tokens) == 30
            seen.add("context" if full else "tokens")
    assert seen == {"eos", "context", "tokens"}


def test_group_shares_one_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    engine = make_engine("slots", model, slots=3)
    read: list[int] = []
    prefill = engine.decoder.prefill
    monkeypatch.setattr(engine.decoder, "prefill", lambda t, n, *rest: read.extend(n.tolist()) or prefill(t, n, *rest))
    prompt = make_prompts(1, longest=20)[0]
    requests = [Request(f"g{i}", prompt, Sampling(seed=i, max_tokens=4 + i)) for i in range(8)]
    completions = generate(engine, requests)
    assert read == [len(prompt)]  # also for those that were admitted later, into freed slots
    check(completions, requests, model)
    assert len({tuple(c.tokens) for c in completions}) > 1


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_of_prompts_that_begin_alike_the_rest_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plumbline.rollout.slots.SHARED_TOKENS", 8)
    model = make_model(name)
    engine = make_engine("slots", model, slots=4)
    read: list[int] = []
    prefill = engine.decoder.prefill
    monkeypatch.setattr(engine.decoder, "prefill", lambda t, n, *rest: read.extend(n.tolist()) or prefill(t, n, *rest))
    one, other = make_prompts(1, seed=3, longest=30)[0][:20], tuple(range(10, 26))
    ends = make_prompts(8, seed=4, longest=9)
    prompts = [*(one + end for end in ends[:4]), one, *(other + end for end in ends[4:]), one + ends[0], (7, 8)]
    requests = requests_for(prompts, temperature=0, max_tokens=6)
    completions = generate(engine, requests)
    assert [c.tokens for c in completions] == [expected_greedy(model, p, 6) for p in prompts]
    check(completions, requests, model)
    assert sum(read) <= len(one) + len(other) + sum(map(len, ends)) + 20


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_cancel_frees_the_slot_and_leaves_the_others_alone(kind: str, name: str) -> None:
    model = make_model(name)
    requests = requests_for(make_prompts(6), temperature=0)
    engine = make_engine(kind, model, slots=3)
    for request in requests:
        engine.submit(request)
    tokens: dict[str, list[int]] = {request.id: [] for request in requests}

    def collect(step: list[Token]) -> None:
        for token in step:
            tokens[token.request_id].append(token.token)

    collect(engine.step())
    engine.cancel("r0")  # live
    engine.cancel("r5")  # queued
    engine.cancel("unknown")
    before = len(tokens["r0"])
    while engine.busy:
        collect(engine.step())
    assert len(tokens["r0"]) == before
    assert tokens["r5"] == []
    for request in requests[1:5]:
        assert tokens[request.id] == expected_greedy(model, request.prompt)
    again = Request("r0", requests[0].prompt, requests[0].sampling)
    assert generate(engine, [again])[0].tokens == expected_greedy(model, again.prompt)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("kind", "name"), [*EACH, ("fallback", "gpt2"), ("slots", "qwen3"), ("slots", "llama-tied")])
def test_adapter_equals_pefts_merge_and_can_be_replaced(kind: str, name: str, dora: bool) -> None:
    model = make_model(name)
    lora = LoraConfig(**{**LORA.to_dict(), "fan_in_fan_out": name == "gpt2", "use_dora": dora})
    engine = make_engine(kind, model, lora)
    requests = requests_for(make_prompts(5), temperature=0)
    base = [c.tokens for c in generate(engine, requests)]
    for version in (1, 2):
        tensors, merged = adapter_of(model, version, lora)
        engine.load_adapter(tensors, version)
        completions = generate(engine, requests)
        assert [c.tokens for c in completions] == [expected_greedy(merged, r.prompt) for r in requests]
        assert {c.adapter_version for c in completions} == {version}
        check(completions, requests, merged)
        assert [c.tokens for c in completions] != base
    engine.load_adapter({}, 3)
    assert [c.tokens for c in generate(engine, requests)] == base


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}}])
def test_adapter_scale_follows_the_configuration(options: dict) -> None:
    model = make_model("llama")
    lora = LoraConfig(**{**LORA.to_dict(), "target_modules": ["q_proj", "up_proj", "down_proj"], **options})
    tensors, merged = adapter_of(model, 1, lora)
    engine = make_engine("slots", model, lora)
    engine.load_adapter(tensors, 1)
    requests = requests_for(make_prompts(3), temperature=0)
    check(generate(engine, requests), requests, merged)


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_nothing_of_the_old_cache_survives_a_new_adapter(kind: str, name: str) -> None:
    model = make_model(name)
    engine = make_engine(kind, model, LORA)
    prompts = make_prompts(3)
    for request in requests_for(prompts, temperature=0, max_tokens=20):
        engine.submit(request)
    before = [token for _ in range(3) for token in engine.step()]
    tensors, merged = adapter_of(model, 1)
    engine.load_adapter(tensors, 1)
    engine.submit(Request("new", prompts[0], Sampling(temperature=0, max_tokens=8)))
    after: list[Token] = []
    while engine.busy:
        after += engine.step()
    new = [t.token for t in after if t.request_id == "new"]
    assert new == expected_greedy(merged, prompts[0], 8)
    for i, prompt in enumerate(prompts):  # unfinished ones go on as the new weights read their text
        old = [t.token for t in before if t.request_id == f"r{i}"]
        rest = [t for t in after if t.request_id == f"r{i}"]
        if rest:
            expected = teacher_forced(merged, (*prompt, *old), [t.token for t in rest])
            assert [t.logprob for t in rest] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_a_pause_gives_the_cache_back_and_changes_no_answer(kind: str, name: str) -> None:
    model = make_model(name)
    requests = requests_for(make_prompts(9), max_tokens=20)
    expected = [c.tokens for c in generate(make_engine(kind, model), requests)]
    engine = make_engine(kind, model)

    def paused() -> None:
        assert not cache_of(engine)

    assert list(drawn_with_pauses(engine, requests, paused).values()) == expected


def cache_of(engine: Engine) -> object:
    """What an engine keeps of what it has read."""
    if isinstance(engine, SlotEngine):
        return engine.decoder.keys + engine.decoder.values
    return engine._cache if isinstance(engine, FallbackEngine) else getattr(engine, "_processor", None)


def test_adapter_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    model = make_model("llama")
    engine = make_engine("slots", model, LORA)
    tensors, _ = adapter_of(model, 1)
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    missing = {name: t for name, t in tensors.items() if name != f"{q}.lora_B.weight"}
    wrong = [
        (missing, "lora_B.weight' is missing"),
        ({**tensors, f"{q}.lora_B.weight": torch.zeros(3, 4)}, "do not fit the weight"),
        ({**tensors, "base_model.model.other.lora_A.weight": torch.zeros(4, 4)}, "no linear layer 'other'"),
        ({f"{q}.weight": torch.zeros(4, 4)}, "is no LoRA weight"),
    ]
    for bad, message in wrong:
        with pytest.raises(InvalidInput, match=message):
            engine.load_adapter(bad, 1)
    assert engine.adapter_version == NO_ADAPTER
    requests = requests_for(make_prompts(2), temperature=0)
    assert [c.tokens for c in generate(engine, requests)] == [expected_greedy(model, r.prompt) for r in requests]
    with pytest.raises(InvalidInput, match="without an adapter configuration"):
        make_engine("slots", model).load_adapter(tensors, 1)
    with pytest.raises(InvalidInput, match="lora_magnitude_vector' is missing"):
        make_engine("slots", model, LoraConfig(**{**LORA.to_dict(), "use_dora": True})).load_adapter(tensors, 1)
    with pytest.raises(InvalidInput, match="lora_bias"):
        make_engine("slots", model, LoraConfig(lora_bias=True))


@pytest.mark.parametrize(("kind", "name"), EACH)
@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ((), Sampling(), "prompt is empty"),
        ((7,) * CONTEXT, Sampling(), f"no room in a context of {CONTEXT}"),
        ((7, VOCABULARY), Sampling(), f"0 to {VOCABULARY - 1}"),
        ((7,), Sampling(temperature=-1), "temperature -1"),
        ((7,), Sampling(top_p=0), "top_p 0"),
        ((7,), Sampling(max_tokens=0), "max_tokens 0"),
        (
            (7,),
            Sampling(logit_bias=((VOCABULARY, 1.0),)),
            f"token {VOCABULARY} is 1.0; tokens must be 0 to {VOCABULARY - 1}",
        ),
        ((7,), Sampling(logit_bias=((3, math.nan),)), "biases -100 to 100"),
        ((7,), Sampling(presence_penalty=math.inf), "must be -2 to 2"),
        ((7,), Sampling(frequency_penalty=2.5), "must be -2 to 2"),
    ],
)
def test_impossible_requests_are_refused(kind: str, name: str, prompt: tuple, sampling: Sampling, message: str) -> None:
    engine = make_engine(kind, make_model(name))
    with pytest.raises(InvalidInput, match=message):
        engine.submit(Request("r", prompt, sampling))
    assert not engine.busy


def test_ids_are_unique_and_generate_needs_an_idle_engine() -> None:
    engine = make_engine("slots", make_model("llama"))
    engine.submit(Request("r", (7,), Sampling()))
    with pytest.raises(ValueError, match="unfinished"):
        engine.submit(Request("r", (7,), Sampling()))
    with pytest.raises(ValueError, match="idle"):
        generate(engine, [])


def test_build_engine_takes_the_fused_decoder_only_where_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(build_engine(make_model("llama"), LORA, [EOS], 2, max_length=CONTEXT), SlotEngine)
    assert isinstance(build_engine(make_model("neox"), None, [EOS], 2, max_length=CONTEXT), FallbackEngine)
    dynamic = LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    assert isinstance(build_engine(Auto.from_config(dynamic), None, [EOS], 2, max_length=CONTEXT), FallbackEngine)
    window = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert isinstance(build_engine(Auto.from_config(window).eval(), None, [EOS], 2, max_length=CONTEXT), FallbackEngine)
    changed = make_model("llama")
    changed.model.layers[1].mlp.act_fn = torch.nn.GELU()  # not what the configuration says
    engine = build_engine(changed, None, [EOS], 2, max_length=CONTEXT)
    assert isinstance(engine, FallbackEngine)
    prompt = make_prompts(1)[0]
    assert generate(engine, requests_for([prompt], temperature=0))[0].tokens == expected_greedy(changed, prompt)


def test_bfloat16_is_as_near_to_float32_as_the_model_itself() -> None:
    model = make_model("llama").bfloat16()
    exact = copy.deepcopy(model).float()
    engine = SlotEngine(model, None, [EOS], 4, CONTEXT)
    assert disagreement(engine.decoder, model) is None
    requests = requests_for(make_prompts(12))
    ours, theirs = 0.0, 0.0
    for request, done in zip(requests, generate(engine, requests), strict=True):
        truth = torch.tensor(teacher_forced(exact, request.prompt, done.tokens))
        ours += float((torch.tensor(done.logprobs) - truth).abs().sum())
        theirs += float((torch.tensor(teacher_forced(model, request.prompt, done.tokens)) - truth).abs().sum())
    assert 0 < ours < 1.3 * theirs


def test_inverse_transform_draws_from_the_distribution() -> None:
    probabilities = torch.tensor([0.0, 0.2, 0.5, 0.3, 0.0])
    uniforms = torch.tensor([0.0, 0.1999, 0.2001, 0.6999, 0.7001, 1 - 2**-53], dtype=torch.float64)
    drawn = inverse_transform(probabilities.log().expand(6, -1), uniforms)
    assert drawn.tolist() == [1, 1, 2, 2, 3, 3]


def test_nucleus_keeps_the_smallest_sufficient_set() -> None:
    logprobs = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.1, 0.5, 0.3, 0.1], [0.1, 0.5, 0.3, 0.1]]).log()
    kept = nucleus(logprobs, torch.tensor([0.79, 0.2, 1.0])).exp()
    assert torch.allclose(kept[0], torch.tensor([0.0, 0.625, 0.375, 0.0]))
    assert torch.allclose(kept[1], torch.tensor([0.0, 1.0, 0.0, 0.0]))
    assert torch.equal(kept[2], logprobs[2].exp())


def test_draw_mixes_greedy_sampled_and_nucleus_rows() -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0)).expand(3, -1) * 4
    best = int(logits[0].argmax())
    samplings = [Sampling(temperature=0, top_p=0.5, likeliest=2), Sampling(temperature=2.0, seed=3), Sampling(top_p=1e-6)]
    rows = [Running(Request(str(i), (1,), s)) for i, s in enumerate(samplings)]
    greedy, sampled, narrow = draw(logits, rows)
    values, tokens = logits[0].log_softmax(-1).topk(2)
    assert greedy[:2] == (best, pytest.approx(float(values[0])))
    assert greedy[2] == tuple((int(token), pytest.approx(float(value))) for token, value in zip(tokens, values, strict=True))
    assert sampled[1] == pytest.approx(float((logits[0] / 2).log_softmax(-1)[sampled[0]]))
    assert narrow == (best, pytest.approx(0.0), ())
    alone = draw(logits[:1], [Running(Request("1", (1,), samplings[1]))])
    assert alone == [sampled]


def test_penalties_and_biases_are_openais() -> None:
    """Against the formula written out, token by token."""
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    before = [[3, 3, 5], [3, 3, 5], [], [1]]
    samplings = [
        Sampling(temperature=0.5, seed=1, presence_penalty=1.5, frequency_penalty=-0.5, likeliest=VOCABULARY),
        Sampling(seed=2, logit_bias=((3, 2.0), (9, -100.0)), frequency_penalty=1.0, likeliest=VOCABULARY),
        Sampling(temperature=0, presence_penalty=2.0, logit_bias=((11, 100.0),)),
        Sampling(seed=4, likeliest=VOCABULARY),
    ]
    rows = [Running(Request(str(i), (3, 5), s)) for i, s in enumerate(samplings)]  # what the prompt holds is no matter
    for held, tokens in zip(rows, before, strict=True):
        held.tokens += tokens
    expected = logits.clone()
    drawn = draw(logits, rows)
    expected[0, 3] -= 1.5 + 2 * -0.5
    expected[0, 5] -= 1.5 - 0.5
    expected[1, 3] += 2.0 - 2 * 1.0
    expected[1, 5] -= 1.0
    expected[1, 9] -= 100.0
    for i, temperature in ((0, 0.5), (1, 1.0), (3, 1.0)):
        likely = dict(drawn[i][2])
        found = torch.tensor([likely[token] for token in range(VOCABULARY)])
        assert torch.allclose(found, (expected[i] / temperature).log_softmax(-1), atol=1e-5)
        assert drawn[i][1] == likely[drawn[i][0]]
    assert drawn[2][0] == 11


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_penalties_live_through_a_pause(kind: str, name: str) -> None:
    prompts = make_prompts(3)
    requests = requests_for(prompts, temperature=0, frequency_penalty=2.0, presence_penalty=1.0, max_tokens=24)
    engine = make_engine(kind, make_model(name))
    expected = {done.request_id: done.tokens for done in generate(engine, requests)}
    assert drawn_with_pauses(engine, requests) == expected
    plain = generate(engine, requests_for(prompts, temperature=0, max_tokens=24))
    assert [done.tokens for done in plain] != [*expected.values()]  # else nothing was tried


def test_a_bias_of_a_token_that_the_head_lacks_changes_nothing() -> None:
    row = Running(Request("r", (1,), Sampling(temperature=0, logit_bias=((VOCABULARY - 1, 100.0), (2, 5.0)))))
    logits = torch.zeros(1, VOCABULARY - 1)
    assert draw(logits, [row])[0][0] == 2


def test_prefill_batches_are_alike_in_length_and_bounded() -> None:
    lengths = [1000, 10, 11, 9000, 12, 1100, 1040]
    batches = list(_batches(list(range(7)), lengths))
    assert batches == [[1, 2, 4], [0, 6, 5], [3]]
    assert [len(b) for b in _batches(list(range(20)), [1000] * 20)] == [8, 8, 4]
