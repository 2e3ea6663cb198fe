"""Asking an OpenAI-compatible endpoint many questions: the one file of this area that speaks HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.evaluation.benchmarks.benchmark import Message
from plumbline.evaluation.journal import Journal, Reply

DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before each further try of one request
SILENCE = 600.0  # seconds without a byte after which a request is lost; a queued reply on a slow machine takes minutes
TOO_LONG = "context_length_exceeded"  # OpenAI's error code


@dataclass(frozen=True)
class Sampling:
    """How one reply is drawn."""

    temperature: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        model: its name at the endpoint.
        fingerprint: what tells this model's content from another's.
        messages: the chat so far.
        sampling: how to draw the reply.
    """

    model: str
    fingerprint: str
    messages: list[Message]
    sampling: Sampling

    @property
    def key(self) -> str:
        """Equal for equal questions to equal models, whatever the model is called."""
        facts = [self.fingerprint, self.messages, asdict(self.sampling)]
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
            empty reply with finish reason `context_length_exceeded`.
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
        asyncio.run(_ask_all(f"{base_url.rstrip('/')}/chat/completions", missing, concurrency, keep, delays))
    return [journal.replies[question.key] for question in questions]


async def _ask_all(
    url: str,
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
                keep(question, await _ask(session, url, question, delays))

        workers = [asyncio.create_task(work()) for _ in range(min(concurrency, len(questions)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _ask(session: aiohttp.ClientSession, url: str, question: Question, delays: Sequence[float]) -> Reply:
    body = {"model": question.model, "messages": question.messages, "stream": False, **asdict(question.sampling)}
    status, text = await _post(session, url, body, question.model, delays)
    if _is_too_long(status, text):
        # Prompt and max_tokens together do not fit. Without the limit an endpoint gives what room is left, which is less.
        del body["max_tokens"]
        status, text = await _post(session, url, body, question.model, delays)
        if _is_too_long(status, text):
            return Reply("", TOO_LONG)
    if status != 200:
        raise InvalidInput(f"{url} refuses a question to model '{question.model}' with {_problem(status, text)}")
    return _reply(url, text)


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
        choice = json.loads(text)["choices"][0]
        return Reply(str(choice["message"]["content"] or ""), str(choice["finish_reason"]))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise PlumblineError(f"{url} answers with something that is no chat completion ({error!r}): {text[:200]}") from error


def _error_field(text: str, name: str) -> str | None:
    try:
        value: Any = json.loads(text)["error"][name]
    except (ValueError, KeyError, TypeError):
        return None  # not OpenAI's form; the caller shows the text
    return value if isinstance(value, str) else None
