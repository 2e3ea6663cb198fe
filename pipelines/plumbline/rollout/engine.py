"""What every engine does, in plain values: requests in, tokens with log-probabilities out, adapters swapped between steps."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

import torch

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

    from plumbline.models.virtual_tokens import Prefix
    from plumbline.rollout.low_rank import LowRank

log = logging.getLogger(__name__)

FinishReason = Literal["stop", "length"]
Likely = tuple[int, float]
"""A token and its log-probability."""
NO_ADAPTER = -1  # no version that a trainer gives, so that its first adapter is never taken for loaded


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are drawn.

    Attributes:
        temperature: logits are divided by it; 0 is greedy.
        top_p: draw from the smallest set of tokens with at least this probability; 1 is the whole distribution.
        max_tokens: longest answer in tokens.
        seed: the request's own random stream. The same seed, prompt and weights give the same answer in any batch.
        likeliest: how many of the likeliest tokens are told at each place of the answer.
        presence_penalty: taken from the logits of tokens that the answer already has (OpenAI's formula, as the next one); vLLM
            begins anew where it is paused or gets an adapter.
        frequency_penalty: likewise, once for each time that it has them.
        logit_bias: tokens and what is added to their logits.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0
    likeliest: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Request:
    """A prompt to complete.

    Attributes:
        id: unique among the requests that an engine holds.
        prompt: tokens.
        sampling: how the answer is drawn.
        adapter: what stands beside the weights (`Mixing`), None for the model as it is.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: LowRank | None = None


class Token(NamedTuple):  # many are made, and go from process to process
    """One sampled token.

    Attributes:
        request_id: whose it is.
        token: token id. An end-of-text token is reported like any other.
        logprob: natural log of the probability it was drawn with (greedy: its probability at temperature 1).
        finish_reason: `stop` for an end-of-text token, `length` for a full answer or context, None when more follow.
        likeliest: as many of the likeliest tokens in its place as the request asks for, the likeliest first.
        cached: of a request's first token: how much of its prompt was not read, as a text that begins alike had been.
    """

    request_id: str
    token: int
    logprob: float
    finish_reason: FinishReason | None
    likeliest: tuple[Likely, ...] = ()
    cached: int = 0


@dataclass(frozen=True)
class Scoring:
    """Given tokens, whose probability is asked for.

    Attributes:
        id: unique among the requests of one call.
        tokens: at least two.
        start: the first token that is scored, 1 or more: those before are only read.
        likeliest: how many of the likeliest tokens are told at each place.
        adapter: see `Request`.
    """

    id: str
    tokens: tuple[int, ...]
    start: int = 1
    likeliest: int = 0
    adapter: LowRank | None = None


@dataclass(frozen=True)
class Scored:
    """What a model thinks of `tokens[start:]`; one entry for each.

    Attributes:
        request_id: whose it is.
        logprobs: natural log of the token's probability after those before it, at temperature 1.
        greedy: whether no token is likelier.
        likeliest: see `Scoring`; the likeliest first.
    """

    request_id: str
    logprobs: list[float]
    greedy: list[bool]
    likeliest: list[tuple[Likely, ...]]


@dataclass(frozen=True)
class Completion:
    """A whole answer. `first_version` and `adapter_version` are the versions of the weights that drew its first and its last token."""

    request_id: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    first_version: int
    adapter_version: int


class Engine(Protocol):
    """A model that completes many requests at once. Not thread-safe: one thread calls it.

    Attributes:
        adapter_version: version of the adapter last loaded, `NO_ADAPTER` for the bare base.
        max_length: longest prompt and answer together, in tokens.
        max_scored: most tokens of a `Scoring`.
    """

    adapter_version: int
    max_length: int
    max_scored: int

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        ...

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidInput: the prompt is empty, fills the context or holds an unknown token; a sampling value is out of range; the
                adapter is not of this engine.
            ValueError: a request with this id is unfinished.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Forget a request; nothing happens when it is unknown or done."""
        ...

    def step(self) -> list[Token]:
        """Work for about one token per running request and return what was drawn."""
        ...

    def score(self, requests: Sequence[Scoring]) -> Iterator[list[Scored]]:
        """Score given tokens, a little at each turn of the iterator, so that `step` can be called in between.

        What requests begin with alike is read once, and again only when others have taken its place. The weights must not change
        before the iterator is at its end.

        Returns:
            What each turn has completed, often nothing; every request once.

        Raises:
            InvalidInput: there are more than `max_scored` tokens or an unknown one, or `start` is not among them; the adapter is not
                of this engine.
        """
        ...

    def load_adapter(self, tensors: dict[str, torch.Tensor], version: int) -> None:
        """Replace the adapter by LoRA tensors in PEFT's naming; unfinished requests go on with the new weights.

        Raises:
            InvalidInput: the engine was built without an adapter, or the tensors do not fit the model.
        """
        ...

    def pause(self) -> None:
        """Give back the memory of the cache. Nothing but `resume` may be called then."""
        ...

    def resume(self) -> None:
        """Go on after `pause`: unfinished requests are read again."""
        ...


@runtime_checkable
class Mixing(Engine, Protocol):
    """An engine whose requests may each have an adapter of their own, mixed in one batch, beside the weights."""

    def prepare_adapter(self, config: LoraConfig, tensors: dict[str, torch.Tensor]) -> LowRank:
        """Make an adapter that requests may have. Changes nothing: any thread may call it meanwhile.

        Args:
            config: of plain LoRA.
            tensors: in PEFT's naming.

        Raises:
            InvalidInput: it is another kind of adapter, or does not fit the model.
        """
        ...

    def forget_adapter(self, adapter: LowRank) -> None:
        """Keep nothing of an adapter that no request to come will have, so that its memory can be free."""
        ...


def generate(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Complete all requests; the engine must be idle.

    Returns:
        One completion per request, in order.
    """
    if engine.busy:
        raise ValueError("generate() needs an idle engine: the tokens of other requests would be lost")
    drawn: dict[str, list[Token]] = {request.id: [] for request in requests}
    try:
        for request in requests:
            engine.submit(request)
        while engine.busy:
            for token in engine.step():
                drawn[token.request_id].append(token)
    except BaseException:
        for request in requests:  # leave it idle: the caller may try again
            engine.cancel(request.id)
        raise
    version = engine.adapter_version
    return [completion(drawn[request.id], version, version) for request in requests]


def completion(tokens: list[Token], first_version: int, last_version: int) -> Completion:
    """A request's answer from all that was drawn for it, and the versions of the weights that drew the first and the last."""
    reason = tokens[-1].finish_reason
    assert reason is not None
    return Completion(
        tokens[-1].request_id, [t.token for t in tokens], [t.logprob for t in tokens], reason, first_version, last_version
    )


def build_engine(
    model: PreTrainedModel,
    adapter_config: LoraConfig | None,
    eos_token_ids: Sequence[int],
    slots: int = 64,
    *,
    max_length: int,
    prefix: Prefix | None = None,
) -> Engine:
    """The fastest engine that is proven right for this model.

    The engine takes the model over: it shares its weights, and `load_adapter` changes them.

    Args:
        model: base model without adapter, in evaluation mode, on the device to use.
        adapter_config: configuration of the adapters to come; None if there will be none.
        eos_token_ids: tokens that end an answer.
        slots: requests worked on at the same time.
        max_length: longest prompt and answer together, in tokens.
        prefix: virtual tokens that every prompt stands after; beside `max_length`, and not to be changed by adapters.

    Returns:
        A `SlotEngine` where the architecture is known, there are no virtual tokens and the log-probabilities of a probe agree with the model's own
        forward pass; else a `ContinuousEngine` on a GPU where its probe agrees (on a CPU it is slower than padded rows); else a `FallbackEngine`.
    """
    # The engines import this module's types.
    from plumbline.rollout.continuous import ContinuousEngine, build_continuous
    from plumbline.rollout.decoder import disagreement, unsupported
    from plumbline.rollout.fallback import FallbackEngine
    from plumbline.rollout.slots import SlotEngine

    reason = unsupported(model) if prefix is None else "its adapter has virtual tokens"
    if reason is None:
        engine = SlotEngine(model, adapter_config, eos_token_ids, slots, max_length)
        reason = disagreement(engine.decoder, model)
        if reason is None:
            return engine
        del engine
    if prefix is None and model.device.type != "cpu":
        found = build_continuous(model, adapter_config, eos_token_ids, slots, max_length)
        if isinstance(found, ContinuousEngine):
            return found
        reason = f"{reason}, and {found}"
    log.warning("%s runs on the slower fallback engine: %s", type(model).__name__, reason)
    return FallbackEngine(model, adapter_config, eos_token_ids, slots, max_length, prefix)
