"""A proxy in front of the API server that keeps a record of requests, and lets a test step in between."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp
import yaml
from aiohttp import web

from support.rest import UNREACHABLE, Rest

_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/[^/]+"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<subresource>[^/]+))?"
)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host", "authorization"}


@dataclass(frozen=True)
class Request:
    """One request for a resource, in RBAC's words. `code` is 0 before it is answered."""

    user: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    code: int = 0

    @property
    def writes(self) -> bool:
        return self.verb not in ("get", "list", "watch")


class ApiProxy:
    """Plain HTTP on the loopback, for any number of users (by token).

    Attributes:
        requests: all that were answered, in order; a watch is there from its first byte.
        after: called with each answered request before its answer goes on; True swallows the answer and closes the
            connection, as when the network or the API server goes down at that moment.
    """

    def __init__(self, kubeconfig: str) -> None:
        self._kubeconfig = kubeconfig
        self.requests: list[Request] = []
        self.after: Callable[[Request], bool] = lambda request: False

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name="API proxy", daemon=True)
        self._thread.start()
        assert ready.wait(120)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def kubeconfig(self, folder: Path, token: str) -> str:
        """A kubeconfig of a user."""
        value = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
        }
        path = folder / f"kubeconfig-{token.replace(':', '-')}"
        path.write_text(yaml.safe_dump(value))
        return str(path)

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        upstream = Rest(self._kubeconfig)
        connector = aiohttp.TCPConnector(ssl=upstream.tls, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(upstream.url, connector=connector, timeout=timeout) as self._session:
            application = web.Application(client_max_size=2**24)
            application.router.add_route("*", "/{path:.*}", self._forward)
            runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.5)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port: int = runner.addresses[0][1]
            ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        token = request.headers.get("Authorization", "")
        body = await request.read()
        try:
            async with self._session.request(
                request.method,
                request.rel_url,
                data=body or None,
                headers=headers | ({"Authorization": token} if token else {}),
            ) as answer:
                if self._record(request, token, answer.status):
                    return _cut(request)
                kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except UNREACHABLE:
            return _cut(request)

    def _record(self, request: web.Request, token: str, code: int) -> bool:
        match = _PATH.fullmatch(request.path)
        if match is None:
            return False
        part = {key: value or "" for key, value in match.groupdict().items()}
        if request.method == "GET":
            verb = "watch" if request.query.get("watch") else "get" if part["name"] else "list"
        else:
            verb = _VERBS[request.method]
        resource = f"{part['resource']}/{part['subresource']}" if part["subresource"] else part["resource"]
        user = token.removeprefix("Bearer ")
        seen = Request(user, verb, part["group"], resource, part["namespace"], part["name"], code)
        self.requests.append(seen)
        return self.after(seen)


def _cut(request: web.Request) -> web.StreamResponse:
    """No answer: the connection breaks."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=502)
