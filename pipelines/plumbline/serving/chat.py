"""One served model: a prompt in, text out."""

from __future__ import annotations

import logging
import secrets
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from plumbline.api.base import BASE
from plumbline.api.stages.serve import ServeSpec
from plumbline.errors import InvalidInput, PlumblineError, one_line
from plumbline.models.load import end_tokens, load_for_generation, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.models.virtual_tokens import Prefix
from plumbline.plan import Plan
from plumbline.rollout.decoder import linear_weights
from plumbline.rollout.engine import Request, Sampling, Token, build_engine, generate
from plumbline.serving.engine_thread import AdapterEngine, EngineThread
from plumbline.serving.openai_schema import ChatCompletionRequest, FinishReason, OpenAIError
from plumbline.serving.text import Detokenizer, StopStrings, TokenNames

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CPU_CACHE_BYTES = 4 * 2**30  # for keys and values on a CPU, where untouched pages cost nothing
GPU_CACHE_SHARE = 0.8  # of the memory that is free once the weights are there
CONTEXT_TOKENS = 4  # of a prompt, for the text of what comes after it; a character has no more
SEEDS = 2**63  # two that differ by their sign alone are two seeds
LONGEST_TOKEN = 128  # characters; a text that is so much longer than the context is refused unread
USEFUL_SLOTS = 16  # a context is shortened rather than serve fewer requests at a time


@dataclass(frozen=True)
class ServedModel:
    """A model and the name that clients ask for. Plain values.

    Attributes:
        name: `model` in requests.
        reference: what to load.
        max_tokens: longest answer that a request may ask for.
    """

    name: str
    reference: ModelReference
    max_tokens: int

    @classmethod
    def of(cls, plan: Plan, stage: str) -> ServedModel:
        """What a `serve` stage serves.

        Raises:
            InvalidInput: it is no `serve` stage.
            PlumblineError: the model's artifact is not there.
        """
        node = plan.graph[stage]
        if not isinstance(node.spec, ServeSpec):
            raise InvalidInput(f"stage '{stage}' is of kind {node.kind}; only a serve stage can be served")
        (parent,) = node.inputs["model"]
        artifact = plan.artifact(parent) if parent != BASE else None
        if artifact is None and parent != BASE:
            raise PlumblineError(
                f"stage '{stage}' serves the model of '{parent}', which is not there yet; run '{parent}' first"
            )
        return cls(node.spec.model_name or plan.name, ModelReference.of(plan, artifact), node.spec.max_tokens)


@dataclass(frozen=True)
class Piece:
    """A piece of an answer.

    Attributes:
        text: what is certain now.
        completion_tokens: how many were drawn since the answer began.
        finish_reason: of the last piece.
        drawn: tokens since the piece before; their text may come with the next.
    """

    text: str
    completion_tokens: int
    finish_reason: FinishReason | None
    drawn: list[Token] = field(default_factory=list)


class ChatModel:
    """A loaded model behind its engine thread. Methods belong to one event loop."""

    def __init__(
        self,
        served: ServedModel,
        tokenizer: PreTrainedTokenizerBase,
        engine: EngineThread | AdapterEngine,
        *,
        max_length: int,
        max_scored: int,
        vocabulary: int,
    ) -> None:
        self.served = served
        self.tokenizer = tokenizer
        self.engine = engine
        self.max_length, self.max_scored = max_length, max_scored
        self.vocabulary = vocabulary
        self.names = TokenNames(tokenizer)
        self.created = int(time.time())

    @classmethod
    def load(cls, served: ServedModel, slots: int, share: float = 1.0) -> ChatModel:
        """Load the model with its adapter, and let it answer one token.

        Args:
            served: what to load.
            slots: requests to work on at the same time, fewer where memory is short.
            share: part of the memory for keys and values that this model may take.

        Raises:
            InvalidInput: the model or its tokenizer cannot be loaded.
        """
        tokenizer = load_tokenizer(served.reference)
        model, prefix = load_for_generation(served.reference)
        return cls.start(served, tokenizer, model, slots, share, prefix=prefix)

    @classmethod
    def start(
        cls,
        served: ServedModel,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        slots: int,
        share: float,
        *,
        prefix: Prefix | None = None,
        adapter_rank: int = 0,
    ) -> ChatModel:
        """Put a model behind an engine, and let it answer one token.

        Args:
            served: what it is.
            tokenizer: of the model.
            model: in evaluation mode; the engine takes it over.
            slots: see `load`.
            share: see `load`.
            prefix: virtual tokens that every prompt stands after.
            adapter_rank: room is left for an adapter of this rank beside each request.
        """
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        budget = int(
            share * (GPU_CACHE_SHARE * torch.cuda.mem_get_info()[0] if model.device.type == "cuda" else CPU_CACHE_BYTES)
        )
        positions = model.config.max_position_embeddings
        beside = adapter_bytes(model, adapter_rank) if model.device.type == "cuda" else 0  # a CPU's is touched as it is used
        slots, max_length = cache_plan(budget, cache_bytes_per_token(model), positions, slots, beside)
        if max_length < positions:
            log.warning("model '%s': context cut from %d to %d tokens to fit memory", served.name, positions, max_length)
        max_length -= prefix[0][0].shape[-2] if prefix else 0
        engine = build_engine(model, None, end_tokens(tokenizer, model), slots, max_length=max_length, prefix=prefix)
        generate(engine, [Request("first", (int(tokenizer.eos_token_id),), Sampling(max_tokens=1))])
        return cls(
            served,
            tokenizer,
            EngineThread(engine, served.name),
            max_length=max_length,
            max_scored=engine.max_scored,
            vocabulary=model.get_input_embeddings().weight.shape[0],
        )

    def read(self, body: ChatCompletionRequest) -> list[Request]:
        """The prompt and sampling of a request, `n` times, each with a random stream of its own.

        Raises:
            OpenAIError: 400: the chat template refuses the messages, or prompt and answer do not fit.
        """
        if body.size > LONGEST_TOKEN * self.max_length:
            message = (
                f"messages: far longer than this model's maximum context length of {self.max_length} tokens; shorten them"
            )
            raise OpenAIError(400, message, param="messages", code="context_length_exceeded")
        try:
            "".join(message.content for message in body.messages).encode()
            prompt = self.tokenizer.apply_chat_template(
                [message.for_template() for message in body.messages],
                tools=body.offered_tools or None,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        except UnicodeError as error:
            raise OpenAIError(
                400, f"messages: half a character cannot be read: {one_line(error)}", param="messages"
            ) from error
        except Exception as error:  # a template is a program
            message = f"messages: the model's chat template refuses them: {one_line(error)}"
            raise OpenAIError(400, message, param="messages") from error
        wrong = next((token for token in prompt if not 0 <= token < self.vocabulary), None)
        if wrong is not None:
            raise OpenAIError(400, f"messages: they hold token {wrong}, which this model does not have", param="messages")
        limit = self._limit(body, len(prompt))
        seed = secrets.randbits(63) if body.seed is None else body.seed
        top = body.top_logprobs
        return [
            Request(uuid.uuid4().hex, tuple(prompt), Sampling(body.temperature, body.top_p, limit, (seed + i) % SEEDS, top))
            for i in range(body.n)
        ]

    def _limit(self, body: ChatCompletionRequest, prompt_tokens: int) -> int:
        room = self.max_length - prompt_tokens
        name, limit = body.token_limit or ("messages", min(self.served.max_tokens, max(room, 1)))
        if limit > self.served.max_tokens:
            raise OpenAIError(
                400, f"{name}: {limit} is too large: this model gives at most {self.served.max_tokens} tokens", param=name
            )
        if limit > room:
            raise OpenAIError(
                400,
                f"This model's maximum context length is {self.max_length} tokens. However, you requested {limit} tokens "
                f"for the answer and {prompt_tokens} for the messages; shorten either.",
                param="messages",
                code="context_length_exceeded",
            )
        return limit

    async def answer(
        self, request: Request, stops: list[str], *, stream: bool, goes_on: bool = False
    ) -> AsyncGenerator[Piece, None]:
        """The text of the answer, in pieces with `stream`, else in one.

        Leaving the iterator early cancels the request in the engine.

        Args:
            request: tokens in, and how to draw.
            stops: strings that end the answer before them.
            stream: whether to give pieces.
            goes_on: whether the answer continues the prompt's text, so that a space between them is the answer's.
        """
        before = request.prompt[-CONTEXT_TOKENS:] if goes_on else ()
        detokenizer, stopper = Detokenizer(self.tokenizer, before), StopStrings(stops)
        count, text = 0, ""
        waiting: list[Token] = []
        async with aclosing(self.engine.tokens(request, stream=stream or bool(stops))) as steps:
            async for drawn in steps:
                # Token by token where a stop string may cut between them.
                for part in [[token] for token in drawn] if stops else [drawn]:
                    count += len(part)
                    waiting += part
                    text += stopper.push(detokenizer.push([token.token for token in part]))
                    reason = part[-1].finish_reason
                    if reason is not None:
                        text += stopper.push(detokenizer.flush())
                    if stopper.reached:
                        reason = "stop"
                    if reason is not None:
                        yield Piece(text + stopper.flush(), count, reason, waiting)
                        return
                if stream and text:
                    yield Piece(text, count, None, waiting)
                    text, waiting = "", []
        raise PlumblineError(f"the engine of model '{self.served.name}' ended an answer without a reason")


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of keys and values for one position of one sequence."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize)


def adapter_bytes(model: PreTrainedModel, rank: int) -> int:
    """Bytes of an adapter of this rank on all linear layers."""
    return rank * model.dtype.itemsize * sum(sum(weight.shape) for weight in linear_weights(model).values())


def cache_plan(budget: int, bytes_per_token: int, positions: int, wanted: int, beside: int = 0) -> tuple[int, int]:
    """Slots and context that fit the memory.

    Args:
        budget: bytes for keys and values, and for what is beside them.
        bytes_per_token: of one sequence.
        positions: longest context of the model.
        wanted: slots to have if they fit.
        beside: bytes that each slot takes for something else.

    Returns:
        (slots, context length). The full context with fewer slots, down to `USEFUL_SLOTS`; then a shorter context.

    Raises:
        PlumblineError: not even two positions fit.
    """
    slots = min(wanted, max(budget // (bytes_per_token * positions + beside), USEFUL_SLOTS))
    length = min(positions, (budget // slots - beside) // bytes_per_token)
    if length < 2:
        raise PlumblineError(
            f"{budget} bytes for keys and values are too few for {slots} requests; free memory on the device"
        )
    return slots, length
