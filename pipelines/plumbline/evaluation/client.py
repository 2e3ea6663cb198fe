"""Asking an OpenAI-compatible endpoint many questions: the one file of this area that speaks HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from plumbline.data.row import Message
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.evaluation.journal import Journal, Reply

DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before each further try of one request
SILENCE = 600.0  # seconds without a byte after which a request is lost; a queued reply on a slow machine takes minutes
TOO_LONG = "context_length_exceeded"  # OpenAI's error code
CONTEXT_CUT = "context_cut"  # finish reason where the beginning of a text did not fit and was left out


@dataclass(frozen=True)
class Sampling:
    """How one reply is drawn. It ends before the first of the `stop` strings. `top_p` None: all tokens."""

    temperature: float
    max_tokens: int
    seed: int
    stop: tuple[str, ...] = ()
    top_p: float | None = None

    def fields(self) -> dict[str, Any]:
        """Of the request. Of what is not asked for there is no word."""
        return {name: value for name, value in asdict(self).items() if value not in ((), None)}


@dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        model: its name at the endpoint.
        fingerprint: what tells this model's content from another's.
        messages: the chat so far.
        sampling: how to draw the reply; of no meaning with choices.
        choices: continuations of the one message, which is plain text then, without a chat template. The reply holds a JSON list with the
            natural log-likelihood of each, as `benchmarks.benchmark.likelihoods` reads it.
        greedy: the list holds of each choice also whether greedy sampling would write it: `[likelihood, true]`.
        plain: the one message is plain text that goes on, without a chat template.
    """

    model: str
    fingerprint: str
    messages: list[Message]
    sampling: Sampling
    choices: tuple[str, ...] = ()
    greedy: bool = False
    plain: bool = False

    @property
    def key(self) -> str:
        """Equal for equal questions to equal models, whatever the model is called."""
        facts: list[Any] = [self.fingerprint, self.messages]
        facts += [list(self.choices)] if self.choices else [self.sampling.fields()]
        facts += [name for name in ("greedy", "plain") if getattr(self, name)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def ask(
    base_url: str,
    questions: Sequence[Question],
    *,
    concurrency: int,
    journal: Journal,
    on_reply: Callable[[int, int], None] = lambda done, total: None,
    delays: Sequence[float] = DELAYS,
) -> list[Reply]:
    """Ask everything that the journal does not know; equal questions once.

    Args:
        base_url: ends in `/v1`.
        questions: in the order of the replies.
        concurrency: requests in flight.
        journal: gets every reply when it comes.
        on_reply: called with distinct questions done and in all.
        delays: seconds before each further try after a connection error, a 429 or a 5xx.

    Returns:
        One reply per question.

    Raises:
        InvalidInput: the endpoint refuses a request. A prompt that leaves no room for an answer is no refusal but an
            empty reply with finish reason `context_length_exceeded`. A text with choices that is too long loses its beginning, as in
            lm-evaluation-harness, so that few-shot scores can be compared with published ones; its finish reason is `context_cut`.
        PlumblineError: the last try failed too, or the reply has not OpenAI's form.
    """
    distinct = {question.key: question for question in questions}
    missing = [question for key, question in distinct.items() if key not in journal.replies]
    done = len(distinct) - len(missing)
    on_reply(done, len(distinct))

    def keep(question: Question, reply: Reply) -> None:
        nonlocal done
        journal.add(question.key, reply)
        done += 1
        on_reply(done, len(distinct))

    if missing:
        asyncio.run(_ask_all(base_url.rstrip("/"), missing, concurrency, keep, delays))
    return [journal.replies[question.key] for question in questions]


async def _ask_all(
    base_url: str,
    questions: Sequence[Question],
    concurrency: int,
    keep: Callable[[Question, Reply], None],
    delays: Sequence[float],
) -> None:
    queue: Iterator[Question] = iter(questions)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=SILENCE)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            for question in queue:
                asked = _score if question.choices else _ask
                keep(question, await asked(session, base_url, question, delays))

        workers = [asyncio.create_task(work()) for _ in range(min(concurrency, len(questions)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _ask(session: aiohttp.ClientSession, base_url: str, question: Question, delays: Sequence[float]) -> Reply:
    if question.plain:
        url, asked = f"{base_url}/completions", {"prompt": question.messages[0]["content"]}
    else:
        url, asked = f"{base_url}/chat/completions", {"messages": question.messages}
    body = {"model": question.model, **asked, "stream": False, **question.sampling.fields()}
    status, text = await _post(session, url, body, question.model, delays)
    if _is_too_long(status, text):
        # Prompt and max_tokens together do not fit. Without the limit an endpoint gives what room is left, which is less. Completions have no
        # such default, and there the text loses its beginning, as in lm-evaluation-harness.
        if question.plain:
            body["truncate_prompt_tokens"] = -1
        else:
            del body["max_tokens"]
        status, text = await _post(session, url, body, question.model, delays)
        if _is_too_long(status, text):
            return Reply("", TOO_LONG)
    if status != 200:
        raise InvalidInput(f"{url} refuses a question to model '{question.model}' with {_problem(status, text)}")
    return _reply(url, text)


async def _score(session: aiohttp.ClientSession, base_url: str, question: Question, delays: Sequence[float]) -> Reply:
    """One request for all choices.

    The rules are those of lm-evaluation-harness: spaces at the end of the context go to the choices, a context and its choice are encoded
    together, and the choice's tokens are those after as many as the context has by itself, but at least one. Our endpoint does so with
    `echo_from`. Of one that does not know it, which tells all tokens, those are taken that end behind the context; where one token holds
    the end of the context and the beginning of the choice, it counts to the choice.
    """
    url = f"{base_url}/completions"
    text = question.messages[0]["content"]
    context = text.rstrip()
    texts = [text + choice for choice in question.choices]
    body = {
        "model": question.model, "prompt": texts, "max_tokens": 0, "echo": True, "logprobs": int(question.greedy), "temperature": 0,
        "echo_from": len(context), "truncate_prompt_tokens": -1,
    }  # fmt: skip
    status, answer = await _post(session, url, body, question.model, delays)
    if _is_too_long(status, answer):
        return Reply("", TOO_LONG)
    if status != 200:
        raise InvalidInput(f"{url} refuses a question to model '{question.model}' with {_problem(status, answer)}")
    try:
        choices = sorted(json.loads(answer)["choices"], key=lambda choice: int(choice["index"]))
        told = [
            _likelihood(choice["logprobs"], len(context), len(whole)) for choice, whole in zip(choices, texts, strict=False)
        ]
        found = [[value, greedy] if question.greedy else value for value, greedy, _ in told]
        cut = any(choice.get("prompt_tokens_cut") for choice in choices) or any(lost for *_, lost in told)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise PlumblineError(f"{url} answers with something that is no completion ({error!r}): {answer[:200]}") from error
    if len(choices) != len(texts):
        raise PlumblineError(f"{url} answers {len(texts)} prompts with {len(choices)} completions: {answer[:200]}")
    return Reply(json.dumps(found), CONTEXT_CUT if cut else "stop")


def _likelihood(told: dict[str, Any], context: int, length: int) -> tuple[float, bool, bool]:
    """Sum over what is told, or where that begins with the context over the tokens that end behind its `context` characters; whether each of them is the
    likeliest in its place, where the likeliest are told; and whether the text of `length` characters lost its beginning.

    Offsets are counted from the end: some servers count a token that begins every text as part of it, others tell only what they kept.

    Raises:
        ValueError: there is none, or one without a probability.
    """
    logprobs, cut = told["token_logprobs"], False
    likeliest = told.get("top_logprobs") or [None] * len(logprobs)
    if logprobs[0] is None:  # the first token of a text has no probability
        ends = [start + len(token) for start, token in zip(told["text_offset"], told["tokens"], strict=True)]
        shift = ends[-1] - length
        cut = shift < 0
        kept = [place for place, end in enumerate(ends) if end - shift > context]
        logprobs, likeliest = [logprobs[place] for place in kept], [likeliest[place] for place in kept]
    if not logprobs or None in logprobs:
        raise ValueError("a choice has a token without a probability, or has none")
    greedy = all(top and value >= max(top.values()) for value, top in zip(logprobs, likeliest, strict=True))
    return float(sum(logprobs)), greedy, cut


async def _post(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], model: str, delays: Sequence[float]
) -> tuple[int, str]:
    """Status and text of the first response that another try would not change."""
    problem = ""
    for delay in (0.0, *delays):
        await asyncio.sleep(delay)
        try:
            async with session.post(url, json=body) as response:
                text = await response.text()
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            problem = f"{type(error).__name__}: {error}"
            continue
        if response.status < 500 and response.status != 429:
            return response.status, text
        problem = _problem(response.status, text)
    raise PlumblineError(f"{url} does not answer a question to model '{model}' in {len(delays) + 1} tries: {problem}")


def _is_too_long(status: int, text: str) -> bool:
    return status == 400 and _error_field(text, "code") == TOO_LONG


def _problem(status: int, text: str) -> str:
    return f"HTTP {status}: {_error_field(text, 'message') or text[:200]}"


def _reply(url: str, text: str) -> Reply:
    try:
        body = json.loads(text)
        choice, usage = body["choices"][0], body.get("usage") or {}
        cut = CONTEXT_CUT if choice.get("prompt_tokens_cut") else ""
        taken = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        said = choice["text"] if "text" in choice else choice["message"]["content"]
        return Reply(str(said or ""), cut or str(choice["finish_reason"]), *taken)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise PlumblineError(f"{url} answers with something that is no chat completion ({error!r}): {text[:200]}") from error


def _error_field(text: str, name: str) -> str | None:
    try:
        value: Any = json.loads(text)["error"][name]
    except (ValueError, KeyError, TypeError):
        return None  # not OpenAI's form; the caller shows the text
    return value if isinstance(value, str) else None
