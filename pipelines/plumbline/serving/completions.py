"""Completions of plain text, and how likely a model finds given text."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from plumbline.rollout.engine import Likely, Request, Scored, Scoring, Token
from plumbline.serving.chat import LONGEST_TOKEN, ChatModel, Piece, answers_to
from plumbline.serving.merging import gathered, merged
from plumbline.serving.openai_answers import (
    LEAST_LOGPROB,
    CompletionChoice,
    CompletionLogprobs,
    FinishReason,
    OpenAIError,
    TextCompletion,
    Usage,
)
from plumbline.serving.openai_requests import CompletionRequest
from plumbline.serving.text import TokenNames

NO_ANSWER: FinishReason = "length"
"""How an answer of no tokens ends."""

MOST_TEXTS = 64  # of the longest length, in one request


@dataclass(frozen=True)
class Prompt:
    """What one prompt is read as.

    Attributes:
        tokens: at least one.
        told: the first token that is echoed.
        text: what is echoed.
        names, offsets: of each echoed token, and where it begins from the prompt's own beginning; where that is asked for.
        length: of the whole prompt, in characters.
        cut: tokens left out at the beginning.
    """

    tokens: tuple[int, ...]
    told: int
    text: str
    names: list[str]
    offsets: list[int]
    length: int
    cut: int


def read(model: ChatModel, body: CompletionRequest) -> list[Prompt]:
    """The prompts of a request.

    Raises:
        OpenAIError: 400: one has no tokens or unknown ones, or does not fit with its answer; or an unknown token is biased.
    """
    if body.max_tokens > model.served.max_tokens:
        limit = model.served.max_tokens
        message = f"max_tokens: {body.max_tokens} is too large: this model gives at most {limit} tokens"
        raise OpenAIError(400, message, param="max_tokens")
    model.check_bias(body)
    texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]
    longest = LONGEST_TOKEN * model.max_length
    if sum(map(len, body.prompt)) > MOST_TEXTS * longest or any(len(prompt) > longest for prompt in body.prompt):
        message = f"prompt: far longer than this model's maximum context length of {model.max_length} tokens; shorten it"
        raise OpenAIError(400, message, param="prompt", code="context_length_exceeded")
    try:
        found = _of_texts(model, body, texts) if texts else _of_tokens(model, body)
    except UnicodeError as error:
        raise OpenAIError(400, f"prompt: half a character cannot be read: {error}", param="prompt") from error
    room = model.max_length - body.max_tokens if body.max_tokens else model.max_scored
    keep = room if body.truncate_prompt_tokens == -1 else body.truncate_prompt_tokens
    return [_fitted(model, prompt, room, keep, body.max_tokens) for prompt in found]


def _of_texts(model: ChatModel, body: CompletionRequest, texts: list[str]) -> list[Prompt]:
    contexts = {text[: body.echo_from] for text in texts} if body.echo_from is not None else set()
    together = [*texts, *contexts]
    "".join(texts).encode()
    # What the tokenizer adds has no place in the text.
    encoded = model.tokenizer(together, add_special_tokens=body.add_special_tokens, return_special_tokens_mask=True)
    all_tokens = dict(zip(together, zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True), strict=True))
    prompts = []
    for text in texts:
        tokens, masks = all_tokens[text]
        added = next((i for i, mask in enumerate(masks) if not mask), len(masks))
        told, skipped = 0, 0
        if body.echo_from is not None:
            context = text[: body.echo_from]
            told, skipped = len(all_tokens[context][0]), len(context)
            if not told:
                tokens, told, added = [_end_of_text(model), *tokens], 1, added + 1
            told = min(told, len(tokens) - 1)
        names, offsets = _named(model.names, body, tokens, added)
        prompts.append(Prompt(tuple(tokens), told, text[skipped:], names[told:], offsets[told:], len(text), 0))
    return prompts


def _of_tokens(model: ChatModel, body: CompletionRequest) -> list[Prompt]:
    prompts = []
    for given in body.prompt:
        tokens = [int(token) for token in given]
        wrong = next((token for token in tokens if not 0 <= token < model.vocabulary), None)
        if wrong is not None:
            raise OpenAIError(400, f"prompt: token {wrong} must be 0 to {model.vocabulary - 1}", param="prompt")
        told, added = body.echo_from or 0, 0
        if body.echo_from == 0:
            tokens, told, added = [_end_of_text(model), *tokens], 1, 1
        told = min(told, max(len(tokens) - 1, 0))
        names, offsets = _named(model.names, body, tokens, added)
        text = model.names.text(tokens[told:], begin=told <= added) if body.echo else ""
        length = offsets[-1] + len(names[-1]) if offsets else len(text)
        prompts.append(Prompt(tuple(tokens), told, text, names[told:], offsets[told:], length, 0))
    return prompts


def _named(names: TokenNames, body: CompletionRequest, tokens: list[int], added: int) -> tuple[list[str], list[int]]:
    """Names and offsets of a prompt's tokens, where they are told. The first `added` ones have no place in its text."""
    if not body.echo or body.logprobs is None:
        return [], []
    own = names.of(tokens[added:], begin=True)
    return names.of(tokens[:added], begin=True) + own, [0] * added + names.offsets(tokens[added:], own)


def _end_of_text(model: ChatModel) -> int:
    tokenizer = model.tokenizer
    return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)


def _fitted(model: ChatModel, prompt: Prompt, room: int, keep: int | None, max_tokens: int) -> Prompt:
    """The prompt, cut at its beginning to `keep` tokens.

    Raises:
        OpenAIError: 400: it has no tokens, or more than `room`.
    """
    number = len(prompt.tokens)
    if not number:
        raise OpenAIError(400, "prompt: it has no tokens; give at least one", param="prompt")
    if keep is not None and 0 < keep < number:
        cut, number = number - keep, keep
        told = max(prompt.told - cut, min(prompt.told, 1))
        gone = cut + told - prompt.told  # of what was to be echoed
        text = model.names.text(prompt.tokens[cut + told :]) if gone else prompt.text
        prompt = Prompt(prompt.tokens[cut:], told, text, prompt.names[gone:], prompt.offsets[gone:], prompt.length, cut)
    if number > room or room < 1:
        raise OpenAIError(
            400,
            f"This model's maximum context length is {model.max_length} tokens. However, you requested {max_tokens} tokens "
            f"for the answer and {number} for the prompt; shorten either.",
            param="prompt",
            code="context_length_exceeded",
        )
    return prompt


async def complete(model: ChatModel, body: CompletionRequest, prompts: list[Prompt]) -> TextCompletion:
    """Every answer, those of the first prompt first."""
    scores = await _scores(model, body, prompts)
    requests = _requests(body, prompts)
    pieces = (
        await gathered(_whole(model, body, request) for request in requests)
        or [Piece("", 0, NO_ANSWER)] * len(prompts) * body.n
    )
    choices = []
    for index, piece in enumerate(pieces):
        prompt = prompts[index // body.n]
        choice = CompletionChoice(
            index=index, text=piece.text, finish_reason=piece.finish_reason, prompt_tokens_cut=prompt.cut
        )
        choice.logprobs = _drawn(model.names, body, piece.drawn, prompt.length if body.echo else 0)
        if body.echo:
            choice.text = prompt.text + piece.text
            choice.logprobs = _joined(_echoed(model.names, body, prompt, scores[index // body.n]), choice.logprobs)
        choices.append(choice)
    return TextCompletion(**head(model), choices=choices, usage=usage([len(prompt.tokens) for prompt in prompts], pieces))


async def stream(model: ChatModel, body: CompletionRequest, prompts: list[Prompt]) -> AsyncGenerator[TextCompletion, None]:
    """The same in pieces, of all answers as they come; the last piece is the usage."""
    shared = head(model)
    scores = await _scores(model, body, prompts)
    requests = _requests(body, prompts)
    latest = [Piece("", 0, None)] * (len(prompts) * body.n)
    ends = [0] * len(latest)
    for index in range(len(latest) if body.echo else 0):
        prompt = prompts[index // body.n]
        ends[index] = prompt.length
        choice = CompletionChoice(
            index=index, text=prompt.text, finish_reason=None if requests else NO_ANSWER, prompt_tokens_cut=prompt.cut
        )
        choice.logprobs = _echoed(model.names, body, prompt, scores[index // body.n])
        yield TextCompletion(**shared, choices=[choice])
    async with aclosing(
        merged([model.answer(request, body.stop, stream=True, goes_on=True) for request in requests])
    ) as pieces:
        async for index, piece in pieces:
            latest[index] = piece
            choice = CompletionChoice(
                index=index,
                text=piece.text,
                finish_reason=piece.finish_reason,
                prompt_tokens_cut=prompts[index // body.n].cut,
            )
            choice.logprobs = _drawn(model.names, body, piece.drawn, ends[index])
            ends[index] += len(model.names.text([token.token for token in piece.drawn]))
            yield TextCompletion(**shared, choices=[choice])
    yield TextCompletion(**shared, choices=[], usage=usage([len(prompt.tokens) for prompt in prompts], latest))


def head(model: ChatModel) -> dict[str, Any]:
    """What every answer and every event of it begins with."""
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model.served.name,
        "system_fingerprint": model.served.reference.fingerprint,
    }


def usage(prompts: Sequence[int], pieces: Sequence[Piece]) -> Usage:
    """Of prompts of so many tokens and the latest pieces of `n` answers to each, which is read once: those that came later found it in the cache."""
    n = len(pieces) // len(prompts)
    cached = (min(piece.cached_tokens for piece in pieces[i * n : (i + 1) * n]) for i in range(len(prompts)))
    return Usage.of(sum(prompts), sum(piece.completion_tokens for piece in pieces), sum(cached))


def _requests(body: CompletionRequest, prompts: Sequence[Prompt]) -> list[Request]:
    """`n` for each prompt; none where no answer is asked for."""
    if not body.max_tokens:
        return []
    return answers_to(body, [prompt.tokens for prompt in prompts], body.max_tokens, body.logprobs or 0)


async def _whole(model: ChatModel, body: CompletionRequest, request: Request) -> Piece:
    async with aclosing(model.answer(request, body.stop, stream=False, goes_on=True)) as pieces:
        return await anext(pieces)


async def _scores(model: ChatModel, body: CompletionRequest, prompts: Sequence[Prompt]) -> list[Scored | None]:
    """What the model thinks of what is echoed, where that is asked for and there is anything it can think of."""
    if not body.echo or body.logprobs is None:
        return [None] * len(prompts)
    wanted = {
        i: Scoring(uuid.uuid4().hex, prompt.tokens, max(prompt.told, 1), body.logprobs)
        for i, prompt in enumerate(prompts)
        if len(prompt.tokens) > 1
    }
    found = dict(zip(wanted, await model.engine.scores(list(wanted.values())), strict=True))
    return [found.get(i) for i in range(len(prompts))]


def _echoed(names: TokenNames, body: CompletionRequest, prompt: Prompt, scored: Scored | None) -> CompletionLogprobs | None:
    if body.logprobs is None:
        return None
    unscored: list[None] = [] if prompt.told else [None]
    logprobs: list[float] = scored.logprobs if scored else []
    top = _top(names, prompt.tokens[prompt.told + len(unscored) :], logprobs, scored.likeliest if scored else [])
    return CompletionLogprobs(
        tokens=prompt.names,
        token_logprobs=[*unscored, *(finite(value) for value in logprobs)],
        top_logprobs=[*unscored, *top] if body.logprobs else None,
        text_offset=prompt.offsets,
    )


def _drawn(names: TokenNames, body: CompletionRequest, drawn: Sequence[Token], start: int) -> CompletionLogprobs | None:
    if body.logprobs is None:
        return None
    tokens, logprobs = [token.token for token in drawn], [token.logprob for token in drawn]
    called = names.of(tokens, begin=False)
    top = _top(names, tokens, logprobs, [token.likeliest for token in drawn])
    return CompletionLogprobs(
        tokens=called,
        token_logprobs=[finite(value) for value in logprobs],
        top_logprobs=list(top) if body.logprobs else None,
        text_offset=names.offsets(tokens, called, start),
    )


def _top(
    names: TokenNames, tokens: Sequence[int], logprobs: Sequence[float], likeliest: Sequence[Sequence[Likely]]
) -> list[dict[str, float]]:
    """In OpenAI's form, where the likeliest tokens have the token itself among them."""
    top = []
    for token, logprob, others in zip(tokens, logprobs, likeliest, strict=True):
        there: dict[str, float] = {}
        for other, value in (*others, (token, logprob)):
            there.setdefault(names[other], finite(value))  # of parts of characters, which are called alike, the likeliest
        top.append(there)
    return top


def finite(logprob: float) -> float:
    """A log-probability as JSON can hold it."""
    return max(logprob, LEAST_LOGPROB)


def _joined(one: CompletionLogprobs | None, other: CompletionLogprobs | None) -> CompletionLogprobs | None:
    if one is None or other is None:
        return None
    return CompletionLogprobs(
        tokens=one.tokens + other.tokens,
        token_logprobs=one.token_logprobs + other.token_logprobs,
        top_logprobs=None
        if one.top_logprobs is None or other.top_logprobs is None
        else one.top_logprobs + other.top_logprobs,
        text_offset=one.text_offset + other.text_offset,
    )
