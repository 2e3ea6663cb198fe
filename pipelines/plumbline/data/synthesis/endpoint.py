"""One call to an OpenAI-compatible endpoint, with all that can go wrong: the one file of synthesis that speaks HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from plumbline.data.synthesis import tokens
from plumbline.data.synthesis.pace import Pace
from plumbline.data.synthesis.program import Request
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.evaluation.journal import Reply

DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before each further try of one call
RUBBISH_TRIES = 3  # of a call whose answers come with status 200 and are none
TIMED_OUT_TRIES = 3  # of a call: each is as long as the longest answer may take
LONGEST_WAIT = 600.0  # seconds that a server may ask to wait; longer is another attempt's business
TOLD_EVERY = 30.0  # seconds between two words about tries that fail
SLACK = 256  # tokens; short limits are not taken at their word
MOST_BYTES = 16 * 2**20  # of one answer: 4 million tokens
TOO_LONG = "context_length_exceeded"  # OpenAI's error code
NO_COMPLETION, FAILED = "no chat completion", "the teacher failed"
OVERLONG = "answer far longer than asked for"
REFUSED, DOES_NOT_FIT = "refused by the teacher", "does not fit the teacher's context"
"""Problems of a call that brought no answer."""
REDIRECTS = {301, 302, 303, 307, 308}
PASSING = {408, 409, 425, 429, *range(500, 600)}  # statuses that another try may change


def key_of(secret: str | None, variable: str, where: str) -> str | None:
    """The key of an endpoint; None where it needs none.

    Args:
        secret: name of the Secret that holds it in a cluster, as the run has it.
        variable: environment variable by which it comes.
        where: field path of the endpoint's block, for messages.

    Raises:
        InvalidInput: the variable is not set, or holds more than a key.
    """
    if secret is None:
        return None
    key = os.environ.get(variable, "").strip()
    if key and key.isascii() and key.isprintable():
        return key
    problem = "holds a line break or a character that no key has" if key else "is not set"
    raise InvalidInput(
        f"{where}.keySecret: the environment variable {variable} {problem}. In a cluster it holds `apiKey` of the Secret "
        f"'{secret}'; for a local run set it to the endpoint's key"
    )


class Endpoint:
    """A model behind an OpenAI-compatible API.

    Args:
        url: base URL, such as `https://api.openai.com/v1`.
        model: its name there.
        where: field path of its block in the run, for messages.
        key: sent as bearer token, to this URL only; no message ever shows it.
        pace: its rate limits.
        timeout: seconds that one try may take.
        remote: reached through the proxy that the environment names, if it names one.
        delays: seconds before each further try.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        where: str,
        key: str | None = None,
        pace: Pace | None = None,
        timeout: float = 600.0,
        remote: bool = True,
        delays: Sequence[float] = DELAYS,
    ) -> None:
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._model, self.where = model, where
        self._key = key
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pace = pace or Pace(None, None)
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=min(30.0, timeout))
        self._remote, self._delays = remote, delays
        self._limit_name = "max_tokens"
        self._silent_until = 0.0

    def session(self) -> aiohttp.ClientSession:
        """Connections to this endpoint."""
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=self._remote)

    async def complete(
        self, session: aiohttp.ClientSession, request: Request, wasted: Callable[[int], bool] = lambda tokens: True
    ) -> Reply:
        """Ask until there is an answer that another try would not change.

        Args:
            session: of `session()`.
            request: what to ask.
            wasted: told the tokens of a try that brought rubbish; says whether another may be made.

        Returns:
            The reply with the tokens that all its tries took; one with a `problem` where this call failed and others may not.

        Raises:
            InvalidInput: every call would fail: wrong key, unknown model.
            PlumblineError: the server wants no more calls now.
        """
        waste = [0, 0]
        rubbish = failures = timeouts = 0
        waited = 0.0
        while True:
            delay = 0.0
            try:
                status, headers, text = await self._post(session, request)
            except TimeoutError:
                problem = f"no whole answer in {self._timeout.total:g} s"
                timeouts += 1
            except (aiohttp.InvalidURL, UnicodeError) as error:
                raise InvalidInput(f"{self.where}.endpoint: '{self._url}' is no URL; give http(s)://HOST/…/v1") from error
            except aiohttp.ClientError as error:
                problem = self._without_key(f"{type(error).__name__}: {error}")
            else:
                if status == 200:
                    reply = read_reply(request, text)
                    took = reply.prompt_tokens + reply.completion_tokens
                    self._pace.give_back(_longest(request) - took)
                    if reply.problem != NO_COMPLETION:
                        return _with_waste(reply, waste)
                    rubbish += 1
                    if rubbish == RUBBISH_TRIES or not wasted(took):
                        return _with_waste(replace(reply, text=self._without_key(reply.text)), waste)
                    waste = [waste[0] + reply.prompt_tokens, waste[1] + reply.completion_tokens]
                    problem = f"{NO_COMPLETION}: {self._without_key(text)[:200]}"
                elif status in PASSING:
                    problem = self._problem(status, text)
                    delay = self._asked_to_wait(status, headers, text)
                    if delay:
                        self._pace.silence(delay)
                        waited += delay
                elif status in REDIRECTS:
                    target = self._without_key(headers.get("Location", "nowhere"))[:300]
                    raise InvalidInput(
                        f"{self.where}.endpoint: {self._url} redirects to {target}, where the key is not sent; give the base "
                        "URL that answers itself"
                    )
                elif self._is_renamed_limit(text):
                    continue
                else:
                    return _with_waste(self._refusal(status, text), waste)
            failures += not delay or waited > LONGEST_WAIT  # a wait that the server asked for is no failed try
            if failures > len(self._delays) or timeouts == TIMED_OUT_TRIES:
                return _with_waste(Reply(f"{problem} ({failures} tries)", "", problem=FAILED), waste)
            self._tell(problem)
            await asyncio.sleep(delay or self._delays[failures - 1])

    def _tell(self, problem: str) -> None:
        """Why nothing comes, into the stage's log: it can be an hour before a call that is tried again counts as failed."""
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + TOLD_EVERY
            print(f"{self.where}: {problem}; trying again", flush=True)

    async def _post(self, session: aiohttp.ClientSession, request: Request) -> tuple[int, Any, str]:
        await asyncio.sleep(self._pace.turn(_longest(request)))
        while self._pace.silent():
            self._pace.give_back(_longest(request))
            await asyncio.sleep(self._pace.turn(_longest(request)))
        sampling = asdict(request.sampling)
        limit = sampling.pop("max_tokens")
        if not sampling["presence_penalty"]:
            del sampling["presence_penalty"]  # some servers refuse what they do not know, even at its default
        body = {"model": self._model, "messages": request.messages, "stream": False, self._limit_name: limit, **sampling}
        body["seed"] = request.seed
        # A redirect would take the key to where the run does not say.
        async with session.post(
            self._url, json=body, headers=self._headers, timeout=self._timeout, allow_redirects=False
        ) as response:
            raw = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                raw += chunk
                if len(raw) > MOST_BYTES:  # no JSON any more
                    return response.status, response.headers, raw[: MOST_BYTES // 16].decode(errors="replace")
            return response.status, response.headers, raw.decode(errors="replace")

    def _asked_to_wait(self, status: int, headers: Any, text: str) -> float:
        """Seconds that the server asks to wait; 0 where it does not.

        Raises:
            PlumblineError: too long to wait here, or the account is empty.
        """
        if status == 429 and "insufficient_quota" in (error_field(text, "code"), error_field(text, "type")):
            raise PlumblineError(
                f"{self.where}: {self._problem(status, text)}; every answer so far is kept: run again later"
            )
        seconds = retry_after(headers.get("Retry-After"), datetime.now(UTC))
        if seconds > LONGEST_WAIT:
            raise PlumblineError(
                f"{self.where}: the server asks to wait {seconds:.0f} s ({self._problem(status, text)}); "
                "every answer so far is kept: run again later"
            )
        return seconds

    def _is_renamed_limit(self, text: str) -> bool:
        """Whether the server wants OpenAI's newer name of `max_tokens`; it is used from now on."""
        renamed = self._limit_name == "max_tokens" and error_field(text, "param") == "max_tokens"
        if renamed and error_field(text, "code") == "unsupported_parameter":
            self._limit_name = "max_completion_tokens"
            return True
        return False

    def _refusal(self, status: int, text: str) -> Reply:
        """A refusal of this call.

        Raises:
            InvalidInput, PlumblineError: it concerns every call.
        """
        problem = self._problem(status, text)
        if status == 401:
            key = "refuses the key" if self._headers else "wants a key"
            raise InvalidInput(f"{self.where}.keySecret: {self._url} {key}: {problem}; name a Secret with a valid one")
        if status == 402:
            raise PlumblineError(f"{self.where}: {problem}; every answer so far is kept: run again with credit")
        if status == 404:
            raise InvalidInput(f"{self.where}: {self._url} has no model '{self._model}': {problem}; name one that it has")
        return Reply(problem, "", problem=DOES_NOT_FIT if error_field(text, "code") == TOO_LONG else REFUSED)

    def _problem(self, status: int, text: str) -> str:
        """What the server said, without the key, should it repeat it."""
        said = error_field(text, "message") or " ".join(text.split())
        return f"HTTP {status}: {self._without_key(said)[:200]}"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text


def read_reply(request: Request, text: str) -> Reply:
    """The body of an answer with status 200 as a reply; rubbish becomes one with a `problem`, and its tokens are guessed.

    So does an answer that cannot have kept to `max_tokens`, though it cannot be known by how much.
    """
    limit = request.sampling.max_tokens
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
        if not isinstance(content, str | None):
            raise TypeError(f"content is {type(content).__name__}")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        prompt, answer = tokens.count(request.messages, text, limit, None)
        return Reply(text[:500], "", prompt, min(answer, limit), NO_COMPLETION)
    prompt, answer = tokens.count(request.messages, content or "", limit, body.get("usage"))
    if content and tokens.estimate(content) > tokens.DOUBT * limit + SLACK:
        return Reply(
            f"maxTokens is {limit}, and this has {len(content)} characters: {content[:300]}", "", prompt, answer, OVERLONG
        )
    return Reply(content or "", reason if isinstance(reason, str) else "stop", prompt, answer)


def retry_after(value: str | None, now: datetime) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110: seconds, or a date); 0 for none and for nonsense."""
    value = (value or "").strip()
    if not value:
        return 0.0
    try:
        return max(0.0, float(value)) if value[0].isdigit() else _until(value, now)
    except ValueError:
        return 0.0


def _until(value: str, now: datetime) -> float:
    when = parsedate_to_datetime(value)
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds())


def error_field(text: str, name: str) -> str | None:
    """A field of OpenAI's error object, None where the text has another form."""
    try:
        value: Any = json.loads(text)["error"][name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _longest(request: Request) -> int:
    """Tokens that a rate limit should expect: servers count the answer's limit as used until it is there."""
    return tokens.prompt_estimate(request.messages) + request.sampling.max_tokens


def _with_waste(reply: Reply, waste: Sequence[int]) -> Reply:
    """The reply with the tokens of the tries before it."""
    return replace(reply, prompt_tokens=reply.prompt_tokens + waste[0], completion_tokens=reply.completion_tokens + waste[1])
