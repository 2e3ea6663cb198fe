"""What is particular to the engine on continuous batching; what all engines do is in test_engine.py."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import Gemma2Config, GPTNeoXConfig, PreTrainedModel

from plumbline.errors import PlumblineError
from plumbline.rollout import continuous
from plumbline.rollout.continuous import ContinuousEngine, build_continuous
from plumbline.rollout.engine import Request, Sampling, generate
from plumbline.rollout.fallback import FallbackEngine

VOCABULARY, EOS = 61, 5
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "eos_token_id": EOS, "pad_token_id": EOS, "bos_token_id": EOS, "initializer_range": 0.3,
}  # fmt: skip


def neox() -> PreTrainedModel:
    torch.manual_seed(0)
    return Auto.from_config(GPTNeoXConfig(**SHAPE)).float().eval()


def requests(count: int = 7, **sampling: float) -> list[Request]:
    draw = random.Random(0)
    prompts = [tuple(draw.randrange(6, VOCABULARY) for _ in range(draw.randint(1, 40))) for _ in range(count)]
    return [
        Request(f"r{i}", prompt, Sampling(**{"seed": i, "max_tokens": 9, **sampling})) for i, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.8}])
def test_the_answers_and_log_probs_are_those_of_the_other_engines(sampling: dict[str, float]) -> None:
    """A request's own random stream, its own temperature and nucleus, and log-probabilities under just these."""
    found = []
    for kind in (ContinuousEngine, FallbackEngine):
        found.append(generate(kind(neox(), None, [EOS], 3, 64), requests(**sampling)))
    for ours, theirs in zip(*found, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        assert ours.finish_reason == theirs.finish_reason


def test_prompts_that_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "READ_TOKENS", 8)
    found = [generate(kind(neox(), None, [EOS], 3, 64), requests()) for kind in (ContinuousEngine, FallbackEngine)]
    assert [one.tokens for one in found[0]] == [one.tokens for one in found[1]]


def test_answers_that_fill_the_context() -> None:
    (done,) = generate(ContinuousEngine(neox(), None, [], 1, 16), [Request("a", (7, 8, 9), Sampling(max_tokens=99))])
    assert (len(done.tokens), done.finish_reason) == (13, "length")


def test_an_error_comes_out_of_the_step_and_leaves_the_engine_usable() -> None:
    model = neox()
    engine = ContinuousEngine(model, None, [EOS], 3, 64)
    expected = [one.tokens for one in generate(engine, requests())]
    calls = 0

    def fail_once(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("out of memory")

    handle = model.register_forward_pre_hook(fail_once)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(engine, requests())
    handle.remove()
    assert not engine.busy
    assert [one.tokens for one in generate(engine, requests())] == expected


def test_requests_that_got_lost_are_no_partial_result() -> None:
    engine = ContinuousEngine(neox(), None, [EOS], 3, 64)
    engine.submit(requests()[0])
    engine._processor.reset()
    with pytest.raises(PlumblineError, match="none of 1 unfinished"):
        engine.step()


def test_it_is_built_where_it_agrees_with_the_model() -> None:
    model = neox()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    engine = build_continuous(model, None, [EOS], 3, 64)
    assert isinstance(engine, ContinuousEngine)
    assert not engine.busy
    assert torch.equal(torch.get_rng_state(), before)
    assert model.config._attn_implementation == "sdpa"
    assert isinstance(build_continuous(neox(), None, [EOS], 1, 2), ContinuousEngine)


def test_it_is_not_built_where_it_does_not() -> None:
    capped = Auto.from_config(Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=8), attn_implementation="eager").eval()
    assert "its attention is eager" in str(build_continuous(capped, None, [EOS], 3, 64))
    assert capped.config._attn_implementation == "eager"

    model = neox()
    forward = model.forward
    model.forward = lambda *a, **named: forward(*a, **{k: v for k, v in named.items() if k != "position_ids"})
    assert "differ" in str(build_continuous(model, None, [EOS], 3, 64))
    model.forward = lambda *a, **named: 1 / 0
    assert "ZeroDivisionError" in str(build_continuous(model, None, [EOS], 3, 64))
