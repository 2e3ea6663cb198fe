"""What engines share: a request under way, and how its next token is drawn."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence

import torch

from plumbline.errors import InvalidInput
from plumbline.rollout.engine import FinishReason, Likely, Request, Token
from plumbline.rollout.low_rank import LowRank, Site

Drawn = tuple[int, float, tuple[Likely, ...]]
"""A token, its log-probability and the likeliest ones in its place."""

MOST_PENALTY, MOST_BIAS = 2, 100  # OpenAI's and vLLM's


class Running:
    """A request under way: its random stream and the tokens drawn so far.

    Attributes:
        cached: how much of its context was there already when it was read.
    """

    cached = 0

    def __init__(self, request: Request) -> None:
        self.request = request
        self.tokens: list[int] = []
        self.uniform = random.Random(request.sampling.seed).random
        self._shifts: torch.Tensor | None = None
        self._penalised: set[int] = set()
        self._counted = 0

    @property
    def context(self) -> tuple[int, ...]:
        """Prompt and answer so far."""
        return (*self.request.prompt, *self.tokens)

    @property
    def length(self) -> int:
        return len(self.request.prompt) + len(self.tokens)

    def shift(self, logits: torch.Tensor) -> None:
        """Put penalties and biases into the logits [vocabulary] of the next token. Their sums are kept: long answers cost no more."""
        sampling = self.request.sampling
        presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
        if not (sampling.logit_bias or presence or frequency):
            return
        if self._shifts is None:
            self._shifts = torch.zeros_like(logits)
            # A head may have fewer rows than the embedding.
            biases = {token: bias for token, bias in sampling.logit_bias if token < len(logits)}
            self._shifts[list(biases)] = torch.tensor(list(biases.values()), device=logits.device)
        for token in self.tokens[self._counted :]:
            self._shifts[token] -= frequency if token in self._penalised else presence + frequency
            self._penalised.add(token)
        self._counted = len(self.tokens)
        logits += self._shifts

    def advance(self, drawn: Drawn, eos_token_ids: frozenset[int], max_length: int) -> Token:
        """Append a drawn token and say whether it was the last."""
        token, logprob, top = drawn
        self.tokens.append(token)
        reason: FinishReason | None = None
        if token in eos_token_ids:
            reason = "stop"
        elif len(self.tokens) >= self.request.sampling.max_tokens or self.length >= max_length:
            reason = "length"
        return Token(self.request.id, token, logprob, reason, top, self.cached if len(self.tokens) == 1 else 0)


def check_request(
    request: Request,
    unfinished: Collection[str],
    max_length: int,
    vocabulary: int,
    sites: Sequence[Site] | None = None,
) -> None:
    """Refuse what no engine can complete, and an id that is among the unfinished ones.

    Raises:
        InvalidInput, ValueError: see `Engine.submit`.
    """
    prompt, sampling = request.prompt, request.sampling
    if not prompt:
        raise InvalidInput(f"request '{request.id}': the prompt is empty; give at least one token")
    if len(prompt) >= max_length:
        raise InvalidInput(
            f"request '{request.id}': a prompt of {len(prompt)} tokens leaves no room in a context of {max_length}; shorten it"
        )
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        raise InvalidInput(
            f"request '{request.id}': token ids must be 0 to {vocabulary - 1}, not {min(prompt)} to {max(prompt)}"
        )
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise InvalidInput(f"request '{request.id}': temperature {sampling.temperature} must be 0 (greedy) or more")
    if not 0 < sampling.top_p <= 1:
        raise InvalidInput(f"request '{request.id}': top_p {sampling.top_p} must be above 0 and at most 1")
    if sampling.max_tokens < 1:
        raise InvalidInput(f"request '{request.id}': max_tokens {sampling.max_tokens} must be at least 1")
    penalties = (sampling.presence_penalty, sampling.frequency_penalty)
    if not all(-MOST_PENALTY <= penalty <= MOST_PENALTY for penalty in penalties):
        raise InvalidInput(f"request '{request.id}': penalties {penalties} must be -{MOST_PENALTY} to {MOST_PENALTY}")
    for token, bias in sampling.logit_bias:
        if not (0 <= token < vocabulary and -MOST_BIAS <= bias <= MOST_BIAS):
            raise InvalidInput(
                f"request '{request.id}': logit_bias of token {token} is {bias}; tokens must be 0 to {vocabulary - 1}, and biases "
                f"-{MOST_BIAS} to {MOST_BIAS}"
            )
    check_adapter(request.id, request.adapter, sites)
    if request.id in unfinished:
        raise ValueError(f"request '{request.id}' is unfinished; ids must be unique")


def check_adapter(request_id: str, adapter: LowRank | None, sites: Sequence[Site] | None) -> None:
    """Raises InvalidInput when the adapter is not one of the decoder with these sites; None: an engine that has none."""
    if adapter is not None and adapter.sites is not sites:
        known = "this engine knows none" if sites is None else "it was prepared for another engine"
        raise InvalidInput(f"request '{request_id}': its adapter cannot be used: {known}")


COLDEST = 1e-4
"""Temperatures below draw as this one does, which is greedy but for ties: logits divided by less would leave float32."""


def draw(logits: torch.Tensor, running: Sequence[Running]) -> list[Drawn]:
    """Draw one token per request, each with its own random stream.

    By inverse transform: one uniform number per token, looked up in the cumulative distribution. What is drawn depends
    on the request's logits, sampling, stream and answer so far alone, not on the rest of the batch.

    Args:
        logits: [requests, vocabulary]; penalties and biases are put into them.
        running: the requests, in the order of the rows.

    Returns:
        One per request. Log-probabilities are those of softmax(logits / temperature), penalties and biases included, over the
        nucleus where top_p < 1; greedy ones are at temperature 1.
    """
    samplings = [r.request.sampling for r in running]
    greedy = [s.temperature == 0 for s in samplings]
    scores = logits.float()
    for held, row in zip(running, scores, strict=True):
        held.shift(row)
    if any(s.temperature not in (0, 1) for s in samplings):
        temperatures = torch.tensor([max(COLDEST, s.temperature or 1.0) for s in samplings], device=logits.device)
        scores = scores / temperatures[:, None]
    logprobs = scores.log_softmax(-1)
    if any(s.top_p < 1 and not g for s, g in zip(samplings, greedy, strict=True)):
        top_p = torch.tensor([1.0 if g else s.top_p for s, g in zip(samplings, greedy, strict=True)], device=logits.device)
        logprobs = nucleus(logprobs, top_p)
    if all(greedy):
        tokens = logprobs.argmax(-1)
    else:
        uniforms = torch.tensor(
            [0.0 if g else r.uniform() for r, g in zip(running, greedy, strict=True)], dtype=torch.float64
        )
        tokens = inverse_transform(logprobs, uniforms.to(logits.device))
        if any(greedy):
            tokens = torch.where(torch.tensor(greedy, device=logits.device), logprobs.argmax(-1), tokens)
    chosen = logprobs.gather(-1, tokens[:, None])[:, 0]
    wanted = [s.likeliest for s in samplings]
    top = [some[:number] for some, number in zip(likeliest(logprobs, max(wanted)), wanted, strict=True)]
    return list(zip(tokens.tolist(), chosen.tolist(), top, strict=True))


def likeliest(logprobs: torch.Tensor, number: int) -> list[tuple[Likely, ...]]:
    """The likeliest tokens of each row, the likeliest first."""
    if not number:
        return [()] * len(logprobs)
    values, tokens = logprobs.topk(min(number, logprobs.shape[-1]))
    return [tuple(zip(*row, strict=True)) for row in zip(tokens.tolist(), values.tolist(), strict=True)]


def inverse_transform(logprobs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """First token whose cumulative probability exceeds the uniform number; never one of probability 0.

    Args:
        logprobs: [rows, vocabulary], float32.
        uniforms: [rows] in [0, 1), float64.

    Returns:
        Token ids [rows].
    """
    cumulative = logprobs.exp().double().cumsum(-1)
    total = cumulative[:, -1]
    # Rounding may lift uniform * total to total, which would select a tail of probability 0.
    target = torch.minimum(uniforms * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]


def nucleus(logprobs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Restrict rows to the smallest set of likeliest tokens with probability >= top_p (Holtzman et al. 2020).

    Args:
        logprobs: [rows, vocabulary].
        top_p: [rows]; rows with 1 stay as they are.

    Returns:
        Renormalised log-probabilities, -inf outside the set.
    """
    ordered, order = logprobs.sort(-1, descending=True)
    probabilities = ordered.exp().double()
    outside = (probabilities.cumsum(-1) - probabilities) >= top_p[:, None]
    outside &= top_p[:, None] < 1
    outside[:, 0] = False  # of a top_p that float32 takes for 0 too, one token is left
    kept = ordered.masked_fill(outside, -math.inf)
    kept = torch.where(top_p[:, None] < 1, kept.log_softmax(-1), kept)
    return torch.empty_like(logprobs).scatter_(-1, order, kept)


def common_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Length of what two sequences begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
