"""`http`: rewards from an endpoint of the user's own."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp

from plumbline.data.row import Chat
from plumbline.data.synthesis.endpoint import DELAYS, LONGEST_WAIT, REDIRECTS, retry_after
from plumbline.errors import InvalidInput, PlumblineError

PASSING = {408, 425, 429, *range(500, 600)}  # statuses that another try may change
RUBBISH_TRIES = 3  # of a call whose answers come with status 200 and are none
TIMED_OUT_TRIES = 3
MOST_BYTES = 2**20


class RemoteReward:
    """Rewards from an endpoint. One call for all answers to a prompt:

        POST URL   {"items": [{"prompt": [{"role", "content"}, …], "answer": "…", "reference": "…"}, …]}
        200        {"rewards": [number, …]}

    May be used by several threads.

    Args:
        url: where to.
        where: field path of the reward, for messages.
        key: sent as bearer token, to this URL only; no message shows it.
        timeout: seconds that one try may take.
        delays: seconds before each further try.
    """

    def __init__(
        self, url: str, *, where: str, key: str | None = None, timeout: float = 60.0, delays: Sequence[float] = DELAYS
    ) -> None:
        self._url, self._where, self._key, self._delays = url, where, key, delays
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=min(30.0, timeout))

    def rewards(self, prompt: Chat, answers: Sequence[str], reference: str) -> list[float]:
        """The reward of each answer.

        Raises:
            InvalidInput: every call would fail: no such place, a wrong key, a redirect.
            PlumblineError: the endpoint fails again and again, or answers something else.
        """
        return asyncio.run(self._ask(prompt, answers, reference))

    async def _ask(self, prompt: Chat, answers: Sequence[str], reference: str) -> list[float]:
        items = [{"prompt": prompt, "answer": answer, "reference": reference} for answer in answers]
        rubbish = timeouts = failures = 0
        waited = 0.0
        async with aiohttp.ClientSession(trust_env=True) as session:
            while True:
                delay = 0.0
                try:
                    status, headers, text = await self._post(session, items)
                except TimeoutError:
                    timeouts += 1
                    problem = f"no whole answer in {self._timeout.total:g} s"
                except (aiohttp.InvalidURL, UnicodeError) as error:
                    raise InvalidInput(f"{self._where}.url: '{self._url}' is no URL; give http(s)://HOST/…") from error
                except aiohttp.ClientError as error:
                    problem = self._without_key(f"{type(error).__name__}: {error}")
                else:
                    if status == 200:
                        rewards = read_rewards(text, len(answers))
                        if not isinstance(rewards, str):
                            return rewards
                        rubbish += 1
                        problem = f"{rewards}: {self._without_key(text)[:200]}"
                    elif status in PASSING:
                        problem = self._said(status, text)
                        delay = retry_after(headers.get("Retry-After"), datetime.now(UTC))
                        waited += delay
                    else:
                        self._refuse(status, headers, text)
                failures += not delay
                if (
                    failures > len(self._delays)
                    or waited > LONGEST_WAIT
                    or rubbish == RUBBISH_TRIES
                    or timeouts == TIMED_OUT_TRIES
                ):
                    tries = f"{failures} tries" if failures else f"asked to wait {waited:.0f} s"
                    raise PlumblineError(f"{self._where}: {self._url}: {problem} ({tries})")
                await asyncio.sleep(delay or self._delays[failures - 1])

    async def _post(self, session: aiohttp.ClientSession, items: list[dict[str, Any]]) -> tuple[int, Any, str]:
        # A redirect would take the key to where the run does not say.
        async with session.post(
            self._url, json={"items": items}, headers=self._headers, timeout=self._timeout, allow_redirects=False
        ) as response:
            raw = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                raw += chunk
                if len(raw) > MOST_BYTES:  # no JSON any more
                    break
            return response.status, response.headers, raw[:MOST_BYTES].decode(errors="replace")

    def _refuse(self, status: int, headers: Any, text: str) -> None:
        if status in REDIRECTS:
            target = self._without_key(headers.get("Location", "nowhere"))[:300]
            raise InvalidInput(
                f"{self._where}.url: {self._url} redirects to {target}, where the key is not sent; give the URL that answers itself"
            )
        if status in (401, 403):
            key = "refuses the key" if self._key else "wants a key"
            raise InvalidInput(
                f"{self._where}.keySecret: {self._url} {key}: {self._said(status, text)}; name a Secret with a valid one"
            )
        raise InvalidInput(
            f"{self._where}.url: {self._url} refuses the call: {self._said(status, text)}; it must take "
            'POST {"items": [{"prompt", "answer", "reference"}]}'
        )

    def _said(self, status: int, text: str) -> str:
        return f"HTTP {status}: {self._without_key(' '.join(text.split()))[:200]}"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text


def read_rewards(text: str, count: int) -> list[float] | str:
    """The rewards in a body, or what is wrong with it."""
    wanted = f'{{"rewards": [{count} finite numbers]}} was expected'
    try:
        values = json.loads(text)["rewards"]
        if len(values) != count:
            return f"{wanted}, {len(values)} came"
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            return wanted
        return [float(value) for value in values]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return wanted
