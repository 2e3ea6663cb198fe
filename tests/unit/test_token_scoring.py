"""Probabilities of given tokens, of each engine and in any company, against the model's plain forward pass."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import (
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from plumbline.errors import InvalidInput
from plumbline.rollout import scoring
from plumbline.rollout.continuous import ContinuousEngine
from plumbline.rollout.engine import Engine, Request, Sampling, Scored, Scoring
from plumbline.rollout.fallback import FallbackEngine
from plumbline.rollout.scoring import Scorer, _split
from plumbline.rollout.slots import SlotEngine
from support.engines import CONTEXT, EOS, VOCABULARY, make_prompts, random_model, requests_for

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "eos_token_id": EOS, "pad_token_id": EOS,
    "tie_word_embeddings": False, "initializer_range": 0.3,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "window": MistralConfig(**SHAPE, sliding_window=8),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=6, initializer_range=0.3, eos_token_id=EOS, bos_token_id=EOS),
    "neox": GPTNeoXConfig(vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6, initializer_range=0.3),
    "mamba": MambaConfig(vocab_size=VOCABULARY, hidden_size=48, state_size=4, num_hidden_layers=2, initializer_range=0.3, use_cache=True),
}  # fmt: skip
ENGINES = {"slots": SlotEngine, "fallback": FallbackEngine, "continuous": ContinuousEngine}
KINDS = [
    ("slots", "llama"), ("slots", "qwen3"), ("fallback", "llama"), ("fallback", "window"), ("fallback", "gpt2"),
    ("fallback", "neox"), ("fallback", "mamba"), ("continuous", "llama"),
]  # fmt: skip


def make_engine(kind: str, model: PreTrainedModel, lora: LoraConfig | None = None) -> Engine:
    return ENGINES[kind](copy.deepcopy(model), lora, [EOS], 4, CONTEXT)


def words(rng: random.Random, number: int) -> tuple[int, ...]:
    return tuple(rng.randrange(VOCABULARY) for _ in range(number))


def tree(seed: int) -> list[Scoring]:
    """Texts as evaluations have them: examples of two subjects, questions after them, choices of a token or more; and some of their own."""
    rng = random.Random(seed)
    texts: list[tuple[tuple[int, ...], int]] = []
    same = words(rng, 3)
    for _ in range(2):
        examples = same + words(rng, 30)
        for _ in range(4):
            question = examples + words(rng, rng.randint(1, 9))
            texts += [(question + words(rng, rng.choice([1, 1, 5])), len(question)) for _ in range(4)]
    texts += [(words(rng, rng.randint(2, CONTEXT + 1)), 1) for _ in range(5)]
    texts += [(texts[0][0][:20], 1), (texts[0][0][:21], 20), (texts[3][0], 1), (texts[3][0], len(texts[3][0]) - 1)]
    rng.shuffle(texts)
    return [Scoring(f"s{i}", tokens, start, likeliest=i % 3) for i, (tokens, start) in enumerate(texts)]


def score(engine: Engine | Scorer, requests: list[Scoring]) -> list[Scored]:
    found = [one for some in engine.score(requests) for one in some]
    assert len(found) == len(requests)
    by_id = {one.request_id: one for one in found}
    return [by_id[request.id] for request in requests]


@torch.no_grad()
def check(found: list[Scored], requests: list[Scoring], model: PreTrainedModel) -> None:
    for request, one in zip(requests, found, strict=True):
        logprobs = model(torch.tensor([request.tokens])).logits[0, request.start - 1 : -1].log_softmax(-1)
        targets = torch.tensor(request.tokens[request.start :])
        assert one.logprobs == pytest.approx(logprobs.gather(1, targets[:, None])[:, 0].tolist(), abs=1e-4)
        assert one.greedy == (logprobs.argmax(-1) == targets).tolist()
        values, tokens = logprobs.topk(max(1, request.likeliest))
        for there, value, token in zip(one.likeliest, values, tokens, strict=True):
            assert [t for t, _ in there] == token.tolist()[: request.likeliest]
            assert [v for _, v in there] == pytest.approx(value.tolist()[: request.likeliest], abs=1e-4)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that texts of these lengths reach."""
    for name, value in {"PASS_COST": 16, "READ_TOKENS": 100, "PAST_TOKENS": 200, "KEPT_TOKENS": 150}.items():
        monkeypatch.setattr(scoring, name, value)


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_scores_are_those_of_the_plain_forward_pass_in_any_company(kind: str, name: str) -> None:
    model = random_model(CONFIGS[name])
    engine = make_engine(kind, model)
    requests = tree(1)
    check(score(engine, requests), requests, model)
    check(score(engine, requests), requests, model)  # with what the first call has left
    later = tree(2)[:7] + requests[5:9]
    for request in later:  # one after the other, and in an order of its own
        check(score(engine, [request]), [request], model)


def test_what_texts_share_is_read_once_and_again_only_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "READ_TOKENS", 4096)
    model = random_model(CONFIGS["llama"])
    scorer, read = Scorer(model, CONTEXT + 1), []
    plain = model.forward
    monkeypatch.setattr(
        model, "forward", lambda *args, **rest: read.append(rest["input_ids"].numel()) or plain(*args, **rest)
    )
    scorer._accepts = {"attention_mask", "position_ids"}
    rng = random.Random(0)
    examples = words(rng, 40)
    questions = [examples + words(rng, 6) for _ in range(5)]
    asked = [Scoring(f"{i}{letter}", (*q, letter), len(q)) for i, q in enumerate(questions) for letter in range(4)]
    assert scorer._shares
    read.clear()
    check_later = score(scorer, asked[:16])
    assert sum(read) == 40 + 4 * 6  # of 16 texts of 46 tokens
    read.clear()
    check_later += score(scorer, asked[16:])
    assert sum(read) == 6
    monkeypatch.setattr(model, "forward", plain)
    check(check_later, asked, model)


def test_long_texts_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PASS_LOGITS", 7 * VOCABULARY)
    model = random_model(CONFIGS["llama"])
    sizes: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: sizes.append(output.shape[-2]))
    requests = [
        Scoring("all", words(random.Random(3), CONTEXT)),
        Scoring("end", words(random.Random(4), CONTEXT), CONTEXT - 2),
    ]
    found = score(Scorer(model, CONTEXT + 1), requests)
    assert max(sizes[1:]) <= 7
    assert sum(sizes[1:]) == CONTEXT - 1 + 2  # no logits but those asked for
    check(found, requests, model)


def test_virtual_tokens_stand_before_everything() -> None:
    model = random_model(CONFIGS["llama"])
    virtual = words(random.Random(5), 6)
    with torch.no_grad():
        cache = model(torch.tensor([virtual]), use_cache=True).past_key_values
    prefix = [(layer.keys, layer.values) for layer in cache.layers]
    engine = FallbackEngine(copy.deepcopy(model), None, [EOS], 4, CONTEXT, prefix)
    requests = [Scoring(r.id, r.tokens, r.start, r.likeliest) for r in tree(6)]
    behind = [Scoring(r.id, virtual + r.tokens, r.start + len(virtual), r.likeliest) for r in requests]
    for _ in range(2):
        check(score(engine, requests), behind, model)


@pytest.mark.parametrize("kind", ENGINES)
def test_nothing_is_left_of_earlier_weights(kind: str) -> None:
    model = random_model(CONFIGS["llama"])
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    engine = make_engine(kind, model, lora)
    requests = tree(7)
    check(score(engine, requests), requests, model)
    torch.manual_seed(1)
    wrapped = get_peft_model(copy.deepcopy(model), copy.deepcopy(lora))
    tensors = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(wrapped).items()}
    engine.load_adapter(tensors, 1)
    check(score(engine, requests), requests, wrapped.merge_and_unload())
    engine.pause()
    engine.resume()
    engine.load_adapter({}, 2)
    check(score(engine, requests), requests, model)


@pytest.mark.parametrize("kind", ENGINES)
def test_answers_go_on_between_the_passes(kind: str) -> None:
    model = random_model(CONFIGS["llama"])
    alone = make_engine(kind, model)
    prompts = requests_for(make_prompts(6), max_tokens=20)
    expected = drawn(alone, prompts, [])
    engine = make_engine(kind, model)
    requests = tree(8)
    found: list[Scored] = []
    assert drawn(engine, prompts, engine.score(requests), found) == expected
    by_id = {one.request_id: one for one in found}
    check([by_id[request.id] for request in requests], requests, model)


def drawn(engine: Engine, requests: list[Request], turns: Any, found: list[Scored] | None = None) -> dict[str, list[int]]:
    for request in requests:
        engine.submit(request)
    tokens: dict[str, list[int]] = {request.id: [] for request in requests}
    turns = iter(turns)
    more = True
    while engine.busy or more:
        for token in engine.step():
            tokens[token.request_id].append(token.token)
        some = next(turns, None)
        more = some is not None
        if some and found is not None:
            found += some
    return tokens


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(
    ("tokens", "start", "message"),
    [
        ((7,) * (CONTEXT + 2), 1, f"{CONTEXT + 2} tokens do not fit a context of {CONTEXT + 1}"),
        ((7,), 1, "start 1 must be"),
        ((), 1, "start 1 must be"),
        ((7, 8), 0, "start 0 must be 1 to 1"),
        ((7, 8), 2, "start 2 must be 1 to 1"),
        ((7, VOCABULARY), 1, f"0 to {VOCABULARY - 1}"),
    ],
)
def test_what_cannot_be_scored_is_refused(kind: str, tokens: tuple[int, ...], start: int, message: str) -> None:
    engine = make_engine(kind, random_model(CONFIGS["llama"]))
    with pytest.raises(InvalidInput, match=message):
        engine.score([Scoring("s", tokens, start)])


def test_texts_nested_in_each_other_are_no_recursion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PASS_COST", 0)
    line = words(random.Random(9), 3000)
    lines = [scoring._Line(line[:n], [scoring._Asked.of(Scoring(str(n), line[: n + 1]))]) for n in range(1, 2900)]
    shared, alone = _split(lines, 0)
    assert len(shared) + len(alone) >= 1
    model = random_model(CONFIGS["llama"])
    requests = [Scoring(str(n), line[:n]) for n in range(2, CONTEXT)]
    check(score(Scorer(model, CONTEXT + 1), requests), requests, model)


def test_the_engine_answers_and_tells_what_else_was_likely() -> None:
    model = random_model(CONFIGS["llama"])
    engine = make_engine("slots", model)
    engine.submit(Request("r", (7, 8, 9), Sampling(temperature=0, max_tokens=3, likeliest=2)))
    while engine.busy:
        for token in engine.step():
            assert token.likeliest[0] == (token.token, pytest.approx(token.logprob))
            assert len(token.likeliest) == 2


@pytest.mark.parametrize("kind", ["slots", "fallback"])
def test_texts_that_go_on_from_different_earlier_ones_at_the_same_length(kind: str) -> None:
    model = random_model(LlamaConfig(**SHAPE))
    engine, rng = make_engine(kind, model), random.Random(3)
    contexts = [words(rng, 40) for _ in range(4)]
    for number, context in enumerate(contexts):  # one after another, so that each is kept
        score(engine, [Scoring(f"c{number}", context, 1)])
    requests = [Scoring(f"s{i}", context + words(rng, 6), 40) for i, context in enumerate(contexts)]
    check(score(engine, requests), requests, model)


def test_frequencies_that_change_with_the_length_share_nothing() -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [8.0] * 4,
        "factor": 4.0,
    }
    config = LlamaConfig(**SHAPE | {"rope_parameters": rope | {"original_max_position_embeddings": 16}})
    model, rng = random_model(config), random.Random(5)
    shared = words(rng, 12)
    requests = [Scoring(f"s{i}", shared + words(rng, 20), 12) for i in range(4)]
    engine = make_engine("fallback", model)
    for _ in range(2):
        check(score(engine, requests), requests, model)
