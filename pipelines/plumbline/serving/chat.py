"""One served model: chat messages in, text out."""

from __future__ import annotations

import logging
import secrets
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import jinja2
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plumbline.api.base import BASE
from plumbline.api.stages.serve import ServeSpec
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.models.load import end_tokens, load_for_generation, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.plan import Plan
from plumbline.rollout.engine import Request, Sampling, build_engine, generate
from plumbline.serving.engine_thread import EngineThread
from plumbline.serving.openai_schema import ChatCompletionRequest, FinishReason, OpenAIError
from plumbline.serving.text import Detokenizer, StopStrings

log = logging.getLogger(__name__)

CPU_CACHE_BYTES = 4 * 2**30  # for keys and values on a CPU, where untouched pages cost nothing
GPU_CACHE_SHARE = 0.8  # of the memory that is free once the weights are there
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
    """A piece of an answer. `completion_tokens` counts from its start; the last piece has a finish reason."""

    text: str
    completion_tokens: int
    finish_reason: FinishReason | None


class ChatModel:
    """A loaded model behind its engine thread. Methods belong to one event loop."""

    def __init__(
        self, served: ServedModel, tokenizer: PreTrainedTokenizerBase, engine: EngineThread, max_length: int
    ) -> None:
        self.served = served
        self.engine = engine
        self.max_length = max_length
        self.created = int(time.time())
        self._tokenizer = tokenizer

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
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        budget = int(
            share * (GPU_CACHE_SHARE * torch.cuda.mem_get_info()[0] if model.device.type == "cuda" else CPU_CACHE_BYTES)
        )
        positions = model.config.max_position_embeddings
        slots, max_length = cache_plan(budget, cache_bytes_per_token(model), positions, slots)
        if max_length < positions:
            log.warning("model '%s': context cut from %d to %d tokens to fit memory", served.name, positions, max_length)
        max_length -= prefix[0][0].shape[-2] if prefix else 0
        engine = build_engine(model, None, end_tokens(tokenizer, model), slots, max_length=max_length, prefix=prefix)
        generate(engine, [Request("first", (int(tokenizer.eos_token_id),), Sampling(max_tokens=1))])
        return cls(served, tokenizer, EngineThread(engine, served.name), max_length)

    def read(self, body: ChatCompletionRequest) -> Request:
        """The prompt and sampling of a request.

        Raises:
            OpenAIError: 400: the chat template refuses the messages, or prompt and answer do not fit.
        """
        messages = [message.model_dump() for message in body.messages]
        try:
            prompt = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except jinja2.TemplateError as error:
            raise OpenAIError(400, f"messages: the model's chat template refuses them: {error}", param="messages") from error
        return Request(uuid.uuid4().hex, tuple(prompt), self._sampling(body, len(prompt)))

    def _sampling(self, body: ChatCompletionRequest, prompt_tokens: int) -> Sampling:
        room = self.max_length - prompt_tokens
        field, limit = body.token_limit or ("messages", min(self.served.max_tokens, max(room, 1)))
        if limit > self.served.max_tokens:
            raise OpenAIError(
                400, f"{field}: {limit} is too large: this model gives at most {self.served.max_tokens} tokens", param=field
            )
        if limit > room:
            raise OpenAIError(
                400,
                f"This model's maximum context length is {self.max_length} tokens. However, you requested {limit} tokens "
                f"for the answer and {prompt_tokens} for the messages; shorten either.",
                param="messages",
                code="context_length_exceeded",
            )
        seed = secrets.randbits(63) if body.seed is None else body.seed
        return Sampling(body.temperature, body.top_p, limit, seed)

    async def answer(self, request: Request, stops: list[str], *, stream: bool) -> AsyncGenerator[Piece, None]:
        """The text of the answer, in pieces with `stream`, else in one.

        Leaving the iterator early cancels the request in the engine.
        """
        detokenizer, stopper = Detokenizer(self._tokenizer), StopStrings(stops)
        count, text = 0, ""
        async with aclosing(self.engine.tokens(request, stream=stream or bool(stops))) as steps:
            async for drawn in steps:
                # Token by token where a stop string may cut between them.
                for part in [[token] for token in drawn] if stops else [drawn]:
                    count += len(part)
                    text += stopper.push(detokenizer.push([token.token for token in part]))
                    reason = part[-1].finish_reason
                    if reason is not None:
                        text += stopper.push(detokenizer.flush())
                    if stopper.reached:
                        reason = "stop"
                    if reason is not None:
                        yield Piece(text + stopper.flush(), count, reason)
                        return
                if stream and text:
                    yield Piece(text, count, None)
                    text = ""
        raise PlumblineError(f"the engine of model '{self.served.name}' ended an answer without a reason")


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of keys and values for one position of one sequence."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize)


def cache_plan(budget: int, bytes_per_token: int, positions: int, wanted: int) -> tuple[int, int]:
    """Slots and context that fit the memory.

    Args:
        budget: bytes for keys and values.
        bytes_per_token: of one sequence.
        positions: longest context of the model.
        wanted: slots to have if they fit.

    Returns:
        (slots, context length). The full context with fewer slots, down to `USEFUL_SLOTS`; then a shorter context.

    Raises:
        PlumblineError: not even two positions fit.
    """
    slots = min(wanted, max(budget // (bytes_per_token * positions), USEFUL_SLOTS))
    length = min(positions, budget // (bytes_per_token * slots))
    if length < 2:
        raise PlumblineError(
            f"{budget} bytes for keys and values are too few for {slots} requests; free memory on the device"
        )
    return slots, length
