"""A client of OpenAI's API, as much as a conversation needs. The standard library alone: it runs where kubectl runs."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from plumbline.errors import InvalidInput, PlumblineError

TIMEOUT = 600.0  # seconds between two pieces of an answer: a cold model takes long
LOCAL = ("127.0.0.1", "localhost", "::1")
LINE = 2**20  # bytes of one event
Message = dict[str, str]


class ContextFull(InvalidInput):
    """Conversation and answer are longer than the model's context."""


@dataclass(frozen=True)
class Piece:
    """Text of an answer; the last piece says why it ended (OpenAI's `finish_reason`)."""

    text: str
    finish_reason: str | None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key must not follow to wherever an endpoint points."""

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str) -> None:
        return None


class Endpoint:
    """Where models are served.

    Args:
        url: base URL, `http://HOST:PORT/v1`; a bare host means its `/v1`.
        key: API key, None for an endpoint without.

    Raises:
        InvalidInput: it is no http URL, or the key cannot be sent in a header.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0  # `port` checks the number
        except ValueError:
            usable = False
        if not usable:
            raise InvalidInput(f"'{url}' is no http URL; give the base URL, such as http://HOST:8000/v1")
        if key is not None and not (key.isascii() and key.isprintable() and key.strip()):
            raise InvalidInput("the API key is empty or has characters that no key has; check the variable that holds it")
        self.url = url.rstrip("/") + ("/v1" if parts.path in ("", "/") else "")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # A proxy of the environment has no business on this machine.
        proxies = [urllib.request.ProxyHandler({})] if parts.hostname in LOCAL else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    def models(self) -> list[str]:
        """Names of the served models, the endpoint's order.

        Raises:
            InvalidInput: the endpoint refuses the request.
            PlumblineError: nothing answers there, or something that is no such endpoint.
        """
        with self._open("/models", None) as answer:
            try:
                return [str(card["id"]) for card in json.load(answer)["data"]]
            except (ValueError, KeyError, TypeError):
                raise PlumblineError(
                    f"{self.url} does not speak the OpenAI API; give its base URL, such as http://HOST:8000/v1"
                ) from None

    def answer(self, model: str, messages: list[Message], **sampling: Any) -> Generator[Piece, None, None]:
        """The answer to a conversation, as it is drawn. Leaving early ends it in the endpoint too.

        Args:
            model: name of a served model.
            messages: the conversation.
            sampling: further fields of the request, such as `temperature`.

        Raises:
            ContextFull: the conversation does not fit the model's context.
            InvalidInput: the endpoint refuses the request.
            PlumblineError: it fails, or the connection does.
        """
        body = {"model": model, "messages": messages, "stream": True, **sampling}
        with self._open("/chat/completions", body) as stream:
            while line := stream.readline(LINE):
                kind, _, data = line.decode(errors="replace").strip().partition(":")
                if kind != "data":
                    continue
                if data.strip() == "[DONE]":
                    return
                yield from _pieces(data)
        raise PlumblineError("the answer broke off: the endpoint closed the connection; ask again")

    @contextmanager
    def _open(self, path: str, body: dict[str, Any] | None) -> Iterator[Any]:
        url = self.url + path
        request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), self._headers)
        answered = False
        try:
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                answered = True
                yield answer
        except HTTPError as error:
            raise _refusal(url, error) from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            what = "the connection broke off at" if answered else "nothing answers at"
            raise PlumblineError(f"{what} {url}: {reason}") from error


def _pieces(data: str) -> Iterator[Piece]:
    try:
        event = json.loads(data)
        if "error" in event:
            raise PlumblineError(f"the endpoint failed: {event['error'].get('message')}")
        for choice in event["choices"]:
            yield Piece(choice["delta"].get("content") or "", choice.get("finish_reason"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PlumblineError("the endpoint sent an event that is none of OpenAI's API") from None


def _refusal(url: str, error: HTTPError) -> PlumblineError:
    try:
        said = json.load(error)["error"]
        words, code = str(said["message"]), said.get("code")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        words, code = str(error.reason), None
    text = f"{url} answers {error.code}: {words}"
    if error.code == 401:
        text += " (name the environment variable that holds your key with --api-key-env)"
    if code == "context_length_exceeded":
        return ContextFull(text)
    # 408 and 429 are as right a moment later; all else below 500 stays wrong.
    return InvalidInput(text) if error.code < 500 and error.code not in (408, 429) else PlumblineError(text)
