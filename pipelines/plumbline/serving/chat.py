"""One served model: a prompt in, text out."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from plumbline.api.base import BASE
from plumbline.api.stages.serve import ServeSpec
from plumbline.errors import InvalidInput, PlumblineError, one_line
from plumbline.models.load import load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.plan import Plan
from plumbline.rollout.engine import Request, Sampling, Token
from plumbline.serving.engine_loop import EngineLimits
from plumbline.serving.engine_process import EngineProcess, HostProcess
from plumbline.serving.engine_readers import EngineReaders
from plumbline.serving.engine_thread import AdapterEngine, EngineThread
from plumbline.serving.openai_answers import FinishReason, OpenAIError
from plumbline.serving.openai_requests import ChatCompletionRequest, SampledRequest
from plumbline.serving.text import Detokenizer, StopStrings, TokenNames

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT_TOKENS = 4  # of a prompt, for the text of what comes after it; a character has no more
SEEDS = 2**63  # two that differ by their sign alone are two seeds
LONGEST_TOKEN = 128  # characters; a text that is so much longer than the context is refused unread


@dataclass(frozen=True)
class ServedModel:
    """A model and the name that clients ask for. Plain values.

    Attributes:
        name: `model` in requests.
        reference: what to load.
        max_tokens: longest answer that a request may ask for.
        engine: `auto` or `vllm`.
    """

    name: str
    reference: ModelReference
    max_tokens: int
    engine: str = "auto"

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
        name = node.spec.model_name or plan.name
        return cls(name, ModelReference.of(plan, artifact), node.spec.max_tokens, node.spec.engine)


@dataclass(frozen=True)
class Piece:
    """A piece of an answer.

    Attributes:
        text: what is certain now.
        completion_tokens: how many were drawn since the answer began.
        finish_reason: of the last piece.
        drawn: tokens since the piece before; their text may come with the next.
        cached_tokens: of the prompt, that were in the engine's cache.
    """

    text: str
    completion_tokens: int
    finish_reason: FinishReason | None
    drawn: list[Token] = field(default_factory=list)
    cached_tokens: int = 0


class ChatModel:
    """A loaded model: its tokenizer here, its engine in a thread or a process. Methods belong to one event loop."""

    def __init__(
        self,
        served: ServedModel,
        tokenizer: PreTrainedTokenizerBase,
        engine: EngineReaders | AdapterEngine,
        limits: EngineLimits,
    ) -> None:
        self.served = served
        self.tokenizer = tokenizer
        self.engine = engine
        self.max_length, self.max_scored, self.vocabulary = limits.max_length, limits.max_scored, limits.vocabulary
        self.names = TokenNames(tokenizer)
        self.created = int(time.time())

    @classmethod
    def load(cls, served: ServedModel, slots: int, share: float = 1.0, *, host: HostProcess | None = None) -> ChatModel:
        """Load the model with its adapter, and let it answer one token.

        Args:
            served: what to load.
            slots: requests to work on at the same time, fewer where memory is short.
            share: part of the memory for keys and values that this model may take.
            host: a process for the engine alone, which is taken over; without it is a thread of this one.

        Raises:
            InvalidInput: the model or its tokenizer cannot be loaded.
        """
        if host is not None:
            with ExitStack() as failed:
                failed.callback(host.close)
                tokenizer = load_tokenizer(served.reference)
                process = EngineProcess(served, slots, share, host)
                model = cls(served, tokenizer, process, process.limits)
                failed.pop_all()
            return model
        from plumbline.serving.engine_loading import load_engine  # brings what runs models, which the other process has

        tokenizer = load_tokenizer(served.reference)
        engine, limits = load_engine(served, slots, share)
        return cls(served, tokenizer, EngineThread(engine, served.name), limits)

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
        self.check_bias(body)
        return answers_to(body, [tuple(prompt)], self._limit(body, len(prompt)), body.top_logprobs)

    def check_bias(self, body: SampledRequest) -> None:
        """Raises OpenAIError (400) where a token is biased that the model does not have."""
        unknown = next((token for token in body.logit_bias if token >= self.vocabulary), None)
        if unknown is not None:
            message = f"logit_bias: token {unknown} must be 0 to {self.vocabulary - 1}"
            raise OpenAIError(400, message, param="logit_bias")

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
        count, cached, text = 0, 0, ""
        waiting: list[Token] = []
        async with aclosing(self.engine.tokens(request, stream=stream or bool(stops))) as steps:
            async for drawn in steps:
                # Token by token where a stop string may cut between them.
                for part in [[token] for token in drawn] if stops else [drawn]:
                    count += len(part)
                    cached += sum(token.cached for token in part)
                    waiting += part
                    text += stopper.push(detokenizer.push([token.token for token in part]))
                    reason = part[-1].finish_reason
                    if reason is not None:
                        text += stopper.push(detokenizer.flush())
                    if stopper.reached:
                        reason = "stop"
                    if reason is not None:
                        yield Piece(text + stopper.flush(), count, reason, waiting, cached)
                        return
                if stream and text:
                    yield Piece(text, count, None, waiting, cached)
                    text, waiting = "", []
        raise PlumblineError(f"the engine of model '{self.served.name}' ended an answer without a reason")


def answers_to(body: SampledRequest, prompts: Iterable[tuple[int, ...]], max_tokens: int, likeliest: int) -> list[Request]:
    """`n` requests for answers to each prompt, each with a random stream of its own."""
    seed = secrets.randbits(63) if body.seed is None else body.seed
    sampling = Sampling(
        body.temperature,
        body.top_p,
        max_tokens,
        likeliest=likeliest,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=tuple(body.logit_bias.items()),
    )
    streams = [replace(sampling, seed=(seed + i) % SEEDS) for i in range(body.n)]
    return [Request(uuid.uuid4().hex, prompt, stream) for prompt in prompts for stream in streams]
