"""Adapters beside the weights, mixed in one batch, and what free slots still know: against PEFT's merge of each alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from plumbline.errors import InvalidInput
from plumbline.rollout.engine import Completion, Mixing, Request, Sampling, Scoring, completion, generate
from plumbline.rollout.fallback import FallbackEngine
from plumbline.rollout.low_rank import LowRank
from plumbline.rollout.slots import SHARED_TOKENS, SlotEngine
from support.engines import CONTEXT, EOS, VOCABULARY, make_prompts, random_model

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
}
MODELS = {
    "llama-bias": LlamaConfig(**SHAPE, attention_bias=True),
    "qwen2-tied": Qwen2Config(**{**SHAPE, "tie_word_embeddings": True}),
    "qwen3": Qwen3Config(**SHAPE),
}
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "all": {"r": 4, "lora_alpha": 8, "target_modules": EVERY},
    "large": {"r": 12, "lora_alpha": 5, "target_modules": EVERY, "use_rslora": True},
    "few": {"r": 2, "lora_alpha": 8, "target_modules": ["v_proj", "up_proj"], "rank_pattern": {"v_proj": 3}},
}


def config_of(options: dict) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **copy.deepcopy(options))


class Adapted:
    """An engine with adapters, and the merged model of each to compare with; the bare one has the name None."""

    def __init__(self, name: str, adapters: dict[str, dict], slots: int = 8, context: int = CONTEXT) -> None:
        model = random_model(MODELS[name])
        self.alone: dict[str | None, PreTrainedModel] = {None: model}
        self.engine = SlotEngine(copy.deepcopy(model), None, [EOS], slots, context)
        self.tensors: dict[str, tuple[LoraConfig, dict[str, torch.Tensor]]] = {}
        self.ready: dict[str | None, LowRank | None] = {None: None}
        for seed, (adapter, options) in enumerate(adapters.items()):
            torch.manual_seed(seed)
            wrapped = get_peft_model(copy.deepcopy(model), config_of(options))
            state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
            tensors = {name: tensor.clone() for name, tensor in state.items()}
            self.tensors[adapter] = config_of(options), tensors
            self.alone[adapter] = wrapped.merge_and_unload()
            self.ready[adapter] = self.engine.prepare_adapter(*self.tensors[adapter])

    def requests(self, mix: Sequence[str | None], prompts: Sequence[tuple[int, ...]], max_tokens: int = 12) -> list[Request]:
        """Greedy ones, the adapters in turns."""
        return [
            Request(f"r{i}", prompt, Sampling(temperature=0, max_tokens=max_tokens - i % 5), self.ready[mix[i % len(mix)]])
            for i, prompt in enumerate(prompts)
        ]

    def merged(self, request: Request | Scoring) -> PreTrainedModel:
        return self.alone[next(name for name, ready in self.ready.items() if ready is request.adapter)]

    def check(self, requests: list[Request], answers: list[Completion]) -> None:
        """Greedy answers are those of the merged models, and log-probabilities theirs."""
        for request, answer in zip(requests, answers, strict=True):
            with torch.no_grad():
                logits = self.merged(request)(torch.tensor([[*request.prompt, *answer.tokens]])).logits[0].float()
            logits = logits[len(request.prompt) - 1 : -1]
            assert logits.argmax(-1).tolist() == answer.tokens
            expected = logits.log_softmax(-1).gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
            assert answer.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_any_mix_are_answered_as_by_each_merged_model_alone(name: str) -> None:
    adapted = Adapted(name, ADAPTERS)
    assert isinstance(adapted.engine, Mixing)
    prompts = make_prompts(30)
    for mix in (["all"], ["all", "few"], [None, "large"], ["few", None, "large", "all"]):
        requests = adapted.requests(mix, prompts)
        adapted.check(requests, generate(adapted.engine, requests))


def test_the_output_layer_may_have_an_adapter_where_it_is_not_tied() -> None:
    head = {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "q_proj"]}
    adapted = Adapted("qwen3", {"head": head, **ADAPTERS})
    requests = adapted.requests(["head", None, "all"], make_prompts(9))
    adapted.check(requests, generate(adapted.engine, requests))
    with pytest.raises(InvalidInput, match="no linear layer 'lm_head'"):
        Adapted("qwen2-tied", {"head": head})


def test_a_prompt_is_shared_among_requests_of_one_adapter_only(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = Adapted("qwen3", ADAPTERS, slots=12, context=128)
    read = reads_of(adapted.engine, monkeypatch)
    prompt = tuple(range(6, 6 + SHARED_TOKENS + 8))
    same = [prompt] * 6 + [(*prompt, 9, 8, 7)] * 6
    requests = adapted.requests([None, "all", "large"], same, 6)
    adapted.check(requests, generate(adapted.engine, requests))
    assert sum(read) <= 3 * (len(prompt) + 3 + 1)  # each adapter reads it once


def test_scores_are_those_of_the_merged_models() -> None:
    adapted = Adapted("llama-bias", ADAPTERS)
    draw = random.Random(3)
    texts = [tuple(draw.randrange(6, VOCABULARY) for _ in range(20)) for _ in range(8)]
    mix = ["all", None, "few", "all"]
    requests = [Scoring(f"s{i}", text, 4, adapter=adapted.ready[mix[i % 4]]) for i, text in enumerate(texts)]
    for _ in range(2):  # with what is kept from the first time too
        found = {scored.request_id: scored for turn in adapted.engine.score(requests) for scored in turn}
        for request in requests:
            with torch.no_grad():
                logprobs = adapted.merged(request)(torch.tensor([request.tokens])).logits[0].log_softmax(-1)
            expected = [float(logprobs[i - 1, request.tokens[i]]) for i in range(4, 20)]
            assert found[request.id].logprobs == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InvalidInput, match="prepared for another engine"):
        Adapted("llama-bias", {}).engine.score(requests)


def test_an_adapter_is_forgotten_while_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = Adapted("qwen3", ADAPTERS, context=128)
    long = tuple(range(6, 6 + SHARED_TOKENS + 10))
    requests = adapted.requests(["few", "all", None], [long] * 3 + make_prompts(5), 30)
    first = generate(adapted.engine, requests[:1])
    for request in requests[1:]:
        adapted.engine.submit(request)
    drawn = {request.id: [] for request in requests[1:]}
    read = reads_of(adapted.engine, monkeypatch)

    def steps(count: int) -> None:
        for _ in range(count):
            for token in adapted.engine.step():
                drawn[token.request_id].append(token.token)

    steps(2)
    few = adapted.ready["few"]
    assert few is not None
    adapted.engine.forget_adapter(few)  # those that have begun go on with it
    steps(2)
    read.clear()
    again = Request("again", long, requests[0].sampling, few)
    adapted.engine.submit(again)
    drawn["again"] = []
    while adapted.engine.busy:
        steps(1)
    assert read == [len(long)]
    assert drawn["again"] == first[0].tokens
    for request in requests[1:]:
        merged = SlotEngine(copy.deepcopy(adapted.merged(request)), None, [EOS], 1, 128)
        alone = Request(request.id, request.prompt, request.sampling)
        assert drawn[request.id] == generate(merged, [alone])[0].tokens


def test_what_cannot_be_mixed_is_refused_and_changes_nothing() -> None:
    adapted = Adapted("qwen3", ADAPTERS)
    engine = adapted.engine
    config, tensors = adapted.tensors["all"]
    name = next(iter(tensors))
    bad = [
        (config_of({**ADAPTERS["all"], "use_dora": True}), tensors, "DoRA changes the lengths"),
        (config, {**tensors, name: torch.full_like(tensors[name], torch.nan)}, "not finite"),
        (config, {**tensors, name: tensors[name][:, :5]}, "do not fit the weight"),
        (config_of({**ADAPTERS["all"], "bias": "all"}), tensors, "bias is not supported"),
    ]
    for refused, given, message in bad:
        with pytest.raises(InvalidInput, match=message):
            engine.prepare_adapter(refused, given)
    plain = FallbackEngine(random_model(MODELS["qwen3"]), None, [EOS], 2, CONTEXT)
    assert not isinstance(plain, Mixing)
    for other, message in ((plain, "knows none"), (Adapted("qwen3", {}).engine, "prepared for another engine")):
        with pytest.raises(InvalidInput, match=message):
            other.submit(Request("r", (7,), Sampling(), adapted.ready["all"]))
        assert not other.busy


def reads_of(engine: SlotEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each prompt that is read from now on."""
    read: list[int] = []
    prefill = engine.decoder.prefill
    monkeypatch.setattr(engine.decoder, "prefill", lambda t, n, *rest: read.extend(n.tolist()) or prefill(t, n, *rest))
    return read


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_the_next_turn_of_a_chat_reads_what_is_new(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = Adapted("qwen3", {"all": ADAPTERS["all"]}, slots=slots, context=400)
    read = reads_of(adapted.engine, monkeypatch)
    new: tuple[int, ...] = ()
    for adapter in adapted.ready.values():
        text = tuple(range(6, 6 + SHARED_TOKENS + 8))
        for turn in range(5):
            request = Request(f"turn {turn}", text, Sampling(temperature=0, max_tokens=20), adapter)
            (answer,) = generate(adapted.engine, [request])
            adapted.check([request], [answer])
            # The last token of an answer was drawn and not read.
            assert read == [len(text) if not turn else len(new) + 1]
            read.clear()
            new = (11 + turn, 12, 13, 14)
            text = (*text, *answer.tokens, *new)


def test_chats_in_turns_keep_their_slots_and_the_oldest_text_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = Adapted("qwen3", {}, slots=4, context=200)
    read = reads_of(adapted.engine, monkeypatch)
    texts = [tuple(make_prompts(1, seed, 1)[0]) * 3 + tuple(range(6, 60)) for seed in range(5)]

    def ask(number: int) -> int:
        read.clear()
        request = Request("r", texts[number], Sampling(temperature=0, max_tokens=4))
        adapted.check([request], generate(adapted.engine, [request]))
        return sum(read)

    assert all(ask(number) == len(texts[number]) for number in range(3))
    assert all(ask(number) == 1 for number in (0, 1, 2, 1, 0))
    ask(3)
    ask(4)  # in the place of 2
    assert [ask(3), ask(0)] == [1, 1]
    assert ask(2) == len(texts[2])


def test_a_pause_forgets_idle_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = Adapted("qwen3", {"all": ADAPTERS["all"]}, context=128)
    read = reads_of(adapted.engine, monkeypatch)
    request = Request("r", tuple(range(6, 60)), Sampling(temperature=0, max_tokens=4))
    for _ in range(2):
        adapted.check([request], generate(adapted.engine, [request]))
        adapted.engine.pause()
        adapted.engine.resume()
    assert read == [54, 54]


def test_a_prompt_that_is_to_be_copied_is_nothing_to_begin_with_yet() -> None:
    adapted = Adapted("qwen3", {}, context=128)
    draw = random.Random(0)
    begin = tuple(draw.randrange(6, VOCABULARY) for _ in range(SHARED_TOKENS + 8))
    prompts = [(*begin, 8), (*begin, 8), (*begin, 9, 9)]  # the second is the first's, the third begins like both
    requests = adapted.requests([None], prompts)
    adapted.engine.submit(requests[0])
    tokens = adapted.engine.step()
    assert adapted.engine.busy
    for request in requests[1:]:
        adapted.engine.submit(request)
    while adapted.engine.busy:
        tokens += adapted.engine.step()
    answers = [completion([one for one in tokens if one.request_id == request.id], 0, 0) for request in requests]
    adapted.check(requests, answers)


def test_many_requests_of_few_beginnings_in_any_order_are_answered_as_alone() -> None:
    adapted = Adapted("qwen2-tied", ADAPTERS, slots=5, context=160)
    draw = random.Random(0)
    beginnings = [tuple(draw.randrange(6, VOCABULARY) for _ in range(draw.randint(30, 60))) for _ in range(4)]
    prompts = []
    for _ in range(60):
        begin = draw.choice(beginnings)[: draw.randint(20, 60)]
        prompts.append((*begin, *(draw.randrange(6, VOCABULARY) for _ in range(draw.randint(1, 40)))))
    requests = [
        Request(
            f"r{i}",
            prompt,
            Sampling(temperature=0, max_tokens=draw.randint(1, 25)),
            adapted.ready[draw.choice([None, *ADAPTERS])],
        )
        for i, prompt in enumerate(prompts)
    ]
    adapted.check(requests, generate(adapted.engine, requests))
