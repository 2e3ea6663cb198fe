"""Whether an engine that is not ours gives the model's own log-probabilities."""

from __future__ import annotations

from typing import Any

import torch

from plumbline.rollout.engine import Engine, Request, Sampling, generate


@torch.inference_mode()
def disagreement(engine: Engine, model: Any, name: str) -> str | None:
    """Compare answers to prompts of several lengths, drawn together, with the model's own log-probabilities of them.

    Args:
        engine: idle.
        model: what it should run, with the same adapter.
        name: of the engine, for people.

    Returns:
        What is wrong; None if nothing is.
    """
    vocabulary = len(model.get_input_embeddings().weight)
    longest = min(24, engine.max_length - 1)
    lengths = {max(1, longest * i // 4) for i in range(1, 5)}
    requests = [
        Request(f"probe{n}", tuple((7 * i + n) % vocabulary for i in range(n)), Sampling(max_tokens=4, seed=n))
        for n in lengths
    ]
    gaps: list[torch.Tensor] = []
    for request, done in zip(requests, generate(engine, requests), strict=True):
        ids = torch.tensor([[*request.prompt, *done.tokens]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(request.prompt) - 1 : -1].float()
        own = logits.log_softmax(-1).gather(1, ids[0, len(request.prompt) :, None])[:, 0]
        gaps.append((own - torch.tensor(done.logprobs, device=model.device)).abs())
    error = float(torch.cat(gaps).mean())
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.1
    said = f"with {name} its log-probabilities differ by {error:.2g} from the model's (allowed {tolerance})"
    return None if error <= tolerance else said
