"""Small models, ragged prompts and a loop with pauses, for tests of engines."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import PretrainedConfig, PreTrainedModel

from plumbline.rollout.engine import Engine, Request, Sampling

VOCABULARY, EOS, CONTEXT = 97, 5, 64


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    """The same in every process."""
    torch.manual_seed(1)
    model = Auto.from_config(config).float().eval()
    with torch.no_grad():  # biases start at zero and norms at one, where an error in them would not show
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def make_prompts(count: int, seed: int = 0, longest: int = 30) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(6, VOCABULARY) for _ in range(rng.randint(1, longest))) for _ in range(count)]


def requests_for(prompts: list[tuple[int, ...]], **sampling: float) -> list[Request]:
    return [Request(f"r{i}", p, Sampling(**{"seed": i, "max_tokens": 12, **sampling})) for i, p in enumerate(prompts)]


def drawn_with_pauses(
    engine: Engine, requests: list[Request], paused: Callable[[], None] = lambda: None
) -> dict[str, list[int]]:
    """Tokens of each request where the engine pauses after its first and its fifth step; `paused` is called in between."""
    for request in requests:
        engine.submit(request)
    tokens: dict[str, list[int]] = {request.id: [] for request in requests}
    steps = 0
    while engine.busy:
        for token in engine.step():
            tokens[token.request_id].append(token.token)
        steps += 1
        if steps in (1, 5):
            engine.pause()
            paused()
            engine.resume()
    return tokens
